//! A disk in memory: for seeds made on the fly, and for tests.

use std::sync::{PoisonError, RwLock};

use crate::block::{Block, Extent, check_range};
use crate::error::{Error, ErrorKind};

/// The unit in which zeroes are told from data.
const UNIT: usize = 4096;

/// A disk whose bytes are a vector.
#[derive(Debug)]
pub struct MemoryBlock {
    bytes: RwLock<Vec<u8>>,
    len: u64,
    read_only: bool,
}

impl MemoryBlock {
    /// Makes a disk that refuses writes.
    pub fn read_only(bytes: Vec<u8>) -> MemoryBlock {
        MemoryBlock::make(bytes, true)
    }

    /// Makes a disk that can be written to.
    pub fn writable(bytes: Vec<u8>) -> MemoryBlock {
        MemoryBlock::make(bytes, false)
    }

    /// Makes a writable disk of `len` zeroes.
    pub fn zeroes(len: usize) -> MemoryBlock {
        MemoryBlock::make(vec![0; len], false)
    }

    fn make(bytes: Vec<u8>, read_only: bool) -> MemoryBlock {
        MemoryBlock { len: bytes.len() as u64, bytes: RwLock::new(bytes), read_only }
    }

    /// Returns a copy of the contents.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, operation).at(offset));
        }
        check_range(operation, offset, len, self.len)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut bytes[offset as usize..(offset + len) as usize]);
        Ok(())
    }
}

impl Block for MemoryBlock {
    fn len(&self) -> u64 {
        self.len
    }

    fn cluster_size(&self) -> u64 {
        UNIT as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.len)?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        buf.copy_from_slice(&bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.change("write", offset, buf.len() as u64, |bytes| {
            bytes.copy_from_slice(buf);
        })
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.change("discard", offset, len, |bytes| bytes.fill(0))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.change("write zeroes to", offset, len, |bytes| bytes.fill(0))
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        if from >= self.len {
            return Ok(None);
        }
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let has_data = |start: usize| {
            let end = bytes.len().min(start / UNIT * UNIT + UNIT);
            bytes[start..end].iter().any(|&byte| byte != 0)
        };
        let next_unit = |at: usize| at / UNIT * UNIT + UNIT;
        let mut start = from as usize;
        while start < bytes.len() && !has_data(start) {
            start = next_unit(start);
        }
        if start >= bytes.len() {
            return Ok(None);
        }
        let mut end = next_unit(start);
        while end < bytes.len() && has_data(end) {
            end = next_unit(end);
        }
        let end = end.min(bytes.len());
        Ok(Some(Extent { offset: start as u64, len: (end - start) as u64 }))
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_data_skips_zeroes_and_ends_at_the_odd_length() {
        let mut bytes = vec![0; 3 * UNIT + 100];
        bytes[UNIT + 5] = 1;
        bytes[3 * UNIT + 99] = 2;
        let disk = MemoryBlock::read_only(bytes);
        let extent =
            |offset: usize, len: usize| Some(Extent { offset: offset as u64, len: len as u64 });
        assert_eq!(disk.next_data(0).unwrap(), extent(UNIT, UNIT));
        assert_eq!(disk.next_data(UNIT as u64 + 5).unwrap(), extent(UNIT + 5, UNIT - 5));
        assert_eq!(disk.next_data(UNIT as u64 + 6).unwrap(), extent(3 * UNIT, 100));
        assert_eq!(disk.next_data(3 * UNIT as u64 + 100).unwrap(), None);
    }

    #[test]
    fn requests_beyond_the_end_are_refused_whole() {
        let disk = MemoryBlock::zeroes(1000);
        assert_eq!(disk.write_at(&[1; 8], 996).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(disk.read_at(&mut [0; 8], u64::MAX).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(disk.to_vec(), vec![0; 1000]);
    }

    #[test]
    fn read_only_refuses_every_change() {
        let disk = MemoryBlock::read_only(vec![7; 512]);
        for result in [disk.write_at(&[0], 0), disk.discard(0, 512), disk.write_zeroes(0, 512)] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
        }
    }
}
