//! What a build stands on: the base, the layers found or made on it so far, the disk and the
//! machine's memory that they add up to, and what is known of how they came about.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvmbake_disk::{Block, open_overlay};
use kvmbake_vmm::MachineState;
use kvmbake_vmm::memory::{MemoryLayer, PageMap, SavedMemory};
use serde::{Deserialize, Serialize};

use super::guest::Booted;
use super::manifest;
use super::step::transfer::DOWNLOADS;
use crate::cache::{Cache, DISK, Layer, LayerId, MACHINE_STATE, MEMORY_MAP};
use crate::error::Error;

/// The file in which a layer says how it came about.
pub const NOTES: &str = "build.json";

/// How a layer came about, as far as later builds care.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// The kernel of the first boot, in the layer of the booted guest.
    pub kernel: Option<Booted>,
    /// The step, in the layer of a step.
    pub step: Option<manifest::Step>,
    /// The layer whose memory this one's is a difference to; none for a memory that is whole.
    pub memory_on: Option<LayerId>,
}

/// The layers below a guest, the youngest last.
pub struct Chain {
    /// The disk as of the last layer, read-only.
    pub disk: Arc<dyn Block>,
    /// The kernel of the first boot.
    pub kernel: Option<Booted>,
    /// The steps done.
    pub steps: Vec<manifest::Step>,
    /// What steps downloaded, by their numbers.
    pub downloads: Vec<(usize, Arc<File>)>,
    /// The last layer; none when there is none in the cache.
    pub tip: Option<Layer>,
}

impl Chain {
    /// Returns a chain of nothing but the base.
    pub fn new(base: Arc<dyn Block>) -> Chain {
        Chain { disk: base, kernel: None, steps: Vec::new(), downloads: Vec::new(), tip: None }
    }

    /// Puts a layer that was found in the cache on top.
    ///
    /// # Errors
    /// Its files cannot be used; the chain is as it was.
    pub fn push(&mut self, layer: Layer) -> Result<(), Error> {
        let failed = |cause: &(dyn std::error::Error + 'static)| {
            Error::input(format!("The cached layer {} cannot be used", layer.id().short()))
                .because(cause)
                .hint(
                    "`kvmbake cache rm` removes a layer, `kvmbake cache verify` every damaged one",
                )
        };
        let notes = notes(&layer).map_err(|error| failed(&error))?;
        let path = file(&layer, DISK).map_err(|error| failed(&error))?;
        let disk = open_overlay(&path, Arc::clone(&self.disk)).map_err(|error| failed(&error))?;
        let downloads = layer.file(DOWNLOADS).map(File::open).transpose();
        let downloads = downloads.map_err(|error| failed(&error))?;
        self.disk = disk;
        self.kernel = notes.kernel.or(self.kernel.take());
        self.steps.extend(notes.step.map(|step| manifest::Step { cached: true, ..step }));
        self.downloads.extend(downloads.map(|pack| (self.steps.len(), Arc::new(pack))));
        self.tip = Some(layer);
        Ok(())
    }
}

/// A machine as a layer holds it.
pub struct Suspended {
    /// Everything but its memory.
    pub state: MachineState,
    /// Its memory.
    pub memory: SavedMemory,
}

impl Suspended {
    /// Opens the machine of `layer`, whose guest has `bytes` of memory; `None` when the layer holds
    /// only a disk.
    ///
    /// # Errors
    /// Why it cannot be used, for a note: the guest is booted from the layer's disk then.
    pub fn open(
        layer: &Layer,
        bytes: u64,
        cache: &Cache,
        cancel: &AtomicBool,
    ) -> Result<Option<Suspended>, String> {
        let Some(path) = layer.file(MACHINE_STATE) else { return Ok(None) };
        let state = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let state = MachineState::from_bytes(&state).map_err(|error| error.to_string())?;
        let mut lineage = Vec::new();
        let mut next = Some(layer.clone());
        while let Some(layer) = next {
            let notes = notes(&layer).map_err(|error| error.to_string())?;
            lineage.push(layer.clone());
            next = match notes.memory_on {
                None => None,
                Some(below) => {
                    Some(ancestor(&layer, below).ok_or("its memory lacks its parent's")?)
                }
            };
        }
        let mut memory = SavedMemory::new(bytes);
        for layer in lineage.iter().rev() {
            let saved = memory_layer(layer, cache, cancel)?;
            memory.push(saved).map_err(|error| error.to_string())?;
        }
        Ok(Some(Suspended { state, memory }))
    }
}

fn ancestor(layer: &Layer, id: LayerId) -> Option<Layer> {
    let mut above = layer.parent();
    while let Some(layer) = above {
        if layer.id() == id {
            return Some(layer.clone());
        }
        above = layer.parent();
    }
    None
}

fn memory_layer(layer: &Layer, cache: &Cache, cancel: &AtomicBool) -> Result<MemoryLayer, String> {
    let map = file(layer, MEMORY_MAP).and_then(fs::read).map_err(|error| error.to_string())?;
    let map = PageMap::from_bytes(&map).map_err(|error| error.to_string())?;
    let file = layer.open_memory(cache, cancel).map_err(|error| error.to_string())?;
    Ok(MemoryLayer { file: file.ok_or("it has a map of its memory, and no memory")?, map })
}

/// Reads how `layer` came about.
fn notes(layer: &Layer) -> io::Result<Notes> {
    Ok(serde_json::from_slice(&fs::read(file(layer, NOTES)?)?)?)
}

/// Returns the path of a file that every layer has.
fn file(layer: &Layer, name: &str) -> io::Result<PathBuf> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("it has no {name}"));
    layer.file(name).ok_or_else(missing)
}
