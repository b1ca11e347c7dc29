//! The block device as the rest of the house sees it.
//!
//! # Contract
//! - Offsets and lengths are in bytes and need no alignment; aligned requests are faster.
//! - A request lies wholly inside `0..len()` or fails with [`ErrorKind::OutOfRange`] before
//!   anything is read or written: the backend validates, the caller need not.
//! - A call never returns partially done on success, never panics on what an image or a guest
//!   contains, and may be made from several threads at once. Requests that overlap in time and
//!   place have no defined order, as on real hardware.
//! - What `write_at` finished becomes durable with the next `flush`.
//!
//! Left out: asynchronous submission and scatter-gather. One thread per queue keeps several
//! requests in flight.
//!
//! [`ErrorKind::OutOfRange`]: crate::ErrorKind::OutOfRange

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// A range of the virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, never 0 where a [`Block`] returns it.
    pub len: u64,
}

impl Extent {
    /// Returns the offset just behind the extent.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Returns the part of the extent that lies before `end`, if there is one.
    pub fn before(&self, end: u64) -> Option<Extent> {
        (self.offset < end && self.len > 0)
            .then(|| Extent { offset: self.offset, len: self.end().min(end) - self.offset })
    }
}

/// A random-access disk of fixed size; see the module's contract.
pub trait Block: Send + Sync {
    /// Returns the virtual size in bytes.
    fn len(&self) -> u64;

    /// Returns whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the allocation unit in bytes (at least 512, a power of two): writes, discards and
    /// zeroes aligned to it need no copying and can free space.
    fn cluster_size(&self) -> u64;

    /// Fills the whole of `buf` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond the end; otherwise what the backend met.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error>;

    /// Writes the whole of `buf` at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::OutOfRange`], [`ErrorKind::NoSpace`] when the host's
    /// disk is full; otherwise what the backend met.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error>;

    /// Makes every finished write durable.
    fn flush(&self) -> Result<(), Error>;

    /// Gives the range up: afterwards each byte reads as zero or as before. A hint: whatever can
    /// not be freed stays.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Makes the range read as zeroes, freeing what it used where the backend can.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Returns the first extent at or after `from` that may hold data other than zeroes; `None`
    /// when only zeroes follow up to the end.
    ///
    /// The extent starts at or after `from`, ends at or before `len()`, and is not necessarily
    /// maximal: the caller goes on from its end. `from` at or beyond `len()` gives `None`.
    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error>;

    /// Returns whether writing is refused.
    fn is_read_only(&self) -> bool;

    /// Lets `file` have the bytes from `offset` on at its own byte `at` without copying them, where a
    /// host's file has them as they are. Returns how many from the front of `len`, which may be 0;
    /// `offset` and `len` lie inside the disk. Nobody may write to that part of the disk meanwhile.
    ///
    /// # Errors
    /// The host's file systems do not share bytes: there is no use in asking again.
    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        let _ = (offset, len, file, at);
        Ok(0)
    }
}

impl fmt::Debug for dyn Block + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("len", &self.len())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}

impl<B: Block + ?Sized> Block for Arc<B> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn cluster_size(&self) -> u64 {
        (**self).cluster_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        (**self).write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), Error> {
        (**self).flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        (**self).discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        (**self).write_zeroes(offset, len)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        (**self).next_data(from)
    }

    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        (**self).share(offset, len, file, at)
    }
}

/// Checks that `len` bytes at `offset` lie inside a disk of `size` bytes.
///
/// # Errors
/// [`ErrorKind::OutOfRange`] with the operation and the offset; the caller adds the path.
pub fn check_range(operation: &'static str, offset: u64, len: u64, size: u64) -> Result<(), Error> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(ErrorKind::OutOfRange, operation)
            .at(offset)
            .because(format!("{len} bytes there end beyond the disk's {size} bytes"))),
    }
}
