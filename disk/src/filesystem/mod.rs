//! File systems, for reading: what a partition holds, and the files in it.
//!
//! Paths are absolute, `/`-separated, and resolved inside the file system as its own boot loader
//! would: symbolic links never lead out of it. Whatever is in the image is hostile; a reader
//! never panics on it, and allocates no more than the limit it is given and a few MiB.
//!
//! Left out: writing, owners and times, and for now every file system but ext2/3/4 and FAT
//! (the others are told by name).

mod ext4;
mod fat;
mod probe;

use std::path::Path;
use std::sync::Arc;

pub use ext4::Ext4;
pub use fat::Fat;
pub use probe::{Kind, probe};

use crate::block::Block;
use crate::error::{Error, ErrorKind};

/// What a directory entry is, or a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; only in directory listings.
    Symlink,
    /// A device, socket or pipe.
    Special,
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub file_type: FileType,
    /// Length in bytes.
    pub len: u64,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub file_type: FileType,
}

/// A file system opened for reading; see the module's contract.
pub trait FileSystem {
    /// Returns which file system it is.
    fn kind(&self) -> Kind;

    /// Returns the label, `None` when it has none.
    fn label(&self) -> Option<&str>;

    /// Returns the UUID as `blkid` writes it; for FAT the serial number, such as `1A2B-3C4D`.
    fn uuid(&self) -> &str;

    /// Returns what `path` leads to, symbolic links followed.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it leads nowhere.
    fn metadata(&self, path: &str) -> Result<Metadata, Error>;

    /// Reads the whole regular file at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Invalid`] when it is not a regular file or has more
    /// than `limit` bytes; [`ErrorKind::Corrupt`] when the file system contradicts itself.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error>;

    /// Lists the directory at `path`, without `.` and `..`, in no particular order.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Invalid`] when it is no directory.
    fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Error>;
}

/// Opens the file system that fills `disk`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it is none that is read here, with the name of what it is;
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Truncated`] when it is damaged.
pub fn open(disk: Arc<dyn Block>) -> Result<Box<dyn FileSystem>, Error> {
    let unsupported = |what: String| {
        Err(Error::new(ErrorKind::Unsupported, "open the file system").because(what))
    };
    match probe(&*disk)? {
        Some(Kind::Ext2 | Kind::Ext3 | Kind::Ext4) => Ok(Box::new(Ext4::open(disk)?)),
        Some(Kind::Fat) => Ok(Box::new(Fat::open(disk)?)),
        Some(other) => unsupported(format!("{other} is not read")),
        None => unsupported("no known file system".into()),
    }
}

/// An error about a file inside the file system.
fn file_error(kind: ErrorKind, operation: &'static str, path: &str) -> Error {
    Error::new(kind, operation).on(Path::new(path))
}

/// Refuses a file of more than `limit` bytes.
fn check_limit(path: &str, len: u64, limit: u64) -> Result<(), Error> {
    if len > limit {
        return Err(file_error(ErrorKind::Invalid, "read", path)
            .because(format!("it has {len} bytes, at most {limit} are read")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
