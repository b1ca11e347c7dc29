//! A decorator for disks that are worthless after a crash: flushing costs nothing.
//!
//! The overlay of a build is thrown away when the build dies, and what leaves the build is
//! written and synced by the exporters. So the guest's flushes (a journal commits every few
//! seconds, package managers sync after each package) need not wait for the host's disk.

use crate::block::{Block, Extent};
use crate::error::Error;

/// Finishes flushes at once; everything else passes through.
///
/// What was written is visible to every reader of this disk, but not durable.
#[derive(Debug)]
pub struct Volatile<B>(pub B);

impl<B: Block> Block for Volatile<B> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn cluster_size(&self) -> u64 {
        self.0.cluster_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.0.write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.0.write_zeroes(offset, len)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        self.0.next_data(from)
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counted, MemoryBlock};

    #[test]
    fn only_flushes_stop_here() {
        let disk = Volatile(Counted::new(MemoryBlock::zeroes(4096)));
        disk.write_at(&[9; 512], 512).unwrap();
        disk.flush().unwrap();
        let counts = disk.0.counts();
        assert_eq!((counts.writes, counts.flushes), (1, 0));
        let mut buf = [0; 512];
        disk.read_at(&mut buf, 512).unwrap();
        assert_eq!(buf, [9; 512]);
    }
}
