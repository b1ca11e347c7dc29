//! The scan: a disk's data as an ordered stream of chunks that know which of their pages are zero.
//!
//! A chunk covers one aligned mebibyte of the disk. Within it, whole 64 KiB units are valid or
//! absent: a unit is read where an extent of the source touches it, and every 4 KiB page of it is
//! then tested for zeroes. Chunks of zeroes only are never handed out. The bytes of a unit
//! without a non-zero page are unspecified (a reused buffer's old content), so nobody looks
//! at them; beyond the disk's end a unit is filled up with zeroes.
//!
//! Looking where the data lie ([`Scanner::next_place`]) goes in the disk's order; what is found
//! can be loaded by several threads at once ([`Chunk::load`]).

use std::ops::Range;

use kvmbake_disk::{Block, ErrorKind, Extent, is_zero};

use crate::buffer::Buffer;
use crate::error::Error;
use crate::output::Cancel;

/// Bytes of a chunk; chunks are aligned to this on the disk.
pub(crate) const CHUNK: usize = 1 << 20;
/// Bytes that are valid or absent as a whole.
pub(crate) const UNIT: usize = 64 << 10;
/// Bytes of the smallest piece tested for zeroes.
pub(crate) const PAGE: usize = 4 << 10;
/// Units of a chunk.
pub(crate) const UNITS: usize = CHUNK / UNIT;
const PAGES: usize = CHUNK / PAGE;
const PAGES_PER_UNIT: usize = UNIT / PAGE;

/// One aligned mebibyte of the disk with at least one non-zero page, unless freshly taken.
pub(crate) struct Chunk {
    offset: u64,
    len: usize,
    data: Buffer,
    nonzero: [bool; PAGES],
}

/// Where a chunk with data lies, and in which of its units a source may hold some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// A multiple of [`CHUNK`].
    pub(crate) offset: u64,
    /// The units, the lowest bit first.
    units: u16,
}

const _: () = assert!(UNITS == u16::BITS as usize);

impl Chunk {
    /// Returns an empty chunk.
    pub(crate) fn new() -> Chunk {
        Chunk { offset: 0, len: 0, data: Buffer::new(CHUNK), nonzero: [false; PAGES] }
    }

    /// Returns a chunk of ones, to be marked.
    pub(crate) fn ones() -> Chunk {
        let mut chunk = Chunk::new();
        chunk.data.fill(1);
        chunk
    }

    /// Makes it the chunk at `offset` of a disk of `size` bytes, with data in the pages that
    /// `range` touches.
    pub(crate) fn mark(&mut self, offset: u64, size: u64, range: Range<usize>) {
        self.reset(offset, size);
        self.mark_more(range);
    }

    /// Marks further pages as data.
    pub(crate) fn mark_more(&mut self, range: Range<usize>) {
        let end = range.end.min(self.len).div_ceil(PAGE);
        for page in range.start / PAGE..end {
            self.nonzero[page] = true;
        }
    }

    /// Returns the place on the disk, a multiple of [`CHUNK`].
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns how many bytes of the chunk lie on the disk: [`CHUNK`] but at the disk's end.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns bytes of valid units.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.data[range]
    }

    /// Returns how many bytes a chunk covers at most.
    pub(crate) fn capacity(&self) -> usize {
        CHUNK
    }

    /// Returns whether a byte of the range is not zero.
    pub(crate) fn has_data(&self, range: Range<usize>) -> bool {
        let mut pages = range.start / PAGE..range.end.div_ceil(PAGE);
        if range.len() >= PAGE {
            return self.nonzero[pages].contains(&true);
        }
        pages.any(|page| self.nonzero[page]) && !is_zero(&self.data[range])
    }

    /// Returns the bytes of a range that lies in valid units only.
    pub(crate) fn valid(&self, range: Range<usize>) -> Option<&[u8]> {
        let mut units = range.start / UNIT..range.end.div_ceil(UNIT);
        units.all(|unit| self.has_data(unit * UNIT..(unit + 1) * UNIT)).then(|| &self.data[range])
    }

    /// Copies a range of whole units to `buf`.
    pub(crate) fn copy(&self, range: Range<usize>, buf: &mut [u8]) {
        let units = range.start / UNIT..range.end / UNIT;
        for (unit, buf) in units.zip(buf.chunks_exact_mut(UNIT)) {
            let place = unit * UNIT..(unit + 1) * UNIT;
            if self.has_data(place.clone()) {
                buf.copy_from_slice(&self.data[place]);
            } else {
                buf.fill(0);
            }
        }
    }

    /// Returns the units with a non-zero page, in order.
    pub(crate) fn units(&self) -> impl Iterator<Item = usize> + '_ {
        (0..UNITS).filter(|unit| {
            let first = unit * PAGES_PER_UNIT;
            self.nonzero[first..first + PAGES_PER_UNIT].contains(&true)
        })
    }

    /// Returns the maximal ranges of non-zero pages, in order. The last may reach up to a page
    /// beyond [`Chunk::len`]; there it is zero.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = page + self.nonzero[page..].iter().position(|&set| set)?;
            let end = self.nonzero[start..]
                .iter()
                .position(|&set| !set)
                .map_or(PAGES, |length| start + length);
            page = end;
            Some(start * PAGE..end * PAGE)
        })
    }

    /// Returns how many bytes of the disk lie in non-zero pages.
    pub(crate) fn data_len(&self) -> u64 {
        self.runs().map(|run| (run.end.min(self.len) - run.start) as u64).sum()
    }

    /// Returns whether there is nothing but zeroes.
    pub(crate) fn is_zero(&self) -> bool {
        !self.nonzero.contains(&true)
    }

    fn reset(&mut self, offset: u64, size: u64) {
        self.offset = offset;
        self.len = (size - offset).min(CHUNK as u64) as usize;
        self.nonzero = [false; PAGES];
    }

    /// Makes it the chunk at `place` of the source's first `size` bytes.
    pub(crate) fn load(
        &mut self,
        source: &dyn Block,
        place: Place,
        size: u64,
    ) -> Result<(), Error> {
        self.reset(place.offset, size);
        let mut unit = 0;
        while unit < UNITS {
            let end = unit + (place.units >> unit).trailing_ones() as usize;
            if end > unit {
                self.fill(source, unit..end)?;
            }
            unit = end + 1;
        }
        Ok(())
    }

    /// Reads whole units; `units` lies inside the chunk and begins on the disk.
    fn fill(&mut self, source: &dyn Block, units: Range<usize>) -> Result<(), Error> {
        let bytes = units.start * UNIT..units.end * UNIT;
        let end = bytes.end.min(self.len);
        source.read_at(&mut self.data[bytes.start..end], self.offset + bytes.start as u64)?;
        self.data[end..bytes.end].fill(0);
        let pages = bytes.start / PAGE..end.div_ceil(PAGE);
        for (page, bytes) in pages.zip(self.data[bytes].chunks_exact(PAGE)) {
            self.nonzero[page] = !is_zero(bytes);
        }
        Ok(())
    }
}

/// Reads where a disk may have ended already: behind its end there are zeroes.
pub(crate) fn read_padded(disk: &dyn Block, buf: &mut [u8], offset: u64) -> Result<(), Error> {
    let stored = disk.len().saturating_sub(offset).min(buf.len() as u64) as usize;
    let (stored, behind) = buf.split_at_mut(stored);
    behind.fill(0);
    if !stored.is_empty() {
        disk.read_at(stored, offset)?;
    }
    Ok(())
}

/// Walks a disk's data extents chunk by chunk.
pub(crate) struct Scanner<'a> {
    source: &'a dyn Block,
    size: u64,
    /// Where to look for the next extent, and the rest of one that went beyond the last chunk.
    next: u64,
    rest: Option<Extent>,
}

impl<'a> Scanner<'a> {
    /// Returns a scanner over the first `size` bytes of the disk.
    pub(crate) fn new(source: &'a dyn Block, size: u64) -> Scanner<'a> {
        Scanner { source, size: size.min(source.len()), next: 0, rest: None }
    }

    /// Returns where the next chunk is that may hold data; `None` when there is none before
    /// `end`, a multiple of [`CHUNK`].
    pub(crate) fn next_place(&mut self, end: u64) -> Result<Option<Place>, Error> {
        let Some(first) = self.extent()? else { return Ok(None) };
        let offset = first.offset - first.offset % CHUNK as u64;
        if offset >= end {
            self.rest = Some(first);
            return Ok(None);
        }
        let mut place = Place { offset, units: 0 };
        let behind = offset + CHUNK as u64;
        let mut extent = Some(first);
        while let Some(here) = extent.take_if(|extent| extent.offset < behind) {
            let start = (here.offset - offset) as usize / UNIT;
            let end = ((here.end().min(behind) - offset) as usize).div_ceil(UNIT);
            place.units |= u16::MAX >> (UNITS - end) & u16::MAX << start;
            self.next = here.end().max(offset + (end * UNIT) as u64);
            if here.end() > behind {
                self.rest = Some(Extent { offset: behind, len: here.end() - behind });
            }
            extent = self.extent()?;
        }
        self.rest = extent;
        Ok(Some(place))
    }

    /// Reads the next chunk that is not all zeroes; `false` at the end.
    pub(crate) fn read(&mut self, chunk: &mut Chunk, cancel: Cancel<'_>) -> Result<bool, Error> {
        while let Some(place) = self.next_place(u64::MAX)? {
            cancel.check()?;
            chunk.load(self.source, place, self.size)?;
            if !chunk.is_zero() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns how many bytes of the disk are scanned.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the next extent, clipped to the size.
    fn extent(&mut self) -> Result<Option<Extent>, Error> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        next_extent(self.source, self.next, self.size)
    }
}

/// Returns the next data extent before `size`; refuses one that would send a scan in circles.
pub(crate) fn next_extent(
    source: &dyn Block,
    from: u64,
    size: u64,
) -> Result<Option<Extent>, Error> {
    if from >= size {
        return Ok(None);
    }
    let Some(extent) = source.next_data(from)? else { return Ok(None) };
    if extent.offset < from || extent.len == 0 {
        let error = kvmbake_disk::Error::new(ErrorKind::Invalid, "scan")
            .at(from)
            .because(format!("the next extent is {extent:?}"));
        return Err(error.into());
    }
    let end = extent.end().min(size);
    Ok((extent.offset < end).then(|| Extent { offset: extent.offset, len: end - extent.offset }))
}

#[cfg(test)]
mod tests;
