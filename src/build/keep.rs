//! What a build keeps of a position in the cache: the layer of a running guest, and the sealed disk.
//!
//! A layer that cannot be kept ends the keeping, not the build: what comes later would have no parent.

use std::fs;
use std::sync::Arc;

use kvmbake_disk::Block;
use kvmbake_vmm::memory::SavedMemory;

use super::bake::{Bake, Walk};
use super::chain::{NOTES, Notes};
use super::guest::Guest;
use super::position::Position;
use super::stage::Stages;
use super::{layers, seal};
use crate::cache::{Building, CacheError, DISK, Meta};
use crate::error::Error;
use crate::profile::units::Elapsed;
use crate::report::Stage;

impl Bake<'_> {
    /// Takes the layer of `position` off the guest and publishes it beside the rest of the build.
    pub(super) async fn keep(
        &self,
        walk: &mut Walk,
        guest: &mut Guest,
        position: Position,
        title: &str,
        building: Building,
        mut notes: Notes,
    ) -> Result<(), Error> {
        let Some(layers) = &self.layers else { return Ok(()) };
        let (memory, below) = match walk.memory.take() {
            Some((memory, below)) => (Some(memory), below),
            None if self.plan.profile.cache.memory => {
                (Some(SavedMemory::new(self.plan.profile.machine.memory)), None)
            }
            None => (None, None),
        };
        let wanted = memory.is_some();
        let captured = guest.capture(building.folder(), memory).await?;
        walk.chain.disk = captured.disk;
        let fetched = self.network.fetched().take();
        let is_known = fetched.is_some();
        let served = layers.served_all(fetched.unwrap_or_default());
        // A file that was changed while the step ran may or may not be what the guest got.
        if !is_known {
            let text = format!("{position} is not kept: its guest asked for too many things");
            self.note(Stage::Cache, &text);
            walk.keeping = false;
            return Ok(());
        }
        let same = layers.recipe(position)?.key(walk.parent()) == building.key();
        if !same {
            self.note(
                Stage::Cache,
                &format!("{position} is not kept: its files changed while it ran"),
            );
            walk.keeping = false;
            return Ok(());
        }
        let has_memory = wanted && captured.without_memory.is_none();
        notes.memory_on = below.filter(|_| has_memory);
        if let Some(why) = &captured.without_memory {
            self.note(Stage::Cache, &format!("{position} is kept without its memory: {why}"));
        }
        let published = write_notes(&building, &notes).and_then(|()| {
            building.publish(Meta { title: title.into(), served }, walk.take_parent())
        });
        match published {
            Ok(publishing) => {
                let id = publishing.id();
                walk.kept.push((position, id));
                let below = if has_memory { Some(id) } else { below };
                walk.memory = captured.memory.map(|memory| (memory, below));
                let stood_still = Elapsed(captured.paused);
                let text = format!(
                    "{position} kept  (layer {}); the guest stood still for {stood_still}",
                    id.short()
                );
                self.note(Stage::Cache, &text);
                walk.pending = Some(publishing);
            }
            Err(error) => self.stop_keeping(walk, &error),
        }
        Ok(())
    }

    /// Shuts the guest down, and keeps its disk.
    pub(super) async fn seal(
        &self,
        walk: &mut Walk,
        guest: Guest,
        title: &str,
        building: Option<Building>,
    ) -> Result<(), Error> {
        let disk = Arc::clone(&guest.setup.disk);
        let ours = self.plan.private_key.is_none().then_some(&*self.key);
        Stages::new(self.report.as_ref())
            .run(Stage::Seal, "removing the build's key", seal::seal(guest, ours))
            .await?;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Error::input("Cannot finish the build's disk").because(error)
        };
        let frozen = disk.finish().map_err(|error| failed(&error))?;
        walk.chain.disk = Arc::clone(&frozen) as Arc<dyn Block>;
        let Some(building) = building else { return Ok(()) };
        fs::rename(frozen.path(), building.path(DISK)).map_err(|error| failed(&error))?;
        let published = write_notes(&building, &Notes::default()).and_then(|()| {
            let meta = Meta { title: title.into(), served: Vec::new() };
            building.publish(meta, walk.take_parent())
        });
        match published {
            Ok(publishing) => {
                walk.kept.push((Position::Sealed, publishing.id()));
                walk.pending = Some(publishing);
            }
            Err(error) => self.stop_keeping(walk, &error),
        }
        Ok(())
    }

    pub(super) fn stop_keeping(&self, walk: &mut Walk, error: &CacheError) {
        walk.keeping = false;
        walk.memory = None;
        let error = layers::failed(error);
        let causes = error.causes.join(": ");
        self.note(Stage::Cache, &format!("layers are no longer kept: {causes}"));
    }
}

fn write_notes(building: &Building, notes: &Notes) -> Result<(), CacheError> {
    let path = building.path(NOTES);
    let bytes = serde_json::to_vec_pretty(notes).map_err(std::io::Error::from);
    bytes.and_then(|bytes| fs::write(&path, bytes)).map_err(|source| CacheError::Io {
        action: "write",
        path,
        source,
    })
}
