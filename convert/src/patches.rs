//! Changes to a file that are kept in memory: what the log of an image holds and its file does not.

use std::collections::BTreeMap;

/// The unit in which changes come.
const SECTOR: u64 = 4096;

/// Changed sectors over a file.
#[derive(Debug)]
pub(crate) struct Patches {
    /// Bytes of the file, and of the file as changed: what is between reads as zeroes.
    stored: u64,
    len: u64,
    /// By where each begins; none overlaps another.
    changes: BTreeMap<u64, Change>,
}

#[derive(Debug)]
enum Change {
    /// Zeroes up to this byte.
    Zero(u64),
    Sector(Box<[u8; SECTOR as usize]>),
}

impl Patches {
    /// Returns no changes to a file of `len` bytes.
    pub(crate) fn new(len: u64) -> Patches {
        Patches { stored: len, len, changes: BTreeMap::new() }
    }

    /// Returns the bytes of the file as changed.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Makes the file at least this long.
    pub(crate) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Changes a sector; `at` is a multiple of 4 KiB.
    pub(crate) fn set(&mut self, at: u64, bytes: Box<[u8; SECTOR as usize]>) {
        self.clear(at, at + SECTOR);
        self.changes.insert(at, Change::Sector(bytes));
    }

    /// Changes sectors to zeroes; `at` and `len` are multiples of 4 KiB.
    pub(crate) fn zero(&mut self, at: u64, len: u64) {
        if len > 0 {
            self.clear(at, at + len);
            self.changes.insert(at, Change::Zero(at + len));
        }
    }

    /// Forgets the changes in a range.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((_, Change::Zero(stop))) = self.changes.range_mut(..start).next_back()
            && *stop > start
        {
            let rest = std::mem::replace(stop, start);
            if rest > end {
                self.changes.insert(end, Change::Zero(rest));
            }
        }
        while let Some((&at, change)) = self.changes.range(start..end).next() {
            let rest = match change {
                Change::Zero(stop) if *stop > end => Some(*stop),
                _ => None,
            };
            self.changes.remove(&at);
            if let Some(rest) = rest {
                self.changes.insert(end, Change::Zero(rest));
            }
        }
    }

    /// Returns how many of the bytes from `at` on the file has.
    pub(crate) fn stored(&self, at: u64, len: usize) -> usize {
        self.stored.saturating_sub(at).min(len as u64) as usize
    }

    /// Changes `buf`, which was read from `at`.
    pub(crate) fn apply(&self, buf: &mut [u8], at: u64) {
        let stop = at + buf.len() as u64;
        let before = self.changes.range(..at).next_back();
        for (start, change) in before.into_iter().chain(self.changes.range(at..stop)) {
            let end = match change {
                Change::Zero(end) => *end,
                Change::Sector(_) => start + SECTOR,
            };
            let (from, to) = ((*start).max(at), end.min(stop));
            if from >= to {
                continue;
            }
            let part = &mut buf[(from - at) as usize..(to - at) as usize];
            match change {
                Change::Zero(_) => part.fill(0),
                Change::Sector(bytes) => {
                    let within = (from - start) as usize;
                    part.copy_from_slice(&bytes[within..within + part.len()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_changes_hide_earlier_ones() {
        let mut plain = vec![1u8; 16 * SECTOR as usize];
        let mut patches = Patches::new(plain.len() as u64);
        // Zeroes over sectors, sectors over zeroes, zeroes cut at either end and in the middle.
        let steps: [(u64, u64, Option<u8>); 9] = [
            (2, 6, None),
            (4, 1, Some(7)),
            (5, 1, Some(8)),
            (5, 3, None),
            (1, 2, None),
            (10, 4, None),
            (11, 1, Some(9)),
            (13, 2, None),
            (0, 1, Some(5)),
        ];
        for (first, count, value) in steps {
            let range = (first * SECTOR) as usize..((first + count) * SECTOR) as usize;
            plain[range].fill(value.unwrap_or(0));
            match value {
                Some(value) => patches.set(first * SECTOR, Box::new([value; SECTOR as usize])),
                None => patches.zero(first * SECTOR, count * SECTOR),
            }
            for (at, len) in [(0, plain.len()), (5000, 30_000), (4096 * 5 - 1, 2), (20_000, 1)] {
                let mut found = vec![1; len];
                patches.apply(&mut found, at as u64);
                assert!(found == plain[at..at + len], "{first} {count} {value:?}: {at} {len}");
            }
        }
    }
}
