//! The layer cache: folders of files in a store, found by what made them.
//!
//! This module knows nothing of machines or guests. A [`Recipe`] is a list of named values; its
//! digest on a parent's ID is the [`LayerKey`] that a layer is found by, and a [`Layer`] is a folder
//! of files with a record that holds their digests. Besides, the store keeps what makes a second
//! build fast: base images that were downloaded or unpacked, digests of large files, the recipes of
//! each profile's last run, and where unchanged exports lie.
//!
//! What the store holds can be lost at any time, and what is damaged is noticed before it is used.
//! Many processes work in one store: see `lock.rs` for how they keep out of each other's way. The
//! store's layout and rules are in docs/cache.md.

mod base;
mod building;
mod digest;
mod envelope;
mod error;
mod explain;
mod exports;
mod find;
mod gc;
mod inventory;
mod layer;
mod lines;
mod lock;
mod memo;
mod pack;
mod recipe;
mod root;
mod scratch;
mod secret;
mod trace;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use base::{Base, Incoming, Origin, StoredBase, Unpack};
pub use building::{Begun, Building, Meta, Parent, Publishing};
pub use digest::{Digest, NoDigest};
pub use error::CacheError;
pub use explain::{Change, causes, counterparts, explain};
pub use exports::{ExportKey, Exported};
pub use find::{Discarded, Found, Lookup, Miss};
pub use gc::{Collected, DEFAULT_LIMIT, Limits, Removed, limit_from_environment};
pub use inventory::{Listed, Usage, Verified};
pub use layer::{DISK, Layer, MACHINE_STATE, MEMORY, MEMORY_MAP, Served};
pub use pack::MemoryForm;
pub use recipe::{FORMAT, Field, KEPT_TEXT, Kind, LayerId, LayerKey, Recipe, Value};
pub use root::default_root;
pub use scratch::Scratch;
pub use trace::{Trace, Traced};

/// A store. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Cache {
    root: Arc<PathBuf>,
    clock: fn() -> SystemTime,
}

impl Cache {
    /// Opens the store that the environment names; see [`default_root`].
    ///
    /// # Errors
    /// See [`Cache::open_at`].
    pub fn open_default() -> Result<Cache, CacheError> {
        Cache::open_at(&default_root()?)
    }

    /// Opens the store in the folder `root`, which is made when it is missing, and removes what dead
    /// builds left in it.
    ///
    /// # Errors
    /// The folder cannot be made, or belongs to another user or can be written by one.
    pub fn open_at(root: &Path) -> Result<Cache, CacheError> {
        let root = std::path::absolute(root).map_err(CacheError::io("find", root))?;
        let cache = Cache { root: Arc::new(root), clock: SystemTime::now };
        root::private_folder(&cache.root)?;
        for folder in
            ["layers", "bases", "parts", "tmp", "locks", "digests", "traces", "exports", "ssh"]
        {
            root::private_folder(&cache.root.join(folder))?;
        }
        scratch::remove_dead(&cache.tmp());
        lock::remove_dead_locks(&cache.locks());
        Ok(cache)
    }

    /// Returns the store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a private folder on the store's file system, which goes with its owner.
    ///
    /// # Errors
    /// The file system's.
    pub fn scratch(&self) -> Result<Scratch, CacheError> {
        Scratch::create(&self.tmp())
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }
}
