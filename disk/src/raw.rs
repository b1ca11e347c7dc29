//! Raw images: the file's bytes are the disk's.
//!
//! Discards and zeroes become holes where the file system can punch them, and holes are what
//! `next_data` skips.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::block::{Block, Extent, check_range};
use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;
use crate::lock::{self, Use};
use crate::share::share;

/// What is written where holes cannot be punched.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A raw image; its size is the file's length when it was opened.
#[derive(Debug)]
pub struct RawBlock {
    file: HostFile,
    writable: bool,
}

impl RawBlock {
    /// Opens and locks the file: shared for reading, alone for writing.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`], [`ErrorKind::Unsupported`] when it is no regular file; otherwise
    /// what opening met.
    pub fn open(path: &Path, writable: bool) -> Result<RawBlock, Error> {
        let file = HostFile::open(path, writable)?;
        let wanted = if writable { Use::Write } else { Use::Read };
        lock::lock(file.file(), path, wanted)?;
        Ok(RawBlock { file, writable })
    }

    fn check_change(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), Error> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, operation).on(self.file.path()));
        }
        self.check(operation, offset, len)
    }

    fn check(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), Error> {
        check_range(operation, offset, len, self.file.len())
            .map_err(|error| error.on(self.file.path()))
    }

    fn failed(&self, operation: &'static str, offset: u64, error: io::Error) -> Error {
        Error::io(operation, error).on(self.file.path()).at(offset)
    }
}

impl Block for RawBlock {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn cluster_size(&self) -> u64 {
        self.file.block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check("read", offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.check_change("write", offset, buf.len() as u64)?;
        self.file.write_all_at(buf, offset).map_err(|error| self.failed("write", offset, error))
    }

    fn flush(&self) -> Result<(), Error> {
        if !self.writable {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| Error::io("flush", error).on(self.file.path()))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check_change("discard", offset, len)?;
        match self.file.punch(offset, len) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                Err(self.failed("discard", offset, error))
            }
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> Result<(), Error> {
        self.check_change("write zeroes to", offset, len)?;
        match self.file.punch(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => return Err(self.failed("write zeroes to", offset, error)),
            Ok(()) => return Ok(()),
        }
        while len > 0 {
            let count = len.min(ZEROES.len() as u64);
            self.file
                .write_all_at(&ZEROES[..count as usize], offset)
                .map_err(|error| self.failed("write zeroes to", offset, error))?;
            offset += count;
            len -= count;
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        self.file
            .next_stored(from, self.file.len())
            .map_err(|error| self.failed("find data in", from, error))
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        share(self.file.file(), offset, len, file, at)
    }
}
