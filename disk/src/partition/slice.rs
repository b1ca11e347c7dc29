//! A window onto a disk, such as one partition, for reading.

use std::sync::Arc;

use super::Partition;
use crate::block::{Block, Extent, check_range};
use crate::error::{Error, ErrorKind};

/// A read-only part of another disk. Offsets count from the part's start; errors name the offset
/// that the underlying disk saw.
#[derive(Clone)]
pub struct Slice {
    disk: Arc<dyn Block>,
    offset: u64,
    len: u64,
}

impl Slice {
    /// Makes the window of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] when it ends beyond the disk.
    pub fn new(disk: Arc<dyn Block>, offset: u64, len: u64) -> Result<Slice, Error> {
        check_range("take a part of the disk", offset, len, disk.len())?;
        Ok(Slice { disk, offset, len })
    }

    /// Makes the window that is `partition`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] when it ends beyond the disk.
    pub fn of(disk: Arc<dyn Block>, partition: &Partition) -> Result<Slice, Error> {
        Slice::new(disk, partition.offset, partition.len)
    }

    fn refuse(&self, operation: &'static str, offset: u64) -> Result<(), Error> {
        Err(Error::new(ErrorKind::ReadOnly, operation).at(offset))
    }
}

impl Block for Slice {
    fn len(&self) -> u64 {
        self.len
    }

    fn cluster_size(&self) -> u64 {
        self.disk.cluster_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.len)?;
        self.disk.read_at(buf, self.offset + offset)
    }

    fn write_at(&self, _buf: &[u8], offset: u64) -> Result<(), Error> {
        self.refuse("write", offset)
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Error> {
        self.refuse("discard", offset)
    }

    fn write_zeroes(&self, offset: u64, _len: u64) -> Result<(), Error> {
        self.refuse("write zeroes to", offset)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        if from >= self.len {
            return Ok(None);
        }
        let Some(extent) = self.disk.next_data(self.offset + from)? else { return Ok(None) };
        let start = extent.offset.saturating_sub(self.offset);
        if start >= self.len {
            return Ok(None);
        }
        let end = extent.end().saturating_sub(self.offset).min(self.len);
        Ok(Some(Extent { offset: start, len: end - start }))
    }

    fn is_read_only(&self) -> bool {
        true
    }
}
