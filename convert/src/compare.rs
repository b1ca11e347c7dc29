//! Whether two disks hold the same, whatever their formats.

use kvmbake_disk::Block;

use crate::chunk::{CHUNK, Chunk, Scanner, UNIT};
use crate::error::Error;
use crate::output::Cancel;
use crate::progress::{Progress, Silent, Stage};

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes; where one disk is longer, zeroes.
    Equal,
    /// The first byte that differs.
    DifferAt(u64),
}

/// Compares two disks. What one has beyond the other's end counts as equal if it is zero.
///
/// # Errors
/// What reading them gives; [`Error::Cancelled`] soon after `cancel` was set.
pub fn compare(
    one: &dyn Block,
    other: &dyn Block,
    progress: &dyn Progress,
    cancel: &std::sync::atomic::AtomicBool,
) -> Result<Comparison, Error> {
    let never = std::sync::atomic::AtomicBool::new(false);
    let cancel = Cancel { wish: cancel, failed: &never };
    progress.started(Stage::Verify, one.len().max(other.len()));
    let found = walk(one, other, progress, cancel)?;
    if found.is_none() {
        progress.finished(Stage::Verify);
    }
    Ok(found.map_or(Comparison::Equal, Comparison::DifferAt))
}

/// Returns the first byte in which the disks differ.
pub(crate) fn first_difference(
    one: &dyn Block,
    other: &dyn Block,
    cancel: Cancel<'_>,
) -> Result<Option<u64>, Error> {
    walk(one, other, &Silent, cancel)
}

fn walk(
    one: &dyn Block,
    other: &dyn Block,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<Option<u64>, Error> {
    let mut sides = [Side::new(one, cancel)?, Side::new(other, cancel)?];
    let mut done = 0;
    loop {
        cancel.check()?;
        let next = sides.iter().filter_map(Side::offset).min();
        let Some(offset) = next else { return Ok(None) };
        progress.advanced(offset - done);
        done = offset;
        let [one, other] = sides.each_mut().map(|side| side.bytes_at(offset));
        if one != other {
            let at = one.iter().zip(other.iter()).position(|(one, other)| one != other);
            return Ok(Some(offset + at.unwrap_or(0) as u64));
        }
        for side in &mut sides {
            if side.offset() == Some(offset) {
                side.advance(cancel)?;
            }
        }
    }
}

/// One of the two, at its next chunk with data.
struct Side<'a> {
    scanner: Scanner<'a>,
    chunk: Chunk,
    has_chunk: bool,
    bytes: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(disk: &'a dyn Block, cancel: Cancel<'_>) -> Result<Side<'a>, Error> {
        let mut side = Side {
            scanner: Scanner::new(disk, disk.len()),
            chunk: Chunk::new(),
            has_chunk: false,
            bytes: vec![0; CHUNK],
        };
        side.advance(cancel)?;
        Ok(side)
    }

    fn advance(&mut self, cancel: Cancel<'_>) -> Result<(), Error> {
        self.has_chunk = self.scanner.read(&mut self.chunk, cancel)?;
        Ok(())
    }

    fn offset(&self) -> Option<u64> {
        self.has_chunk.then(|| self.chunk.offset())
    }

    /// Returns the mebibyte at `offset`, which is not behind the next chunk.
    fn bytes_at(&mut self, offset: u64) -> &[u8] {
        if self.offset() == Some(offset) {
            const { assert!(CHUNK.is_multiple_of(UNIT)) };
            self.chunk.copy(0..CHUNK, &mut self.bytes);
        } else {
            self.bytes.fill(0);
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kvmbake_disk::MemoryBlock;

    use super::*;

    fn compared(one: &[u8], other: &[u8]) -> Comparison {
        let disks = [one, other].map(|bytes| MemoryBlock::read_only(bytes.to_vec()));
        compare(&disks[0], &disks[1], &Silent, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        let mut disk = vec![0; (3 << 20) + 700];
        disk[100] = 1;
        disk[(2 << 20) + 65_536] = 2;
        assert_eq!(compared(&disk, &disk), Comparison::Equal);
        for at in [0, 99, 100, 101, 1 << 20, (2 << 20) + 65_536, (3 << 20) + 699] {
            let mut other = disk.clone();
            other[at] ^= 0x80;
            assert_eq!(compared(&disk, &other), Comparison::DifferAt(at as u64), "{at}");
            assert_eq!(compared(&other, &disk), Comparison::DifferAt(at as u64), "{at}");
        }
    }

    #[test]
    fn zeroes_beyond_the_shorter_disk_are_equal_and_data_are_not() {
        let mut long = vec![0; 5 << 20];
        long[7] = 1;
        let short = long[..4096].to_vec();
        assert_eq!(compared(&long, &short), Comparison::Equal);
        long[4 << 20] = 1;
        assert_eq!(compared(&short, &long), Comparison::DifferAt(4 << 20));
    }
}
