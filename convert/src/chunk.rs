//! The scan: a disk's data as an ordered stream of chunks that know which of their pages are zero.
//!
//! A chunk covers one aligned mebibyte of the disk. Within it, whole 64 KiB units are valid or
//! absent: a unit is read where an extent of the source touches it, and every 4 KiB page of it is
//! then tested for zeroes. Chunks of zeroes only are never handed out. The bytes of a unit
//! without a non-zero page are unspecified (a reused buffer's old content), so nobody looks
//! at them; beyond the disk's end a unit is filled up with zeroes.
//!
//! Buffers come from a [`Pool`] and return to it when the last holder drops the chunk, which
//! bounds the memory of the whole pipeline.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use kvmbake_disk::{Block, ErrorKind, Extent};

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
    home: Option<Sender<Buffer>>,
}

impl Chunk {
    /// Returns an empty chunk outside any pool.
    pub(crate) fn unpooled() -> Chunk {
        Chunk { offset: 0, len: 0, data: Buffer::new(CHUNK), nonzero: [false; PAGES], home: None }
    }

    /// Returns a chunk of ones outside any pool, to be marked.
    pub(crate) fn ones() -> Chunk {
        let mut chunk = Chunk::unpooled();
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

    /// Returns whether the other chunk is the same part of a disk with the same bytes.
    pub(crate) fn has_content_of(&self, other: &Chunk) -> bool {
        // Which pages are zero follows from the content alone.
        (self.offset, self.len, &self.nonzero) == (other.offset, other.len, &other.nonzero)
            && self.runs().all(|run| self.data[run.clone()] == other.data[run])
    }

    fn is_zero(&self) -> bool {
        !self.nonzero.contains(&true)
    }

    fn reset(&mut self, offset: u64, size: u64) {
        self.offset = offset;
        self.len = (size - offset).min(CHUNK as u64) as usize;
        self.nonzero = [false; PAGES];
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

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // The pool is gone when the pipeline ended: then the buffer may go too.
            let _ = home.send(std::mem::take(&mut self.data));
        }
    }
}

/// Returns whether every byte is zero; quick to say no.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const STEP: usize = 256;
    let mut steps = bytes.chunks_exact(STEP);
    let mut rest_is_zero = true;
    for step in steps.by_ref() {
        // Folding a whole step lets the compiler use vector registers; leaving after each keeps
        // data, where the first bytes already differ, cheap.
        if step.iter().fold(0, |all, byte| all | byte) != 0 {
            return false;
        }
    }
    for byte in steps.remainder() {
        rest_is_zero &= *byte == 0;
    }
    rest_is_zero
}

/// A bounded supply of chunk buffers.
pub(crate) struct Pool {
    home: Sender<Buffer>,
    free: Receiver<Buffer>,
    left: usize,
}

impl Pool {
    /// Returns a pool that never has more than `limit` buffers out; they are made when needed.
    pub(crate) fn new(limit: usize) -> Pool {
        let (home, free) = channel();
        Pool { home, free, left: limit }
    }

    /// Returns a chunk, waiting until one is free.
    pub(crate) fn take(&mut self, cancel: Cancel<'_>) -> Result<Chunk, Error> {
        let data = loop {
            cancel.check()?;
            if let Ok(data) = self.free.try_recv() {
                break data;
            }
            if self.left > 0 {
                self.left -= 1;
                break Buffer::new(CHUNK);
            }
            match self.free.recv_timeout(Duration::from_millis(50)) {
                Ok(data) => break data,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        };
        Ok(Chunk {
            offset: 0,
            len: 0,
            data,
            nonzero: [false; PAGES],
            home: Some(self.home.clone()),
        })
    }
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

    /// Reads the next chunk that is not all zeroes; `false` at the end.
    pub(crate) fn read(&mut self, chunk: &mut Chunk, cancel: Cancel<'_>) -> Result<bool, Error> {
        while let Some(first) = self.extent()? {
            cancel.check()?;
            let base = first.offset - first.offset % CHUNK as u64;
            chunk.reset(base, self.size);
            let mut units = 0..0;
            let mut extent = Some(first);
            while let Some(here) = extent.take_if(|extent| extent.offset - base < CHUNK as u64) {
                let start = (here.offset - base) as usize / UNIT;
                let end = ((here.end() - base).min(CHUNK as u64) as usize).div_ceil(UNIT);
                if start > units.end {
                    if !units.is_empty() {
                        chunk.fill(self.source, units.clone())?;
                    }
                    units = start..end;
                } else {
                    // Nothing read yet has units.start == units.end == 0.
                    units.end = end.max(units.end);
                }
                self.next = here.end().max(base + (units.end * UNIT) as u64);
                if here.end() > base + CHUNK as u64 {
                    let offset = base + CHUNK as u64;
                    self.rest = Some(Extent { offset, len: here.end() - offset });
                }
                extent = self.extent()?;
            }
            self.rest = extent;
            chunk.fill(self.source, units)?;
            if !chunk.is_zero() {
                return Ok(true);
            }
        }
        Ok(false)
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
