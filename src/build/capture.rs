//! Taking a layer off a running guest: its disk, and, where the profile wants it, its memory and the
//! state of its machine. The guest stands still for as long as its memory takes to be compared and
//! written, then goes on as if nothing had been.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmbake_disk::{Block, Qcow2Block};
use kvmbake_vmm::memory::{MemoryLayer, SavedMemory};
use kvmbake_vmm::{Handle, Paused};

use super::disk::GuestDisk;
use super::guest::Guest;
use super::life::Ended;
use crate::cache::{DISK, MACHINE_STATE, MEMORY, MEMORY_MAP};
use crate::error::{Blame, Error, with_causes};

/// How long the guest may take to write out what it has buffered.
const SYNC: Duration = Duration::from_secs(300);

/// What was taken.
pub struct Captured {
    /// The disk as it was, read-only.
    pub disk: Arc<dyn Block>,
    /// The memory that was compared with, with what differed on top when it was wanted.
    pub memory: Option<SavedMemory>,
    /// Why there is no memory although it was wanted.
    pub without_memory: Option<String>,
    /// How long the guest stood still.
    pub paused: Duration,
}

impl Guest {
    /// Writes the files of a layer into `folder`. `memory` is what earlier layers hold of the
    /// machine's memory; none when the layer is to be a disk alone.
    ///
    /// # Errors
    /// The guest ended, or the host's disk cannot take the layer; the guest cannot go on then.
    pub async fn capture(
        &mut self,
        folder: &Path,
        memory: Option<SavedMemory>,
    ) -> Result<Captured, Error> {
        self.connect().await?;
        let (machine, disk) = (self.life.machine(), Arc::clone(&self.setup.disk));
        let ahead = {
            let (machine, folder) = (machine.clone(), folder.to_path_buf());
            tokio::task::spawn_blocking(move || {
                memory.map(|memory| Ahead::save(memory, &machine, &folder))
            })
        };
        let session = &self.provisioned()?.session;
        let synced = self.watch(kvmbake_provision::sync(session, SYNC)).await;
        let ahead = ahead.await.map_err(|error| died(&error))?;
        match synced {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(self.failed("The guest could not write out its disk").because(&error));
            }
            Err(ended) => return Err(self.explain(&ended)),
        }
        let folder = folder.to_path_buf();
        let work = tokio::task::spawn_blocking(move || take(&machine, &disk, &folder, ahead)).await;
        match work.map_err(|error| died(&error))? {
            Ok(captured) => Ok(captured),
            Err(Trouble::Ended) => Err(match self.verdict().await {
                Some(ended) => self.explain(&ended),
                None => self.explain(&Ended::Cancelled),
            }),
            Err(Trouble::Host(error)) => Err(error),
        }
    }
}

/// Why there is no layer.
enum Trouble {
    /// The machine has ended.
    Ended,
    /// The host failed.
    Host(Error),
}

/// The memory as it was while the guest still ran. Most of it is what it will be in the pause, which
/// only has to look for the rest.
struct Ahead {
    saved: SavedMemory,
    /// What differed from `saved`, or why that could not be written.
    layer: Result<MemoryLayer, String>,
}

impl Ahead {
    fn save(saved: SavedMemory, machine: &Handle, folder: &Path) -> Ahead {
        let layer = new_file(&folder.join(MEMORY)).and_then(|file| {
            let memory = machine.memory().ok_or("the machine has ended")?;
            saved.save(&memory, file).map_err(|error| with_causes(&error))
        });
        Ahead { saved, layer }
    }

    /// Brings the memory up to date, and writes the machine's state beside it.
    fn finish(&mut self, paused: &Paused, folder: &Path) -> Result<(), String> {
        let ahead = std::mem::replace(&mut self.layer, Err(String::new()))?;
        let state = paused.state().map_err(|error| with_causes(&error))?.to_bytes();
        fs::write(folder.join(MACHINE_STATE), state).map_err(|error| error.to_string())?;
        let layer =
            self.saved.finish(paused.memory(), ahead).map_err(|error| with_causes(&error))?;
        fs::write(folder.join(MEMORY_MAP), layer.map.to_bytes())
            .map_err(|error| error.to_string())?;
        self.saved.push(layer).map_err(|error| with_causes(&error))
    }
}

/// Pauses the machine and takes the layer off it.
fn take(
    machine: &Handle,
    disk: &GuestDisk,
    folder: &Path,
    ahead: Option<Ahead>,
) -> Result<Captured, Trouble> {
    let begun = Instant::now();
    let paused = machine.pause().map_err(|_| Trouble::Ended)?;
    let (memory, without_memory) = match ahead {
        None => (None, None),
        Some(mut ahead) => match ahead.finish(&paused, folder) {
            Ok(()) => (Some(ahead.saved), None),
            Err(why) => {
                for file in [MEMORY, MEMORY_MAP, MACHINE_STATE] {
                    // What is not there need not go.
                    let _ = fs::remove_file(folder.join(file));
                }
                (Some(ahead.saved), Some(why))
            }
        },
    };
    let frozen = disk.split().map_err(|error| host("Cannot keep the guest's disk", &error))?;
    let path = folder.join(DISK);
    fs::rename(frozen.path(), &path)
        .map_err(|error| host("Cannot keep the guest's disk", &error))?;
    let paused_for = begun.elapsed();
    paused.resume().map_err(|error| host("The machine does not go on", &error))?;
    Ok(Captured { disk: frozen as Arc<Qcow2Block>, memory, without_memory, paused: paused_for })
}

fn new_file(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|error| error.to_string())
}

fn died(error: &tokio::task::JoinError) -> Error {
    Error::new(Blame::Internal, "Taking a layer died").because(error)
}

fn host(message: &str, error: &(dyn std::error::Error + 'static)) -> Trouble {
    Trouble::Host(Error::input(message).because(error))
}
