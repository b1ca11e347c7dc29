//! The host addresses of guest RAM by RAM offset: the position in the RAM, without the hole that guest-physical addresses have.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::{GuestMemory, PAGE};

/// One mapping of RAM.
pub(super) struct Piece {
    /// First page.
    pub(super) first: u64,
    /// Length in pages.
    pub(super) pages: u64,
    /// Host address of its first byte.
    pub(super) host: usize,
    /// The mapping, which keeps the addresses valid.
    pub(super) mapping: Arc<MmapRegion<()>>,
}

/// All RAM of a machine.
pub(super) struct Ram(Vec<Piece>);

impl Ram {
    /// Returns the pieces of `memory` in the order of their guest addresses.
    pub(super) fn of(memory: &GuestMemory) -> Self {
        let mut first = 0;
        let pieces = memory.iter().map(|region| {
            let pages = region.len() / PAGE;
            let mapping = region.get_mmap();
            let piece = Piece { first, pages, host: mapping.as_ptr() as usize, mapping };
            first += pages;
            piece
        });
        Self(pieces.collect())
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Returns the size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|piece| piece.pages * PAGE).sum()
    }

    /// Cuts the RAM into parts of at most `pages` pages, each within one piece: first page, pages, host address.
    pub(super) fn parts(&self, pages: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        for piece in &self.0 {
            let mut at = 0;
            while at < piece.pages {
                let len = pages.min(piece.pages - at);
                let host = piece.host + (at * PAGE) as usize;
                parts.push(Part { first: piece.first + at, pages: len, host });
                at += len;
            }
        }
        parts
    }
}

/// Pages that lie side by side in RAM and on the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) pages: u64,
    pub(super) host: usize,
}

impl Part {
    /// Returns the host address of `page`, which must be in the part.
    pub(super) fn host_of(&self, page: u64) -> *mut u8 {
        debug_assert!(page >= self.first && page < self.first + self.pages);
        (self.host + ((page - self.first) * PAGE) as usize) as *mut u8
    }
}
