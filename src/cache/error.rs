//! Why the cache could not do what it was asked for. A layer that is missing or damaged is no
//! error: it is a [`Miss`](super::Miss), and the build makes it anew.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// A failed operation of the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither a variable nor a home folder says where the cache is.
    #[error(
        "There is no place for the cache: none of KVMBAKE_CACHE, XDG_CACHE_HOME and HOME names a folder"
    )]
    NoPlace,
    /// The cache's folder is not safe to use.
    #[error("The cache {} {why}", .path.display())]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it, as the rest of the sentence.
        why: String,
    },
    /// The file system said no.
    #[error("Cannot {action} {}", .path.display())]
    Io {
        /// What was tried, e.g. `write`.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A served file changed between two fetches of one layer, so that no key fits it.
    #[error("The served file {path} changed while the layer was made")]
    Unsteady {
        /// The file's path as the guest asked for it.
        path: String,
    },
    /// A file changed while its digest was computed.
    #[error("{} changes while it is read", .path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// Something that is no layer's file lies in a layer's folder.
    #[error("{} cannot be part of a layer: {why}", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// The parent given is not the one that the layer was begun on.
    #[error("A layer on {expected} was to be published on {given}")]
    Parent {
        /// The parent that the layer was begun on.
        expected: String,
        /// The parent given.
        given: String,
    },
    /// A stored file does not hold what it should.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// No layer has this ID.
    #[error("No layer's ID begins with `{prefix}`")]
    Unknown {
        /// What was asked for.
        prefix: String,
    },
    /// Several layers have IDs that begin so.
    #[error("{count} layers have IDs that begin with `{prefix}`")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many there are.
        count: usize,
    },
    /// A layer, or one that is built on it, is in use.
    #[error("The layer {id} is in use by a running build")]
    InUse {
        /// The layer's short ID.
        id: String,
    },
    /// The SSH key of the cache cannot be made or read.
    #[error("Cannot use the cache's SSH key {}", .path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        source: kvmbake_provision::key::KeyError,
    },
    /// The cache's limit is no size.
    #[error("KVMBAKE_CACHE_LIMIT cannot be used: {why}")]
    Limit {
        /// What is wrong with it.
        why: String,
    },
    /// The caller asked to stop.
    #[error("Interrupted")]
    Cancelled,
}

impl CacheError {
    /// Returns whether the file system has no room, or the user's quota is used up.
    pub fn is_full(&self) -> bool {
        match self {
            CacheError::Io { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
            }
            _ => false,
        }
    }

    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            CacheError::NoPlace => Some("Set KVMBAKE_CACHE to a folder of your own"),
            CacheError::Unsafe { .. } => Some(
                "Set KVMBAKE_CACHE to a folder that is yours alone, or give this one to you with mode 0700",
            ),
            CacheError::Ambiguous { .. } => Some("Give more of the ID"),
            CacheError::Unknown { .. } => Some("`kvmbake cache ls` lists the layers"),
            CacheError::InUse { .. } => Some("Wait for the build, or stop it"),
            CacheError::Key { .. } => Some(
                "Remove the file; the cache makes a new key, and layers made with the old one are built anew",
            ),
            error if error.is_full() => Some(
                "Make room, shrink the cache with `kvmbake cache gc --limit SIZE`, or move it with KVMBAKE_CACHE",
            ),
            _ => None,
        }
    }

    /// Makes errors of `action` on `path`, for `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
        let path = path.to_path_buf();
        move |source| CacheError::Io { action, path, source }
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Error {
        if matches!(error, CacheError::Cancelled) {
            return Error::interrupted();
        }
        let mut told = Error::input(error.to_string());
        if let Some(source) = error.source() {
            told = told.because(source);
        }
        match error.hint() {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}
