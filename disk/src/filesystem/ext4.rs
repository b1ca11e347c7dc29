//! ext2, ext3 and ext4 through the `ext4-view` crate, also after an unclean shutdown (its journal
//! is replayed in memory).
//!
//! Kept away from the crate, because it trusts them: sizes in the superblock that would make it
//! allocate out of proportion, and symbolic links with a long target. Links are therefore
//! resolved here, at most 40 of them as on Linux.

use std::collections::VecDeque;
use std::sync::Arc;

use ext4_view::{Ext4Error, Ext4Read};

use super::{DirEntry, FileSystem, FileType, Kind, Metadata, check_limit, file_error, probe};
use crate::block::Block;
use crate::error::{Error, ErrorKind};

const MAX_SYMLINKS: usize = 40;
const MAX_PATH: usize = 4096;
const MAX_DIR_ENTRIES: usize = 1 << 16;
/// 128 TiB in groups of 128 MiB.
const MAX_GROUPS: u64 = 1 << 20;

/// An ext2, ext3 or ext4 file system.
pub struct Ext4 {
    inner: ext4_view::Ext4,
    kind: Kind,
    label: Option<String>,
    uuid: String,
}

impl Ext4 {
    /// Opens the file system that fills `disk`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for features that are not read, [`ErrorKind::Truncated`] when
    /// it is larger than the disk, [`ErrorKind::Corrupt`] when it contradicts itself.
    pub fn open(disk: Arc<dyn Block>) -> Result<Ext4, Error> {
        check_superblock(&*disk)?;
        let kind = probe(&*disk)?.unwrap_or(Kind::Ext4);
        let inner = ext4_view::Ext4::load(Box::new(Reader(disk)))
            .map_err(|error| translate(error, "open the file system"))?;
        let label = Some(inner.label().display().to_string()).filter(|label| !label.is_empty());
        let uuid = inner.uuid().to_string();
        Ok(Ext4 { inner, kind, label, uuid })
    }

    /// Returns the path without symbolic links that `path` leads to, and what is there.
    fn resolve(
        &self,
        operation: &'static str,
        path: &str,
    ) -> Result<(String, ext4_view::Metadata), Error> {
        let fail = |error: Ext4Error| translate(error, operation).on(std::path::Path::new(path));
        let mut rest: VecDeque<String> = components(path);
        let mut resolved: Vec<String> = Vec::new();
        let mut metadata = self.inner.symlink_metadata("/").map_err(fail)?;
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if !metadata.is_dir() {
                return Err(fail(Ext4Error::NotADirectory));
            }
            if component == ".." {
                resolved.pop();
                metadata = self.inner.symlink_metadata(join(&resolved).as_str()).map_err(fail)?;
                continue;
            }
            resolved.push(component);
            let here = join(&resolved);
            let found = self.inner.symlink_metadata(here.as_str()).map_err(fail)?;
            if !found.is_symlink() {
                metadata = found;
                continue;
            }
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(fail(Ext4Error::TooManySymlinks));
            }
            if found.len() > MAX_PATH as u64 {
                return Err(fail(Ext4Error::PathTooLong));
            }
            let target = self.inner.read_link(here.as_str()).map_err(fail)?;
            let target = target.to_str().map_err(|_| fail(Ext4Error::NotUtf8))?;
            resolved.pop();
            if target.starts_with('/') {
                resolved.clear();
            }
            for component in components(target).into_iter().rev() {
                rest.push_front(component);
            }
            let length: usize = rest.iter().chain(&resolved).map(|part| part.len() + 1).sum();
            if length > MAX_PATH {
                return Err(fail(Ext4Error::PathTooLong));
            }
            metadata = self.inner.symlink_metadata(join(&resolved).as_str()).map_err(fail)?;
        }
        Ok((join(&resolved), metadata))
    }
}

impl FileSystem for Ext4 {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn metadata(&self, path: &str) -> Result<Metadata, Error> {
        let (_, metadata) = self.resolve("look up", path)?;
        Ok(Metadata { file_type: file_type(metadata.file_type()), len: metadata.len() })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let (resolved, metadata) = self.resolve("read", path)?;
        if !metadata.file_type().is_regular_file() {
            return Err(
                file_error(ErrorKind::Invalid, "read", path).because("it is not a regular file")
            );
        }
        check_limit(path, metadata.len(), limit)?;
        let fail = |error| translate(error, "read").on(std::path::Path::new(path));
        let mut file = self.inner.open(resolved.as_str()).map_err(fail)?;
        let mut contents = vec![0; metadata.len() as usize];
        let mut filled = 0;
        while filled < contents.len() {
            match file.read_bytes(&mut contents[filled..]).map_err(fail)? {
                0 => return Err(file_error(ErrorKind::Truncated, "read", path)),
                count => filled += count,
            }
        }
        Ok(contents)
    }

    fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Error> {
        let (resolved, metadata) = self.resolve("list", path)?;
        let fail = |error| translate(error, "list").on(std::path::Path::new(path));
        if !metadata.is_dir() {
            return Err(fail(Ext4Error::NotADirectory));
        }
        let mut entries = Vec::new();
        for entry in self.inner.read_dir(resolved.as_str()).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().display().to_string();
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == MAX_DIR_ENTRIES {
                return Err(file_error(ErrorKind::Unsupported, "list", path)
                    .because(format!("it has more than {MAX_DIR_ENTRIES} entries")));
            }
            entries.push(DirEntry { name, file_type: file_type(entry.file_type().map_err(fail)?) });
        }
        Ok(entries)
    }
}

/// Splits a path; `.` and empty components mean nothing.
fn components(path: &str) -> VecDeque<String> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).map(String::from).collect()
}

fn join(components: &[String]) -> String {
    format!("/{}", components.join("/"))
}

fn file_type(file_type: ext4_view::FileType) -> FileType {
    if file_type.is_regular_file() {
        FileType::File
    } else if file_type.is_dir() {
        FileType::Directory
    } else if file_type.is_symlink() {
        FileType::Symlink
    } else {
        FileType::Special
    }
}

/// Refuses a superblock whose sizes do not fit the disk, before anything is allocated by them.
fn check_superblock(disk: &dyn Block) -> Result<(), Error> {
    let mut superblock = [0; 1024];
    let fail = |kind, reason: String| {
        Err(Error::new(kind, "open the file system").at(1024).because(reason))
    };
    if disk.len() < 2048 {
        return fail(ErrorKind::Truncated, format!("the disk has {} bytes", disk.len()));
    }
    disk.read_at(&mut superblock, 1024)?;
    let u32_at = |at: usize| {
        let bytes = [superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]];
        u64::from(u32::from_le_bytes(bytes))
    };
    if u32_at(0x18) > 6 {
        return fail(ErrorKind::Corrupt, format!("block size is 2 to the {}", u32_at(0x18) + 10));
    }
    let block_size = 1024 << u32_at(0x18);
    let high = if u32_at(0x60) & 0x80 != 0 { u32_at(0x150) } else { 0 };
    let blocks = high << 32 | u32_at(4);
    if blocks.checked_mul(block_size).is_none_or(|size| size > disk.len()) {
        return fail(
            ErrorKind::Truncated,
            format!("it has {blocks} blocks of {block_size} bytes, the disk {}", disk.len()),
        );
    }
    let per_group = u32_at(0x20);
    if per_group == 0 || blocks / per_group >= MAX_GROUPS {
        return fail(ErrorKind::Corrupt, format!("{blocks} blocks in groups of {per_group}"));
    }
    Ok(())
}

fn translate(error: Ext4Error, operation: &'static str) -> Error {
    let kind = match &error {
        Ext4Error::NotFound => return Error::new(ErrorKind::NotFound, operation),
        Ext4Error::Io(_) => ErrorKind::Io,
        Ext4Error::Corrupt(_) => ErrorKind::Corrupt,
        Ext4Error::Incompatible(_) | Ext4Error::Encrypted => ErrorKind::Unsupported,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, operation).because(error.to_string())
}

/// The disk as the crate reads it.
struct Reader(Arc<dyn Block>);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_at(dst, start_byte)?)
    }
}
