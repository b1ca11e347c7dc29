//! A quick mark of a disk's content, the same whatever format or hole pattern stores it: it tells
//! disks apart that differ by accident, and images from the disk that they were made of, at a
//! fifth of what [`DiskDigest`](crate::DiskDigest) costs. Nobody needs it to withstand a forger.
//!
//! It is the chain of XXH3 (128 bits, the usual seed) over the value so far, the offset of each
//! 64 KiB unit with data and XXH3 over that unit, in ascending order; then over the value so far
//! and the disk's size. Values and numbers are little-endian, the first value is 0.

use twox_hash::XxHash3_128;

use crate::chunk::{Chunk, UNIT};

/// What is known of a disk's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 16]);

/// The marks of some chunks' units, taken beside others'.
#[derive(Debug, Default)]
pub(crate) struct Marks(Vec<(u64, u128)>);

impl Marks {
    /// Forgets what was taken.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the marks of the next chunk's units.
    pub(crate) fn take(&mut self, chunk: &Chunk) {
        self.0.extend(chunk.units().map(|unit| {
            let start = unit * UNIT;
            let bytes = chunk.bytes(start..(start + UNIT).min(chunk.len()));
            (chunk.offset() + start as u64, XxHash3_128::oneshot(bytes))
        }));
    }
}

impl Fingerprint {
    /// Adds the next units of the disk.
    pub(crate) fn add(&mut self, marks: &Marks) {
        for (offset, mark) in &marks.0 {
            self.mix(&[offset.to_le_bytes().as_slice(), &mark.to_le_bytes()].concat());
        }
    }

    /// Adds the disk's size in bytes: nothing follows.
    #[must_use]
    pub(crate) fn finish(mut self, size: u64) -> Fingerprint {
        self.mix(&size.to_le_bytes());
        self
    }

    /// Returns its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn mix(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_128::oneshot(&[self.0.as_slice(), bytes].concat()).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kvmbake_disk::MemoryBlock;

    use super::*;
    use crate::chunk::Scanner;
    use crate::output::Cancel;

    fn of(disk: Vec<u8>) -> String {
        let disk = MemoryBlock::read_only(disk);
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let mut scanner = Scanner::new(&disk, u64::MAX);
        let (mut chunk, mut marks) = (Chunk::new(), Marks::default());
        let mut fingerprint = Fingerprint::default();
        while scanner.read(&mut chunk, cancel).unwrap() {
            marks.clear();
            marks.take(&chunk);
            fingerprint.add(&marks);
        }
        let fingerprint = fingerprint.finish(scanner.size());
        fingerprint.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn it_is_what_the_definition_says() {
        let mut disk = vec![0; (3 << 20) + 700];
        disk[70_000] = 1;
        let last = disk.len() - 1;
        disk[last] = 2;
        // By the xxhash package of PyPI.
        assert_eq!(of(disk), "9518fd7da6d558cb328af133b8ee3180");
    }

    #[test]
    fn size_place_and_content_count() {
        let mut disks = vec![vec![0; 1 << 20], vec![0; 2 << 20]];
        for (at, byte) in [(0, 1), (0, 2), (1, 1), (1 << 16, 1)] {
            let mut disk = vec![0; 1 << 20];
            disk[at] = byte;
            disks.push(disk);
        }
        let count = disks.len();
        let found: std::collections::BTreeSet<_> = disks.into_iter().map(of).collect();
        assert_eq!(found.len(), count);
    }
}
