//! The store as a person looks at it: what is in it, how large it is, whether it is sound, and
//! removing from it by hand.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::Cache;
use super::error::CacheError;
use super::find::Discarded;
use super::gc::{Item, Removed};
use super::layer::{Depth, MEMORY, PACKED_MEMORY, check_files, entries};
use super::lock::{Hold, is_used};
use super::pack::MemoryForm;
use super::recipe::{Kind, LayerId, LayerKey};

/// A layer in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its ID.
    pub id: LayerId,
    /// Its key.
    pub key: LayerKey,
    /// What it is built on.
    pub parent: Option<LayerId>,
    /// What it stands for.
    pub kind: Kind,
    /// Its title.
    pub title: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used.
    pub used: SystemTime,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
    /// How its memory is stored, when it has one.
    pub memory: Option<MemoryForm>,
    /// Whether somebody uses it right now.
    pub in_use: bool,
    /// The version of kvmbake that made it.
    pub made_by: String,
}

/// What the store takes on the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many layers there are.
    pub layers: usize,
    /// All files of all layers.
    pub bytes: u64,
    /// Their memory.
    pub memory: u64,
    /// How many bases there are.
    pub bases: usize,
    /// All files of all bases.
    pub base_bytes: u64,
    /// What builds are writing right now, and downloads to be continued.
    pub temporary: u64,
    /// Digests, traces and records of exports.
    pub records: u64,
}

/// What a full check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many layers are sound.
    pub sound: usize,
    /// The bytes of their files.
    pub bytes: u64,
    /// What was thrown away.
    pub discarded: Vec<Discarded>,
}

impl Cache {
    /// Lists the layers: each after what it is built on, siblings by age.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, CacheError> {
        let mut all: Vec<Listed> = self.items()?.iter().filter_map(listed).collect();
        all.sort_by_key(|layer| (layer.created, layer.id));
        let known: HashSet<_> = all.iter().map(|layer| layer.id).collect();
        let (roots, mut rest): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|layer| layer.parent.is_none_or(|parent| !known.contains(&parent)));
        let mut ordered = Vec::new();
        let mut next: Vec<Listed> = roots.into_iter().rev().collect();
        while let Some(layer) = next.pop() {
            let (children, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|child| child.parent == Some(layer.id));
            rest = others;
            next.extend(children.into_iter().rev());
            ordered.push(layer);
        }
        Ok(ordered)
    }

    /// Returns what the store takes on the disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let temporary = below(&self.tmp()) + below(&self.parts());
        let mut usage = Usage { temporary, ..Usage::default() };
        for item in self.items()? {
            usage.layers += 1;
            usage.bytes += item.bytes;
            for name in [MEMORY, PACKED_MEMORY] {
                usage.memory += below(&item.entry.folder.join(name));
            }
        }
        for base in self.list_bases()? {
            usage.bases += 1;
            usage.base_bytes += base.allocated;
        }
        let folders = ["digests", "traces", "exports"];
        usage.records = folders.iter().map(|name| below(&self.root.join(name))).sum();
        Ok(usage)
    }

    /// Returns the one layer whose ID begins with `prefix`.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn resolve(&self, prefix: &str) -> Result<LayerId, CacheError> {
        let ids = self.items()?;
        let ids = ids.iter().filter_map(Item::id).filter(|id| id.to_string().starts_with(prefix));
        let found: Vec<LayerId> = ids.collect();
        match found[..] {
            [id] if !prefix.is_empty() => Ok(id),
            [] => Err(CacheError::Unknown { prefix: prefix.into() }),
            _ => Err(CacheError::Ambiguous { prefix: prefix.into(), count: found.len() }),
        }
    }

    /// Removes a layer and all that is built on it.
    ///
    /// # Errors
    /// One of them is in use; then none goes, unless it came into use this very moment.
    pub fn remove(&self, id: LayerId) -> Result<Vec<Removed>, CacheError> {
        let items = self.items()?;
        let mut family = vec![id];
        let mut next = 0;
        while next < family.len() {
            let parent = Some(family[next]);
            let of = |item: &Item| item.record.as_ref().ok().and_then(|record| record.parent);
            let children = items.iter().filter(|item| of(item) == parent).filter_map(Item::id);
            let children: Vec<LayerId> = children.filter(|id| !family.contains(id)).collect();
            family.extend(children);
            next += 1;
        }
        let found = |id: LayerId| items.iter().find(move |item| item.id() == Some(id));
        let family: Vec<&Item> = family.into_iter().filter_map(found).collect();
        if let Some(used) = family.iter().find(|item| is_used(&item.entry.folder)) {
            return Err(CacheError::InUse { id: used.short() });
        }
        let mut removed = Vec::new();
        for item in family.iter().rev() {
            if !self.take(&item.entry.folder)? {
                return Err(CacheError::InUse { id: item.short() });
            }
            removed.push(item.removed("asked for"));
        }
        Ok(removed)
    }

    /// Removes all layers and bases that are not in use, and all digests, traces and records of exports. The
    /// store's SSH key and secret stay.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove_all(&self) -> Result<Vec<Removed>, CacheError> {
        let mut removed = Vec::new();
        for item in self.items()? {
            if self.take(&item.entry.folder)? {
                removed.push(item.removed("asked for"));
            }
        }
        for base in self.list_bases()? {
            if self.take(&base.folder)? {
                removed.push(base.removed("asked for"));
            }
        }
        for name in ["digests", "traces", "exports"] {
            let folder = self.root.join(name);
            for entry in fs::read_dir(&folder).map_err(CacheError::io("list", &folder))?.flatten() {
                let path = entry.path();
                fs::remove_file(&path).map_err(CacheError::io("remove", &path))?;
            }
        }
        Ok(removed)
    }

    /// Reads every byte of every layer, and throws away what is damaged. `told` hears each sound
    /// layer's title.
    ///
    /// # Errors
    /// The store cannot be read, or `cancel` was set.
    pub fn verify(
        &self,
        told: &mut dyn FnMut(LayerId, &str),
        cancel: &AtomicBool,
    ) -> Result<Verified, CacheError> {
        let mut discarded = Vec::new();
        let mut sound = Vec::new();
        for entry in entries(&self.layers())? {
            if cancel.load(Ordering::Relaxed) {
                return Err(CacheError::Cancelled);
            }
            let Some(layer) = self.open(&entry, cancel, &mut discarded, 0)? else {
                continue;
            };
            let mut record = layer.0.record.clone();
            match check_files(&entry.folder, &mut record, Depth::Full, cancel)? {
                Ok(_) => {
                    let bytes: u64 = record.files.iter().map(|file| file.length).sum();
                    sound.push((layer.id().short(), bytes));
                    told(layer.id(), layer.title());
                }
                Err(why) => {
                    drop(layer);
                    let failed = |error| CacheError::io("lock", &entry.folder)(error);
                    if let Some(hold) = Hold::shared(&entry.folder).map_err(failed)? {
                        let title = Some(record.title.clone());
                        self.discard(&entry, hold, title, &why, &mut discarded)?;
                    }
                }
            }
        }
        // What was sound itself may have gone with what it is built on.
        sound.retain(|(id, _)| !discarded.iter().any(|one: &Discarded| one.id == *id));
        let bytes = sound.iter().map(|(_, bytes)| bytes).sum();
        Ok(Verified { sound: sound.len(), bytes, discarded })
    }
}

fn listed(item: &Item) -> Option<Listed> {
    let record = item.record.as_ref().ok()?;
    let has = |name: &str| record.files.iter().any(|file| file.name == name);
    let memory = match (has(MEMORY), has(PACKED_MEMORY)) {
        (true, _) => Some(MemoryForm::Flat),
        (false, true) => Some(MemoryForm::Packed),
        (false, false) => None,
    };
    Some(Listed {
        id: record.id,
        key: record.key,
        parent: record.parent,
        kind: record.recipe.kind,
        title: record.title.clone(),
        created: record.created(),
        used: item.used,
        allocated: item.bytes,
        memory,
        in_use: is_used(&item.entry.folder),
        made_by: record.kvmbake.clone(),
    })
}

/// What a file, or all files below a folder, take on the disk, in bytes.
fn below(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| below(&entry.path())).sum()
        }
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    }
}
