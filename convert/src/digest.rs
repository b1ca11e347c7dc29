//! The digest of a virtual disk's content, the same whatever format or hole pattern stores it.
//!
//! Definition of `blake3-sparse`: cut the disk into 64 KiB blocks, the last as short as the disk
//! ends. The digest is BLAKE3 over
//! 1. the 17 ASCII bytes `blake3-sparse-64k`,
//! 2. for every block that is not all zeroes, in ascending order: its byte offset as a
//!    little-endian `u64`, then the 32 bytes of BLAKE3 over the block,
//! 3. the disk's size in bytes as a little-endian `u64`.
//!
//! Blocks can be hashed independently and zeroes cost nothing, so a sparse terabyte takes as
//! long as its data.

use std::fmt;
use std::sync::atomic::AtomicBool;

use kvmbake_disk::Block;

use crate::chunk::{Chunk, UNIT};
use crate::error::Error;
use crate::output::Cancel;
use crate::pipeline::{self, SINGLE, Worker};

const DOMAIN: &[u8; 17] = b"blake3-sparse-64k";

/// The digest of a disk's content; equal exactly where size and bytes are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskDigest([u8; 32]);

impl DiskDigest {
    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for DiskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3-sparse:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for DiskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digests of some chunks' blocks, taken beside others'.
#[derive(Debug, Default)]
pub(crate) struct BlockDigests(Vec<(u64, blake3::Hash)>);

impl BlockDigests {
    /// Forgets what was taken.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the digests of the next chunk's blocks.
    pub(crate) fn take(&mut self, chunk: &Chunk) {
        self.0.extend(chunk.units().map(|unit| {
            let start = unit * UNIT;
            let block = chunk.bytes(start..(start + UNIT).min(chunk.len()));
            (chunk.offset() + start as u64, blake3::hash(block))
        }));
    }
}

/// Takes the digests of a disk's blocks in order.
pub(crate) struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    pub(crate) fn new() -> ContentHasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        ContentHasher(hasher)
    }

    pub(crate) fn update(&mut self, blocks: &BlockDigests) {
        for (offset, digest) in &blocks.0 {
            self.0.update(&offset.to_le_bytes());
            self.0.update(digest.as_bytes());
        }
    }

    pub(crate) fn finish(mut self, size: u64) -> DiskDigest {
        self.0.update(&size.to_le_bytes());
        DiskDigest(*self.0.finalize().as_bytes())
    }
}

/// Returns the digest of the disk's content; see the module for its definition.
///
/// # Errors
/// What reading the disk gives.
pub fn digest(disk: &dyn Block) -> Result<DiskDigest, Error> {
    let never = AtomicBool::new(false);
    let cancel = Cancel { wish: &never, failed: &never };
    let mut hasher = ContentHasher::new();
    let mut workers: Vec<_> = (0..pipeline::threads()).map(|_| BlockDigests::default()).collect();
    pipeline::run(disk, disk.len(), SINGLE, &mut workers, &mut hasher, cancel)?;
    Ok(hasher.finish(disk.len()))
}

impl Worker for BlockDigests {
    type Shared = ContentHasher;

    fn prepare(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
        self.clear();
        chunks.iter().for_each(|chunk| self.take(chunk));
        Ok(())
    }

    fn place(&mut self, _chunks: &[Chunk], hasher: &mut ContentHasher) -> Result<(), Error> {
        hasher.update(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmbake_disk::MemoryBlock;

    #[test]
    fn digest_is_what_the_definition_says() {
        let mut disk = vec![0; (3 << 20) + 700];
        disk[70_000] = 1;
        let last = disk.len() - 1;
        disk[last] = 2;
        let mut bytes = DOMAIN.to_vec();
        for (number, block) in disk.chunks(64 << 10).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                bytes.extend(((number * (64 << 10)) as u64).to_le_bytes());
                bytes.extend(blake3::hash(block).as_bytes());
            }
        }
        bytes.extend((disk.len() as u64).to_le_bytes());
        let expected = format!("blake3-sparse:{}", blake3::hash(&bytes).to_hex());
        assert_eq!(digest(&MemoryBlock::read_only(disk)).unwrap().to_string(), expected);
    }

    #[test]
    fn size_and_place_count() {
        let of = |disk: Vec<u8>| digest(&MemoryBlock::read_only(disk)).unwrap();
        let mut one = vec![0; 1 << 20];
        one[0] = 1;
        let mut other = vec![0; 1 << 20];
        other[1 << 16] = 1;
        assert_ne!(of(one), of(other));
        assert_ne!(of(vec![0; 512]), of(vec![0; 1024]));
    }
}
