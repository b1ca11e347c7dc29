//! A regular file of the host: positioned reads and writes, holes, and errors that name it.
//!
//! Only regular files are opened. A named pipe would block the opening, a device has no length
//! of its own and cannot be locked against other users; both are refused by name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::block::Extent;
use crate::error::{Error, ErrorKind};
use crate::lock;

/// An open regular file and its name.
#[derive(Debug)]
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    len: u64,
    block_size: u64,
}

impl HostFile {
    /// Opens an existing file for reading and, when `writable`, for writing.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<HostFile, Error> {
        let failed = |error| {
            let error = Error::io("open", error).on(path);
            match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnly if writable => {
                    error.with_hint("The file must be writable for this user")
                }
                _ => error,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            // A named pipe must not block us before it can be refused.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EISDIR) => not_a_regular_file(path, "a directory"),
                Some(libc::ENXIO) => not_a_regular_file(path, "a named pipe or socket"),
                _ => failed(error),
            })?;
        HostFile::adopt(file, path)
    }

    /// Creates a new, empty file that only its owner can read and write.
    pub(crate) fn create(path: &Path) -> Result<HostFile, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::io("create", error).on(path))?;
        HostFile::adopt(file, path)
    }

    fn adopt(file: File, path: &Path) -> Result<HostFile, Error> {
        let metadata = file.metadata().map_err(|error| Error::io("open", error).on(path))?;
        let kind = metadata.file_type();
        let refused = if kind.is_file() {
            None
        } else if kind.is_dir() {
            Some("a directory")
        } else if kind.is_block_device() {
            Some("a block device")
        } else if kind.is_char_device() {
            Some("a character device")
        } else {
            Some("a named pipe or socket")
        };
        if let Some(kind) = refused {
            return Err(not_a_regular_file(path, kind));
        }
        let block_size = metadata.blksize();
        Ok(HostFile {
            file,
            path: path.to_owned(),
            len: metadata.len(),
            block_size: if block_size.is_power_of_two() {
                block_size.clamp(512, 1 << 20)
            } else {
                4096
            },
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the length at the time of opening.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the file system's preferred block size, a power of two of at least 512.
    pub(crate) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Fills `buf` from `offset`; the file's end before that is [`ErrorKind::Truncated`].
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| Error::io("read", error).on(&self.path).at(offset))
    }

    /// Reads from the start as much as there is, up to the length of `buf`.
    pub(crate) fn read_prefix<'a>(&self, buf: &'a mut [u8]) -> Result<&'a [u8], Error> {
        let len = (buf.len() as u64).min(self.len) as usize;
        self.read_exact_at(&mut buf[..len], 0)?;
        Ok(&buf[..len])
    }

    pub(crate) fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Turns the range into a hole that reads as zeroes, without changing the file's length.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] when the file system cannot, in which case nothing changed.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (offset, len) = (to_off(offset)?, to_off(len)?);
        loop {
            // SAFETY: fallocate takes no pointers; the descriptor is open as long as `self.file`.
            let result = unsafe {
                libc::fallocate(
                    self.file.as_raw_fd(),
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    offset,
                    len,
                )
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                _ => return Err(error),
            }
        }
    }

    /// Returns the first stored extent at or after `from` and before `end`; holes read as zeroes.
    /// Where the file system does not tell holes, everything counts as stored.
    pub(crate) fn next_stored(&self, from: u64, end: u64) -> io::Result<Option<Extent>> {
        if from >= end {
            return Ok(None);
        }
        let start = match self.seek(from, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Ok(Some(Extent { offset: from, len: end - from }));
            }
            Err(error) => return Err(error),
        };
        if start >= end {
            return Ok(None);
        }
        let stop = match self.seek(start, libc::SEEK_HOLE) {
            Ok(stop) => stop.clamp(start + 1, end),
            // The file was cut short meanwhile: let the read find out.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => end,
            Err(error) => return Err(error),
        };
        Ok(Some(Extent { offset: start, len: stop - start }))
    }

    fn seek(&self, from: u64, whence: libc::c_int) -> io::Result<u64> {
        // SAFETY: lseek takes no pointers; the descriptor is open as long as `self.file`. The
        // file position it moves is used by nobody: all reads and writes are positioned.
        let result = unsafe { libc::lseek(self.file.as_raw_fd(), to_off(from)?, whence) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}

fn to_off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn not_a_regular_file(path: &Path, kind: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "open")
        .on(path)
        .because(format!("it is {kind}, not a regular file"))
        .with_hint("Copy the disk into an image file first, for instance with qemu-img convert")
}
