//! Flat tables of 32-bit entries (block maps, allocation tables, grain tables), written and read
//! through one 64 KiB window so that the memory does not grow with the disk.

use std::sync::{Mutex, PoisonError};

use kvmbake_disk::{Error as DiskError, is_zero};

use crate::error::Error;
use crate::mapped::ImageFile;
use crate::output::Output;

const WINDOW: u64 = 16 << 10;
const ENTRY: u64 = 4;

/// The byte order of a table's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    fn encode(self, value: u32) -> [u8; 4] {
        match self {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        }
    }

    fn decode(self, bytes: [u8; 4]) -> u32 {
        match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }
    }
}

/// Writes a table whose entries come in ascending order, at one or more places of the file.
pub(crate) struct TableWriter {
    places: Vec<u64>,
    entries: u64,
    fill: u32,
    order: Order,
    first: u64,
    window: Vec<u8>,
}

impl TableWriter {
    /// Returns a writer for `entries` entries at each of `places`; entries never set hold `fill`.
    /// With a fill of 0 windows that are never touched stay holes.
    pub(crate) fn new(places: &[u64], entries: u64, fill: u32, order: Order) -> TableWriter {
        let window = order.encode(fill).repeat(WINDOW.min(entries) as usize);
        TableWriter { places: places.to_vec(), entries, fill, order, first: 0, window }
    }

    /// Sets an entry; `index` is not below that of the last call.
    pub(crate) fn set(&mut self, index: u64, value: u32, output: &Output) -> Result<(), Error> {
        debug_assert!(index >= self.first && index < self.entries);
        while index - self.first >= WINDOW {
            self.flush(output)?;
            if self.fill == 0 {
                self.first = index - index % WINDOW;
            }
        }
        let at = ((index - self.first) * ENTRY) as usize;
        self.window[at..at + 4].copy_from_slice(&self.order.encode(value));
        Ok(())
    }

    /// Writes what is left.
    pub(crate) fn finish(&mut self, output: &Output) -> Result<(), Error> {
        while self.first < self.entries {
            self.flush(output)?;
            if self.fill == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Writes the window and goes on to the next.
    fn flush(&mut self, output: &Output) -> Result<(), Error> {
        let len = ((self.entries - self.first).min(WINDOW) * ENTRY) as usize;
        if self.fill != 0 || !is_zero(&self.window[..len]) {
            for place in &self.places {
                output.write_at(&self.window[..len], place + self.first * ENTRY)?;
            }
            self.window[..len].copy_from_slice(&self.order.encode(self.fill).repeat(len / 4));
        }
        self.first += WINDOW;
        Ok(())
    }
}

/// Reads a table of a file that the caller has checked to lie inside the file.
pub(crate) struct TableReader {
    image: ImageFile,
    place: u64,
    entries: u64,
    order: Order,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    first: u64,
    bytes: Vec<u8>,
}

impl TableReader {
    pub(crate) fn new(image: ImageFile, place: u64, entries: u64, order: Order) -> TableReader {
        TableReader { image, place, entries, order, window: Mutex::default() }
    }

    /// Returns an entry; 0 beyond the table.
    pub(crate) fn get(&self, index: u64) -> Result<u32, DiskError> {
        let found = self.find(index, |_| true)?;
        Ok(found.map_or(0, |(_, value)| value))
    }

    /// Returns the first entry from `index` on whose value `wanted` accepts.
    pub(crate) fn find(
        &self,
        index: u64,
        mut wanted: impl FnMut(u32) -> bool,
    ) -> Result<Option<(u64, u32)>, DiskError> {
        // A panic elsewhere cannot leave the window half-filled: `load` empties it first.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = index;
        while index < self.entries {
            self.load(&mut window, index)?;
            let skip = ((index - window.first) * ENTRY) as usize;
            for entry in window.bytes[skip..].as_chunks::<4>().0 {
                let value = self.order.decode(*entry);
                if wanted(value) {
                    return Ok(Some((index, value)));
                }
                index += 1;
            }
        }
        Ok(None)
    }

    fn load(&self, window: &mut Window, index: u64) -> Result<(), DiskError> {
        let first = index - index % WINDOW;
        if window.first == first && !window.bytes.is_empty() {
            return Ok(());
        }
        let len = (self.entries - first).min(WINDOW) * ENTRY;
        let mut bytes = std::mem::take(&mut window.bytes);
        bytes.resize(len as usize, 0);
        let at = self.place + first * ENTRY;
        self.image.read(&mut bytes, at)?;
        *window = Window { first, bytes };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(places: &[u64], fill: u32, sets: &[(u64, u32)], entries: u64) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        let output = Output::create(&path).unwrap();
        let mut table = TableWriter::new(places, entries, fill, Order::Big);
        for (index, value) in sets {
            table.set(*index, *value, &output).unwrap();
        }
        table.finish(&output).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn skipped_windows_hold_the_fill() {
        let entries = 3 * WINDOW + 5;
        let sets = [(1, 7), (3 * WINDOW + 4, 9)];
        for fill in [0, u32::MAX] {
            let bytes = written(&[16, 1 << 20], fill, &sets, entries);
            for place in [16, 1 << 20] {
                let table = bytes[place..].as_chunks::<4>().0;
                for index in 0..entries {
                    let expected = sets.iter().find(|set| set.0 == index).map_or(fill, |set| set.1);
                    assert_eq!(u32::from_be_bytes(table[index as usize]), expected);
                }
            }
        }
    }

    #[test]
    fn reader_finds_across_windows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        let entries = 2 * WINDOW + 3;
        let mut bytes = vec![0xee; 12];
        for index in 0..entries {
            bytes.extend(u32::to_le_bytes(if index == 2 * WINDOW + 1 { 5 } else { 0 }));
        }
        std::fs::write(&path, bytes).unwrap();
        let image = ImageFile::open(&path).unwrap();
        let table = TableReader::new(image, 12, entries, Order::Little);
        assert_eq!(table.find(3, |value| value != 0).unwrap(), Some((2 * WINDOW + 1, 5)));
        assert_eq!(table.find(2 * WINDOW + 2, |value| value != 0).unwrap(), None);
        assert_eq!(table.get(2 * WINDOW + 1).unwrap(), 5);
        assert_eq!(table.get(0).unwrap(), 0);
    }
}
