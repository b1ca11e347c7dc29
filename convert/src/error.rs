//! What can go wrong between a source disk and finished images.

use std::path::{Path, PathBuf};

use kvmbake_disk::ErrorKind;

use crate::format::Format;

/// An error of this crate. Everything that a file or the source disk answered is [`Error::Disk`],
/// which names the file, the operation and the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source, or a file being written or read, failed.
    #[error(transparent)]
    Disk(#[from] kvmbake_disk::Error),
    /// The format cannot hold this disk; nothing was created.
    #[error("Cannot write {path} as {format}: {reason}")]
    Refused {
        /// The target.
        path: PathBuf,
        /// The target's format.
        format: Format,
        /// Why, with the values.
        reason: String,
    },
    /// The bytes fit more than one format and none was given.
    #[error("Cannot tell the format of {path}: it looks like {first} and like {second}")]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// One format that the bytes fit.
        first: Format,
        /// Another one.
        second: Format,
    },
    /// The written image does not read back as the disk.
    #[error("The written {format} image {path} does not hold the disk: {reason}")]
    Mismatch {
        /// The image, removed again.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// Both digests, or where the rest is not zero.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("Cancelled")]
    Cancelled,
}

impl Error {
    /// Returns whether the host's disk or the user's quota is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Disk(error) if error.kind() == ErrorKind::NoSpace)
    }

    /// Returns the one of two errors that tells more: a thread that stops because another one
    /// failed reports only that it was cancelled.
    pub(crate) fn first(known: Option<Error>, next: Error) -> Error {
        match known {
            Some(known) if !matches!(known, Error::Cancelled) => known,
            _ => next,
        }
    }

    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Disk(error) => error.hint().map(str::to_owned),
            Error::Ambiguous { .. } => Some("Name the format explicitly".to_owned()),
            _ => None,
        }
    }
}

/// Returns the error of a file whose metadata cannot be right.
pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> kvmbake_disk::Error {
    kvmbake_disk::Error::new(ErrorKind::Corrupt, "read").on(path).because(reason)
}

/// Returns the error of a file that uses what this crate does not read.
pub(crate) fn unsupported(path: &Path, reason: impl Into<String>) -> kvmbake_disk::Error {
    kvmbake_disk::Error::new(ErrorKind::Unsupported, "read").on(path).because(reason)
}

/// Returns the error of a file that is shorter than its metadata says.
pub(crate) fn truncated(path: &Path, reason: impl Into<String>) -> kvmbake_disk::Error {
    kvmbake_disk::Error::new(ErrorKind::Truncated, "read").on(path).because(reason)
}

/// Returns the error of a caller who asked for what makes no sense.
pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> kvmbake_disk::Error {
    kvmbake_disk::Error::new(ErrorKind::Invalid, "write").on(path).because(reason)
}
