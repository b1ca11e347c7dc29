//! A layer in the store: its record, its files, and the hold on both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::CacheError;
use super::lock::Hold;
use super::recipe::{LayerId, LayerKey, Recipe, put};

/// The name of the record in a layer's folder.
pub(super) const RECORD: &str = "layer.json";
/// A file that says why a layer that was in use could not be thrown away yet.
pub(super) const DAMAGED: &str = "damaged";

/// The layer's disk: a qcow2 delta on its parent's.
pub const DISK: &str = "disk.qcow2";
/// What the layer's memory differs by from its parent's: a flat, sparse file.
pub const MEMORY: &str = "memory";
/// Which pages [`MEMORY`] holds.
pub const MEMORY_MAP: &str = "memory.map";
/// The machine without its memory.
pub const MACHINE_STATE: &str = "machine.state";
/// [`MEMORY`], compressed.
pub(super) const PACKED_MEMORY: &str = "memory.zst";

/// What the guest was given for a path of the served folder while a layer was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Served {
    /// The path as the guest asked for it.
    pub path: String,
    /// The digest of what it got; `None` when there was nothing (404).
    pub digest: Option<Digest>,
}

/// What is known of one of a layer's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub name: String,
    pub length: u64,
    pub digest: Digest,
    pub mtime_ns: i64,
    /// Whether it was found not to shrink enough.
    #[serde(default, skip_serializing_if = "is_false")]
    pub incompressible: bool,
    /// The length of the flat file that this one was packed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat_length: Option<u64>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub format: u32,
    pub id: LayerId,
    pub key: LayerKey,
    pub parent: Option<LayerId>,
    pub recipe: Recipe,
    pub served: Vec<Served>,
    pub title: String,
    pub created_ms: u64,
    pub kvmbake: String,
    pub files: Vec<FileRecord>,
}

impl Record {
    pub fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.created_ms)
    }

    /// Returns how old the layer is; one from the future is new.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.created()).unwrap_or_default()
    }

    /// The name of the layer's folder.
    pub fn folder_name(&self) -> String {
        format!("{}-{}", self.key.0.prefix(KEY_DIGITS), self.id.0.prefix(ID_DIGITS))
    }
}

pub(super) const KEY_DIGITS: usize = 32;
pub(super) const ID_DIGITS: usize = 16;

/// The keys and IDs that a folder's name tells the beginnings of.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub folder: PathBuf,
    pub key: String,
    pub id: String,
}

/// Lists the layers' folders in `layers`.
pub(super) fn entries(layers: &Path) -> Result<Vec<Entry>, CacheError> {
    let mut all = Vec::new();
    for entry in fs::read_dir(layers).map_err(CacheError::io("list", layers))? {
        let entry = entry.map_err(CacheError::io("list", layers))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((key, id)) = name.split_once('-')
            && key.len() == KEY_DIGITS
            && id.len() == ID_DIGITS
        {
            all.push(Entry { folder: entry.path(), key: key.into(), id: id.into() });
        }
    }
    Ok(all)
}

/// Sorts what was fetched and drops what was fetched twice.
pub(super) fn settle(mut served: Vec<Served>) -> Result<Vec<Served>, CacheError> {
    served.sort();
    served.dedup();
    let twice = served.windows(2).find(|pair| pair[0].path == pair[1].path);
    match twice {
        Some(pair) => Err(CacheError::Unsteady { path: pair[0].path.clone() }),
        None => Ok(served),
    }
}

/// Makes the ID of a new layer. Random bits enter: two layers that were made at two times hold
/// different bytes, even where their keys are the same, and what is built on one fits no other.
pub(super) fn new_id(key: LayerKey, served: &[Served]) -> io::Result<LayerId> {
    let mut bytes = vec![0; 32];
    crate::random::fill(&mut bytes)?;
    bytes.extend_from_slice(key.0.as_bytes());
    for Served { path, digest } in served {
        put(&mut bytes, path.as_bytes());
        put(&mut bytes, digest.as_ref().map_or(&[], |digest| digest.as_bytes()));
    }
    let id = blake3::derive_key("kvmbake 2026-11 layer id", &bytes);
    Ok(LayerId(Digest::from_bytes(id)))
}

/// Returns what the record of `name` in `folder` should say.
pub(super) fn describe(
    folder: &Path,
    name: &str,
    cancel: &AtomicBool,
) -> Result<(File, FileRecord), CacheError> {
    let path = folder.join(name);
    let file = File::open(&path).map_err(CacheError::io("open", &path))?;
    let (digest, length) = Digest::of_file(&file, cancel)
        .map_err(CacheError::io("read", &path))?
        .ok_or(CacheError::Cancelled)?;
    let mtime_ns = mtime_ns(&file.metadata().map_err(CacheError::io("look at", &path))?);
    let record = FileRecord {
        name: name.into(),
        length,
        digest,
        mtime_ns,
        incompressible: false,
        flat_length: None,
    };
    Ok((file, record))
}

pub(super) fn mtime_ns(metadata: &fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// How closely files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Lengths and times, and what differs in its time in full.
    Quick,
    /// Every byte.
    Full,
}

/// Compares the files in `folder` with `record`, and corrects the times in the record where only
/// they differ. Returns whether it did; the inner error says what is wrong with which file.
pub(super) fn check_files(
    folder: &Path,
    record: &mut Record,
    depth: Depth,
    cancel: &AtomicBool,
) -> Result<Result<bool, String>, CacheError> {
    let mut renewed = false;
    for expected in &mut record.files {
        let path = folder.join(&expected.name);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(format!("{} is missing", expected.name)));
            }
            Err(error) => return Err(CacheError::io("look at", &path)(error)),
        };
        if !metadata.is_file() {
            return Ok(Err(format!("{} is not a file", expected.name)));
        }
        if metadata.len() != expected.length {
            return Ok(Err(format!(
                "{} has {} bytes instead of {}",
                expected.name,
                metadata.len(),
                expected.length
            )));
        }
        if depth == Depth::Quick && mtime_ns(&metadata) == expected.mtime_ns {
            continue;
        }
        let found = match describe(folder, &expected.name, cancel) {
            Ok((_, found)) => found,
            // A disk that cannot give the bytes back is as bad as one that gives wrong ones.
            Err(CacheError::Io { action: "read", source, .. }) => {
                return Ok(Err(format!("{} cannot be read: {source}", expected.name)));
            }
            Err(error) => return Err(error),
        };
        if found.digest != expected.digest {
            return Ok(Err(format!("the content of {} has changed", expected.name)));
        }
        renewed |= found.mtime_ns != expected.mtime_ns;
        expected.mtime_ns = found.mtime_ns;
    }
    Ok(Ok(renewed))
}

/// A layer, held with all it is built on: as long as this or a clone lives, none of them is
/// evicted, by this process or another.
#[derive(Debug, Clone)]
pub struct Layer(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub folder: PathBuf,
    pub record: Record,
    pub parent: Option<Layer>,
    pub hold: Hold,
}

impl Layer {
    /// Returns the layer's ID.
    pub fn id(&self) -> LayerId {
        self.0.record.id
    }

    /// Returns the key that it was found by.
    pub fn key(&self) -> LayerKey {
        self.0.record.key
    }

    /// Returns the layer that it is built on.
    pub fn parent(&self) -> Option<&Layer> {
        self.0.parent.as_ref()
    }

    /// Returns the layers from the first one to this one.
    pub fn chain(&self) -> Vec<Layer> {
        let mut chain: Vec<Layer> =
            std::iter::successors(Some(self), |layer| layer.parent()).cloned().collect();
        chain.reverse();
        chain
    }

    /// Returns what it was made by.
    pub fn recipe(&self) -> &Recipe {
        &self.0.record.recipe
    }

    /// Returns what the guest fetched while it was made, by path.
    pub fn served(&self) -> &[Served] {
        &self.0.record.served
    }

    /// Returns its title.
    pub fn title(&self) -> &str {
        &self.0.record.title
    }

    /// Returns when it was made.
    pub fn created(&self) -> SystemTime {
        self.0.record.created()
    }

    /// Returns the version of kvmbake that made it.
    pub fn made_by(&self) -> &str {
        &self.0.record.kvmbake
    }

    /// Returns the path of one of its files; `None` when it has no such file.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let has = self.0.record.files.iter().any(|file| file.name == name);
        has.then(|| self.0.folder.join(name))
    }

    /// Returns its files' lengths by name.
    pub fn lengths(&self) -> BTreeMap<&str, u64> {
        self.0.record.files.iter().map(|file| (file.name.as_str(), file.length)).collect()
    }

    /// Returns what it takes on the disk, in bytes.
    pub fn allocated(&self) -> u64 {
        allocated(&self.0.folder)
    }
}

/// Returns what the files in `folder` take on the disk, in bytes.
pub(super) fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}
