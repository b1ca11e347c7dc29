//! Finding and writing what memory holds differently from a chain of layers.
//!
//! The guest stands still meanwhile, so this is about speed: the page states come for 16 MiB at a time, what a page is compared with
//! is read in blocks that stay in the processor's cache, runs are written straight from guest memory, and two threads share the work.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::chain::{self, Extent};
use super::layers::MemoryLayer;
use super::page_map::{PageKind, PageMap, PageRun};
use super::ram::{Part, Ram};
use super::residency::{PageState, Residency};
use super::{MemoryError, PAGE, side_by_side};

/// Pages that a thread takes at a time: 16 MiB.
const PART: u64 = 4096;
/// Pages of a layer that are read at a time: 256 KiB.
const BLOCK: u64 = 64;

static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

/// The comparison of a RAM with the layers it came from.
pub(super) struct Differences<'a> {
    pub(super) ram: &'a Ram,
    pub(super) residency: &'a Residency,
    pub(super) layers: Vec<&'a MemoryLayer>,
    pub(super) extents: &'a [Extent],
    /// How many of the layers, from the oldest, the RAM's file mappings were made from; 0 when they are of other files.
    pub(super) mapped_layers: usize,
    /// Where the differing data goes.
    pub(super) file: &'a File,
}

/// What a thread keeps from part to part.
#[derive(Default)]
struct Scratch {
    entries: Vec<u8>,
    states: Vec<PageState>,
    below: Vec<u8>,
}

impl Differences<'_> {
    /// Writes them to the file and returns where they are. The file may be that of the youngest layer: each page is compared
    /// before it is written.
    pub(super) fn write(&self) -> Result<PageMap, MemoryError> {
        let parts = self.ram.parts(PART);
        let runs = side_by_side(&parts, Scratch::default, |part, scratch| {
            let runs = self.compare(*part, scratch)?;
            for run in runs.iter().filter(|run| run.kind == PageKind::Data) {
                self.write_run(*part, *run)?;
            }
            Ok(runs)
        })?;
        let mut map = PageMap::new(self.ram.bytes() / PAGE);
        for run in runs.into_iter().flatten() {
            map.push(run)?;
        }
        Ok(map)
    }

    fn compare(&self, part: Part, scratch: &mut Scratch) -> Result<Vec<PageRun>, MemoryError> {
        let Scratch { entries, states, below } = scratch;
        self.residency.look(part, entries, states);
        let mut runs = Vec::new();
        let mut at = part.first;
        for same in states.chunk_by(|a, b| a == b) {
            let pages = at..at + same.len() as u64;
            at = pages.end;
            for (pages, layer) in chain::sources(self.extents, pages) {
                match (same[0], layer) {
                    (PageState::Untouched, None) => {}
                    // Mapped when this layer was the youngest with the page, and none has covered it since.
                    (PageState::OfFile, Some(layer)) if layer < self.mapped_layers => {}
                    (PageState::Untouched, Some(_)) => add(&mut runs, pages, PageKind::Zero),
                    (PageState::Held | PageState::OfFile, None) => {
                        for page in pages.filter(|page| !is_zero(part.host_of(*page))) {
                            add(&mut runs, page..page + 1, PageKind::Data);
                        }
                    }
                    (PageState::Held | PageState::OfFile, Some(layer)) => {
                        self.compare_with(layer, part, pages, below, &mut runs)?;
                    }
                }
            }
        }
        Ok(runs)
    }

    fn compare_with(
        &self,
        layer: usize,
        part: Part,
        pages: Range<u64>,
        below: &mut Vec<u8>,
        runs: &mut Vec<PageRun>,
    ) -> Result<(), MemoryError> {
        let mut start = pages.start;
        while start < pages.end {
            let end = pages.end.min(start + BLOCK);
            below.resize(((end - start) * PAGE) as usize, 0);
            let offset = start * PAGE;
            let read = self.layers[layer].file.read_exact_at(below, offset);
            read.map_err(|source| MemoryError::Read { layer, offset, source })?;
            for (page, old) in (start..end).zip(below.chunks_exact(PAGE as usize)) {
                let host = part.host_of(page);
                if is_equal(host, old) {
                    continue;
                }
                let kind = if is_zero(host) { PageKind::Zero } else { PageKind::Data };
                add(runs, page..page + 1, kind);
            }
            start = end;
        }
        Ok(())
    }

    fn write_run(&self, part: Part, run: PageRun) -> Result<(), MemoryError> {
        let len = (run.pages * PAGE) as usize;
        let host = part.host_of(run.first);
        let mut done = 0;
        while done < len {
            let offset = run.first * PAGE + done as u64;
            // SAFETY: the run is within the part, and the part within a mapping that `self.ram` keeps. The kernel copies the bytes;
            // no reference to them is made, so it does not matter to Rust whether something writes to them.
            let wrote = unsafe {
                libc::pwrite(
                    self.file.as_raw_fd(),
                    host.add(done).cast(),
                    len - done,
                    offset as libc::off_t,
                )
            };
            match usize::try_from(wrote) {
                Ok(0) => {
                    let source = io::ErrorKind::WriteZero.into();
                    return Err(MemoryError::Write { offset, source });
                }
                Ok(wrote) => done += wrote,
                Err(_) => {
                    let source = io::Error::last_os_error();
                    if source.kind() != io::ErrorKind::Interrupted {
                        return Err(MemoryError::Write { offset, source });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Gives back the disk space of a run. Without it the file is only larger.
pub(super) fn punch(file: &File, run: PageRun) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = ((run.first * PAGE) as libc::off_t, (run.pages * PAGE) as libc::off_t);
    // SAFETY: the call concerns the file alone.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
}

fn add(runs: &mut Vec<PageRun>, pages: Range<u64>, kind: PageKind) {
    let len = pages.end - pages.start;
    match runs.last_mut() {
        Some(last) if last.end() == pages.start && last.kind == kind => last.pages += len,
        _ => runs.push(PageRun { first: pages.start, pages: len, kind }),
    }
}

fn is_zero(host: *const u8) -> bool {
    is_equal(host, &ZEROES)
}

/// Returns whether the page of RAM at `host` holds `content`, which is a page long.
fn is_equal(host: *const u8, content: &[u8]) -> bool {
    debug_assert_eq!(content.len(), PAGE as usize);
    // SAFETY: both are a page long; `host` comes from a part of a mapped RAM. The comparison is the C library's and makes no
    // reference to guest memory.
    unsafe { libc::memcmp(host.cast(), content.as_ptr().cast(), content.len()) == 0 }
}
