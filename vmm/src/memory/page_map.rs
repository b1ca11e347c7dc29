//! Which pages a memory layer changes: runs of pages, sorted, in a compact form for disk.
//!
//! A page is 4 KiB; page `n` is at RAM offset `n * 4096`. A page in no run is as in the layer below, or zero when there is none.
//!
//! On disk: `KBPM`, the format as `u16`, a `u16` of zero, the pages of the RAM and the number of runs as `u64`, all
//! little-endian; then for each run two LEB128 numbers: the pages between the last run's end and its start, and twice its length,
//! plus one when its pages are zero. Nothing follows.

use super::MemoryError;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

const MAGIC: [u8; 4] = *b"KBPM";
const FORMAT: u16 = 1;
const HEADER: usize = 24;
/// 16 TiB of RAM; more is no machine of ours.
const MAXIMUM_PAGES: u64 = 1 << 32;

/// What a layer says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Its content is in the layer's file.
    Data,
    /// It is zero, whatever the layers below hold.
    Zero,
}

/// Pages of one kind, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first page.
    pub first: u64,
    /// How many; at least one.
    pub pages: u64,
    /// What they are.
    pub kind: PageKind,
}

impl PageRun {
    /// Returns the page behind the last one.
    pub fn end(&self) -> u64 {
        self.first + self.pages
    }
}

/// The pages that a layer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMap {
    ram_pages: u64,
    runs: Vec<PageRun>,
}

impl PageMap {
    /// Returns a map of a RAM of `ram_pages` pages in which nothing changes.
    pub fn new(ram_pages: u64) -> Self {
        Self { ram_pages, runs: Vec::new() }
    }

    /// Returns the pages of the whole RAM.
    pub fn ram_pages(&self) -> u64 {
        self.ram_pages
    }

    /// Returns the runs, sorted, none touching another of its kind.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Returns the bytes of data in the layer's file.
    pub fn data_bytes(&self) -> u64 {
        let data = self.runs.iter().filter(|run| run.kind == PageKind::Data);
        data.map(|run| run.pages * PAGE).sum()
    }

    /// Adds a run behind all others.
    ///
    /// # Errors
    /// [`MemoryError::BadMap`] when it is empty, not behind the others, or beyond the RAM.
    pub fn push(&mut self, run: PageRun) -> Result<(), MemoryError> {
        let refuse = |why: &str| {
            let (first, pages) = (run.first, run.pages);
            Err(MemoryError::BadMap(format!("the run of {pages} pages at page {first} {why}")))
        };
        if run.pages == 0 {
            return refuse("is empty");
        }
        if run.first.checked_add(run.pages).is_none_or(|end| end > self.ram_pages) {
            return refuse("ends beyond the RAM");
        }
        match self.runs.last_mut() {
            Some(last) if run.first < last.end() => return refuse("overlaps the one before it"),
            Some(last) if run.first == last.end() && run.kind == last.kind => {
                last.pages += run.pages;
            }
            _ => self.runs.push(run),
        }
        Ok(())
    }

    /// Returns the map as bytes for disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.runs.len() * 3);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.ram_pages.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        let mut end = 0;
        for run in &self.runs {
            put_number(&mut bytes, run.first - end);
            put_number(&mut bytes, run.pages << 1 | u64::from(run.kind == PageKind::Zero));
            end = run.end();
        }
        bytes
    }

    /// Returns the map that `bytes` are, which may be damaged.
    ///
    /// # Errors
    /// [`MemoryError::BadMap`] with what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MemoryError> {
        let bad = |what: String| MemoryError::BadMap(what);
        let (header, mut rest) = bytes
            .split_at_checked(HEADER)
            .ok_or_else(|| bad(format!("it has only {} bytes", bytes.len())))?;
        if header[..4] != MAGIC {
            return Err(bad("it does not begin with KBPM".to_owned()));
        }
        let format = u16::from_le_bytes([header[4], header[5]]);
        if format != FORMAT || header[6..8] != [0; 2] {
            return Err(bad(format!("its format is {format}, and {FORMAT} is known")));
        }
        let number = |at: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(value)
        };
        let (ram_pages, count) = (number(8), number(16));
        if ram_pages > MAXIMUM_PAGES {
            return Err(bad(format!("it is of a RAM of {ram_pages} pages")));
        }
        // A run takes two bytes at least: no more memory is taken than the input's own size warrants.
        if count > (rest.len() / 2) as u64 {
            return Err(bad(format!("{} bytes cannot hold {count} runs", rest.len())));
        }
        let mut map = Self { ram_pages, runs: Vec::with_capacity(count as usize) };
        let mut end = 0u64;
        for _ in 0..count {
            let cut = || bad("it ends within a run".to_owned());
            let gap = take_number(&mut rest).ok_or_else(cut)?;
            let length = take_number(&mut rest).ok_or_else(cut)?;
            let first = end.checked_add(gap).ok_or_else(|| bad("a run wraps".to_owned()))?;
            let kind = if length & 1 == 0 { PageKind::Data } else { PageKind::Zero };
            let run = PageRun { first, pages: length >> 1, kind };
            map.push(run)?;
            end = run.end();
        }
        if !rest.is_empty() {
            return Err(bad(format!("{} bytes follow the last run", rest.len())));
        }
        Ok(map)
    }
}

fn put_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, pages: u64, kind: PageKind) -> PageRun {
        PageRun { first, pages, kind }
    }

    fn sample() -> PageMap {
        let mut map = PageMap::new(1 << 20);
        for part in [
            run(0, 1, PageKind::Data),
            run(1, 300, PageKind::Zero),
            run(301, 5, PageKind::Data),
            run(70_000, 2, PageKind::Data),
            run((1 << 20) - 1, 1, PageKind::Zero),
        ] {
            map.push(part).unwrap();
        }
        map
    }

    #[test]
    fn map_comes_back_from_its_bytes_and_is_small() {
        let map = sample();
        let bytes = map.to_bytes();
        assert_eq!(PageMap::from_bytes(&bytes).unwrap(), map);
        assert!(bytes.len() < HEADER + 5 * 5, "{}", bytes.len());
        assert_eq!(map.data_bytes(), 8 * PAGE);
    }

    #[test]
    fn touching_runs_of_a_kind_become_one() {
        let mut map = PageMap::new(10);
        map.push(run(2, 3, PageKind::Data)).unwrap();
        map.push(run(5, 1, PageKind::Data)).unwrap();
        map.push(run(6, 1, PageKind::Zero)).unwrap();
        assert_eq!(map.runs(), [run(2, 4, PageKind::Data), run(6, 1, PageKind::Zero)]);
    }

    #[test]
    fn runs_that_are_empty_unsorted_overlapping_or_outside_are_refused() {
        let mut map = PageMap::new(10);
        map.push(run(2, 3, PageKind::Data)).unwrap();
        for bad in [(7, 0), (4, 1), (0, 1), (5, 6), (10, 1), (u64::MAX, 2), (6, u64::MAX)] {
            let bad = run(bad.0, bad.1, PageKind::Data);
            assert!(matches!(map.push(bad), Err(MemoryError::BadMap(_))), "{bad:?}");
        }
    }

    #[test]
    fn every_damaged_prefix_and_flipped_bit_is_refused_or_still_a_valid_map() {
        let bytes = sample().to_bytes();
        for len in 0..bytes.len() {
            assert!(PageMap::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
        }
        assert!(PageMap::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(map) = PageMap::from_bytes(&flipped) {
                let mut end = 0;
                for run in map.runs() {
                    assert!(run.pages > 0 && run.first >= end && run.end() <= map.ram_pages());
                    end = run.end();
                }
            }
        }
    }

    #[test]
    fn huge_counts_and_numbers_take_no_memory() {
        let mut bytes = sample().to_bytes();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(PageMap::from_bytes(&bytes).unwrap_err().to_string().contains("cannot hold"));
        let mut wide = PageMap::new(4).to_bytes();
        wide[16] = 1;
        wide.extend_from_slice(&[0xff; 10]);
        assert!(PageMap::from_bytes(&wide).is_err());
    }
}
