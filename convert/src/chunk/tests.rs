//! Tests of the scan.

use std::sync::atomic::AtomicBool;

use kvmbake_disk::{Error as DiskError, MemoryBlock};

use super::*;

/// A disk whose extents are given rather than found.
struct Scripted {
    bytes: MemoryBlock,
    extents: Vec<Extent>,
}

impl Block for Scripted {
    fn len(&self) -> u64 {
        self.bytes.len()
    }
    fn cluster_size(&self) -> u64 {
        512
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.bytes.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.bytes.write_at(buf, offset)
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.bytes.write_zeroes(offset, len)
    }
    fn next_data(&self, from: u64) -> Result<Option<Extent>, DiskError> {
        Ok(self.extents.iter().find(|extent| extent.end() > from).map(|extent| {
            let offset = extent.offset.max(from);
            Extent { offset, len: extent.end() - offset }
        }))
    }
    fn is_read_only(&self) -> bool {
        true
    }
}

/// Rebuilds the disk from its chunks, checking their order on the way.
fn rebuilt(disk: &dyn Block) -> (Vec<u8>, usize) {
    let never = AtomicBool::new(false);
    let cancel = Cancel { wish: &never, failed: &never };
    let mut scanner = Scanner::new(disk, disk.len());
    let mut chunk = Chunk::new();
    let mut bytes = vec![0; disk.len() as usize];
    let mut chunks = 0;
    let mut next = 0;
    while scanner.read(&mut chunk, cancel).unwrap() {
        assert!(chunk.offset() >= next && chunk.offset().is_multiple_of(CHUNK as u64));
        next = chunk.offset() + CHUNK as u64;
        chunks += 1;
        for run in chunk.runs() {
            let end = run.end.min(chunk.len());
            assert!(chunk.bytes(end..run.end).iter().all(|byte| *byte == 0));
            let at = chunk.offset() as usize + run.start;
            bytes[at..at + end - run.start].copy_from_slice(chunk.bytes(run.start..end));
        }
    }
    (bytes, chunks)
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8 | 1
        })
        .collect()
}

#[test]
fn chunks_hold_exactly_what_the_extents_hold() {
    let size = 5 * CHUNK + 1234;
    let mut bytes = vec![0; size];
    let extents: Vec<Extent> = [
        (700, 1),
        (UNIT as u64 - 1, 2),
        (3 * UNIT as u64, 4096),
        (CHUNK as u64 - 100, 200),
        (2 * CHUNK as u64 + 5, 2 * CHUNK as u64),
        (size as u64 - 3, 3),
    ]
    .into_iter()
    .map(|(offset, len)| Extent { offset, len })
    .collect();
    for extent in &extents {
        let range = extent.offset as usize..extent.end() as usize;
        bytes[range.clone()].copy_from_slice(&noise(range.len(), extent.offset));
    }
    let disk = Scripted { bytes: MemoryBlock::read_only(bytes.clone()), extents };
    let (found, chunks) = rebuilt(&disk);
    assert!(found == bytes);
    assert_eq!(chunks, 6);
}

#[test]
fn zeroes_inside_extents_are_not_handed_out() {
    let mut bytes = vec![0; 4 * CHUNK];
    bytes[2 * CHUNK + 9000] = 1;
    let extents = vec![Extent { offset: 0, len: 4 * CHUNK as u64 }];
    let disk = Scripted { bytes: MemoryBlock::read_only(bytes.clone()), extents };
    let (found, chunks) = rebuilt(&disk);
    assert!(found == bytes);
    assert_eq!(chunks, 1);
}

#[test]
fn a_source_that_goes_back_is_an_error_and_no_endless_loop() {
    struct Circle(MemoryBlock);
    impl Block for Circle {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn cluster_size(&self) -> u64 {
            512
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
            self.0.write_at(buf, offset)
        }
        fn flush(&self) -> Result<(), DiskError> {
            Ok(())
        }
        fn discard(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn next_data(&self, _from: u64) -> Result<Option<Extent>, DiskError> {
            Ok(Some(Extent { offset: 0, len: 512 }))
        }
        fn is_read_only(&self) -> bool {
            true
        }
    }
    let disk = Circle(MemoryBlock::zeroes(2 * CHUNK));
    assert!(crate::digest(&disk).is_err());
}
