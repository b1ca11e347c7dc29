//! Memory as a chain of layers, each with the pages that differ from the layers below it.
//!
//! A layer is a file and a [`PageMap`]. The file is flat and sparse: what RAM holds at an offset is at the same offset in the file,
//! so that it can be mapped; it is as long as the RAM. RAM offsets leave out the hole below 4 GiB.
//!
//! Who keeps layers on disk checks their digests and sees to it that no file changes while a machine runs on it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_memory::MmapRegion;

use super::chain::{self, Extent};
use super::page_map::{PageKind, PageMap};
use super::ram::Ram;
use super::residency::Residency;
use super::restore::{self, Sources};
use super::{GuestMemory, MemoryError, PAGE, save};

/// One layer of saved memory.
#[derive(Debug)]
pub struct MemoryLayer {
    /// The data, each page at its RAM offset; readable.
    pub file: File,
    /// Which pages are in the file.
    pub map: PageMap,
}

/// A RAM of a certain size as layers hold it; without any, it is all zero.
#[derive(Debug)]
pub struct SavedMemory {
    bytes: u64,
    layers: Vec<MemoryLayer>,
    /// The mappings made from the layers, each with the number of layers that there were.
    mapped: Mutex<Vec<(Weak<MmapRegion<()>>, usize)>>,
}

impl SavedMemory {
    /// Returns an empty chain for a RAM of `bytes`, a multiple of 4 KiB.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, layers: Vec::new(), mapped: Mutex::default() }
    }

    /// Puts `layer` on top.
    ///
    /// # Errors
    /// [`MemoryError::WrongSize`] when it is of another RAM; [`MemoryError::Truncated`] when its file is too short.
    pub fn push(&mut self, layer: MemoryLayer) -> Result<(), MemoryError> {
        let found = layer.map.ram_pages() * PAGE;
        if found != self.bytes {
            return Err(MemoryError::WrongSize { expected: self.bytes, found });
        }
        self.check_length(self.layers.len(), &layer.file)?;
        self.layers.push(layer);
        Ok(())
    }

    /// Returns the layers, the oldest first.
    pub fn layers(&self) -> &[MemoryLayer] {
        &self.layers
    }

    /// Returns the size of the RAM in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns a new RAM with the content of the chain, at the addresses of [`crate::layout`].
    ///
    /// Little data is read; much is mapped privately from the layers' files, so that a guest runs before its memory is read. See
    /// [`restore::EAGER_LIMIT`].
    ///
    /// # Errors
    /// [`MemoryError::Truncated`] and [`MemoryError::Read`] when a file does not hold what its map says; [`MemoryError::Reserve`]
    /// when the host gives no memory.
    pub fn map(&self) -> Result<GuestMemory, MemoryError> {
        self.map_with(restore::EAGER_LIMIT, restore::MOST_MAPPINGS)
    }

    /// As [`SavedMemory::map`], reading when there are at most `eager_limit` bytes of data, and otherwise mapping at most
    /// `most_mappings` extents.
    pub(super) fn map_with(
        &self,
        eager_limit: u64,
        most_mappings: usize,
    ) -> Result<GuestMemory, MemoryError> {
        for (index, layer) in self.layers.iter().enumerate() {
            self.check_length(index, &layer.file)?;
        }
        let extents = self.extents();
        let sources = Sources { bytes: self.bytes, layers: &self.layers, extents: &extents };
        let data: u64 = extents.iter().map(|extent| extent.pages * PAGE).sum();
        if data <= eager_limit {
            return sources.read_all();
        }
        let memory = sources.map_all(most_mappings)?;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let ram = Ram::of(&memory);
        let layers = self.layers.len();
        mapped.extend(ram.pieces().iter().map(|piece| (Arc::downgrade(&piece.mapping), layers)));
        Ok(memory)
    }

    /// Writes to `file`, opened for reading and writing, what `memory` holds differently from the chain. The caller pushes the
    /// layer, and syncs the file when it must last.
    ///
    /// Nothing may write to `memory` meanwhile: vCPUs out of the guest, devices quiet. What pages hold that are written
    /// nevertheless is undefined, and nothing worse; [`SavedMemory::finish`] makes it right.
    ///
    /// # Errors
    /// [`MemoryError::WrongSize`] when `memory` is not of the chain's size; [`MemoryError::Read`] and [`MemoryError::Truncated`]
    /// when a layer cannot be compared with; [`MemoryError::Write`] when the file cannot be written.
    pub fn save(&self, memory: &GuestMemory, file: File) -> Result<MemoryLayer, MemoryError> {
        let failed = |source| MemoryError::Write { offset: 0, source };
        file.set_len(0).map_err(failed)?;
        file.set_len(self.bytes).map_err(failed)?;
        let map = self.differences(memory, self.layers.iter().collect(), &file)?;
        Ok(MemoryLayer { file, map })
    }

    /// Brings `ahead`, which [`SavedMemory::save`] made of the same `memory` while the guest ran, to what `memory` holds now that it
    /// stands still. What has not changed since is only compared, so that the guest stands still for a shorter time.
    ///
    /// # Errors
    /// Those of [`SavedMemory::save`].
    pub fn finish(
        &self,
        memory: &GuestMemory,
        ahead: MemoryLayer,
    ) -> Result<MemoryLayer, MemoryError> {
        self.check_length(self.layers.len(), &ahead.file)?;
        let layers = self.layers.iter().chain([&ahead]).collect();
        let later = self.differences(memory, layers, &ahead.file)?;
        for run in later.runs().iter().filter(|run| run.kind == PageKind::Zero) {
            save::punch(&ahead.file, *run);
        }
        let map = chain::merge(&ahead.map, &later, &self.extents())?;
        Ok(MemoryLayer { file: ahead.file, map })
    }

    /// Writes to `file` what `memory` holds differently from `layers`, and returns where.
    fn differences(
        &self,
        memory: &GuestMemory,
        layers: Vec<&MemoryLayer>,
        file: &File,
    ) -> Result<PageMap, MemoryError> {
        let ram = Ram::of(memory);
        if ram.bytes() != self.bytes {
            return Err(MemoryError::WrongSize { expected: self.bytes, found: ram.bytes() });
        }
        let residency = Residency::of(&ram);
        let extents = chain::flatten(layers.iter().map(|layer| &layer.map));
        let mapped_layers = self.mapped_layers(&ram);
        let differences = save::Differences {
            ram: &ram,
            residency: &residency,
            layers,
            extents: &extents,
            mapped_layers,
            file,
        };
        differences.write()
    }

    /// Returns how many of the layers `ram` was mapped from; 0 when it was mapped from something else.
    fn mapped_layers(&self, ram: &Ram) -> usize {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|(mapping, _)| mapping.strong_count() > 0);
        let layers = |mapping: &Arc<MmapRegion<()>>| {
            let known = mapped.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(mapping));
            known.map_or(0, |(_, layers)| *layers)
        };
        ram.pieces().iter().map(|piece| layers(&piece.mapping)).min().unwrap_or(0)
    }

    fn extents(&self) -> Vec<Extent> {
        chain::flatten(self.layers.iter().map(|layer| &layer.map))
    }

    /// A shorter file would kill the process with SIGBUS where it is mapped.
    fn check_length(&self, layer: usize, file: &File) -> Result<(), MemoryError> {
        let metadata = file.metadata();
        let found =
            metadata.map_err(|source| MemoryError::Read { layer, offset: 0, source })?.size();
        if found < self.bytes {
            return Err(MemoryError::Truncated { layer, expected: self.bytes, found });
        }
        Ok(())
    }
}
