//! A decorator that counts what passes through, for diagnosis: a guest that never read its disk
//! failed in another place than one that read a gigabyte.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::{Block, Extent};
use crate::error::Error;

/// Counts the successful requests to the disk behind it.
#[derive(Debug)]
pub struct Counted<B> {
    inner: B,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    freed_bytes: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes discarded or written as zeroes.
    pub freed_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Requests of any kind that failed.
    pub errors: u64,
}

impl<B: Block> Counted<B> {
    /// Starts counting at zero.
    pub fn new(inner: B) -> Counted<B> {
        Counted {
            inner,
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// Returns the counters; taken one by one, so not a snapshot while requests run.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            freed_bytes: get(&self.freed_bytes),
            flushes: get(&self.flushes),
            errors: get(&self.errors),
        }
    }

    /// Returns the disk behind.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn count<T>(
        &self,
        result: Result<T, Error>,
        counters: &[(&AtomicU64, u64)],
    ) -> Result<T, Error> {
        match &result {
            Ok(_) => {
                for (counter, amount) in counters {
                    counter.fetch_add(*amount, Ordering::Relaxed);
                }
            }
            Err(_) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        result
    }
}

impl<B: Block> Block for Counted<B> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn cluster_size(&self) -> u64 {
        self.inner.cluster_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let bytes = buf.len() as u64;
        self.count(self.inner.read_at(buf, offset), &[(&self.reads, 1), (&self.read_bytes, bytes)])
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.count(
            self.inner.write_at(buf, offset),
            &[(&self.writes, 1), (&self.written_bytes, buf.len() as u64)],
        )
    }

    fn flush(&self) -> Result<(), Error> {
        self.count(self.inner.flush(), &[(&self.flushes, 1)])
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.count(self.inner.discard(offset, len), &[(&self.freed_bytes, len)])
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.count(self.inner.write_zeroes(offset, len), &[(&self.freed_bytes, len)])
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        self.inner.next_data(from)
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBlock;

    #[test]
    fn counts_what_succeeded_and_how_often_it_failed() {
        let disk = Counted::new(MemoryBlock::zeroes(4096));
        disk.write_at(&[1; 100], 0).unwrap();
        disk.read_at(&mut [0; 512], 0).unwrap();
        disk.discard(0, 1024).unwrap();
        disk.flush().unwrap();
        disk.read_at(&mut [0; 512], 4096).unwrap_err();
        assert_eq!(
            disk.counts(),
            Counts {
                reads: 1,
                read_bytes: 512,
                writes: 1,
                written_bytes: 100,
                freed_bytes: 1024,
                flushes: 1,
                errors: 1,
            }
        );
    }
}
