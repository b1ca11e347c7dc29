//! A RAM with the content of a chain of layers: read at once, or mapped privately from the files.
//!
//! Reading brings the guest's memory in as huge pages at the speed of a copy; what is mapped comes 4 KiB at a fault, and stays
//! in small pages. See docs/decisions/0006.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{FileOffset, MmapRegion};

use super::chain::Extent;
use super::layers::MemoryLayer;
use super::ram::{Part, Ram};
use super::{GuestMemory, MemoryError, PAGE, advise_range, build, side_by_side};

/// Most bytes of data that are read before the guest runs; when there is more, it is mapped. From the page cache, reading takes
/// 75 ms a thread (docs/decisions/0006), as much as 30 000 of the guest's faults, and a guest that has data of this size touches
/// more pages than that when it is used.
pub const EAGER_LIMIT: u64 = 512 << 20;
/// Most mappings of files; the process may have 65 530 mappings, and each of these may split another in two.
pub(super) const MOST_MAPPINGS: usize = 16 << 10;
/// Pages below which a run is read even then: the mapping would cost as much as its faults.
const SHORTEST_MAPPING: u64 = 16;
/// Pages that a thread reads at a time: 8 MiB.
const PART: u64 = 2048;

/// Where a RAM's content is.
pub(super) struct Sources<'a> {
    pub(super) bytes: u64,
    pub(super) layers: &'a [MemoryLayer],
    pub(super) extents: &'a [Extent],
}

impl Sources<'_> {
    /// Reads everything into anonymous memory.
    pub(super) fn read_all(&self) -> Result<GuestMemory, MemoryError> {
        let memory = build(self.bytes, |len, _| super::anonymous(len))
            .map_err(|source| MemoryError::Reserve { bytes: self.bytes, source })?;
        self.read(&Ram::of(&memory), self.extents)?;
        Ok(memory)
    }

    /// Maps the `most` longest extents and reads the others. Every mapping of the memory carries a [`FileOffset`], which says that
    /// parts of it are mapped from files.
    pub(super) fn map_all(&self, most: usize) -> Result<GuestMemory, MemoryError> {
        let refuse = |source| MemoryError::Reserve { bytes: self.bytes, source };
        let (mapped, read) = self.choose(most);
        let Some(first) = self.layers.first() else { return self.read_all() };
        let marker = first.file.try_clone().map_err(refuse)?;
        let marker = std::sync::Arc::new(marker);
        let memory = build(self.bytes, |len, offset| {
            let file = FileOffset::from_arc(marker.clone(), offset);
            let mapping = MmapRegion::build(
                Some(file),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            )?;
            Ok(mapping)
        })
        .map_err(refuse)?;
        let ram = Ram::of(&memory);
        for piece in ram.parts(u64::MAX) {
            replace(piece.host, piece.pages, None).map_err(refuse)?;
            advise_range(piece.host, (piece.pages * PAGE) as usize);
        }
        for (part, extent) in within(&ram, u64::MAX, &mapped) {
            let file = &self.layers[extent.layer].file;
            let host = part.host_of(extent.first) as usize;
            replace(host, extent.pages, Some((file, extent.first * PAGE))).map_err(refuse)?;
            // SAFETY: the range has just been mapped; the advice changes no content, and its refusal costs only disk.
            unsafe {
                libc::madvise(host as *mut _, (extent.pages * PAGE) as usize, libc::MADV_DONTDUMP)
            };
        }
        self.read(&ram, &read)?;
        Ok(memory)
    }

    /// Divides the extents into those to be mapped, at most `most`, and those to be read.
    fn choose(&self, most: usize) -> (Vec<Extent>, Vec<Extent>) {
        let mut long: Vec<&Extent> =
            self.extents.iter().filter(|extent| extent.pages >= SHORTEST_MAPPING).collect();
        long.sort_unstable_by_key(|extent| (Reverse(extent.pages), extent.first));
        long.truncate(most);
        let chosen: BTreeSet<u64> = long.iter().map(|extent| extent.first).collect();
        self.extents.iter().partition(|extent| chosen.contains(&extent.first))
    }

    fn read(&self, ram: &Ram, extents: &[Extent]) -> Result<(), MemoryError> {
        let parts = within(ram, PART, extents);
        side_by_side(&parts, || (), |(part, extent), ()| self.read_extent(*part, *extent))?;
        Ok(())
    }

    fn read_extent(&self, part: Part, extent: Extent) -> Result<(), MemoryError> {
        let layer = extent.layer;
        let host = part.host_of(extent.first);
        let len = (extent.pages * PAGE) as usize;
        let mut done = 0;
        while done < len {
            let offset = extent.first * PAGE + done as u64;
            // SAFETY: the extent is within the part, and the part within a mapping that nobody else uses yet.
            let got = unsafe {
                libc::pread(
                    self.layers[layer].file.as_raw_fd(),
                    host.add(done).cast(),
                    len - done,
                    offset as libc::off_t,
                )
            };
            match usize::try_from(got) {
                Ok(0) => {
                    return Err(MemoryError::Truncated {
                        layer,
                        expected: self.bytes,
                        found: offset,
                    });
                }
                Ok(got) => done += got,
                Err(_) => {
                    let source = io::Error::last_os_error();
                    if source.kind() != io::ErrorKind::Interrupted {
                        return Err(MemoryError::Read { layer, offset, source });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns `extents`, which are sorted, cut at the borders of the RAM's parts of at most `pages` pages, each with its part.
fn within(ram: &Ram, pages: u64, extents: &[Extent]) -> Vec<(Part, Extent)> {
    let mut cut = Vec::with_capacity(extents.len());
    let mut at = 0;
    for part in ram.parts(pages) {
        let end = part.first + part.pages;
        while let Some(extent) = extents.get(at).filter(|extent| extent.first < end) {
            let first = extent.first.max(part.first);
            let last = extent.end().min(end);
            if last > first {
                cut.push((part, Extent { first, pages: last - first, layer: extent.layer }));
            }
            if extent.end() > end {
                break;
            }
            at += 1;
        }
    }
    cut
}

/// Maps `pages` pages at `host` anew, privately: from a file at an offset, or anonymously.
pub(super) fn replace(
    host: usize,
    pages: u64,
    file: Option<(&std::fs::File, u64)>,
) -> io::Result<()> {
    let (kind, fd, offset) = match file {
        Some((file, offset)) => (0, file.as_raw_fd(), offset),
        None => (libc::MAP_ANONYMOUS, -1, 0),
    };
    // SAFETY: the callers pass ranges of guest RAM that a mapping of their own holds; the new mapping takes the old one's place and
    // goes with it.
    let at = unsafe {
        libc::mmap(
            host as *mut _,
            (pages * PAGE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE | kind,
            fd,
            offset as libc::off_t,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
