//! Keeping the store within its limit.
//!
//! What nothing can find any more always goes: layers whose parent is gone, layers that were made
//! again, records of another version. Then, while the store is above its limit, the memory of layers
//! that rest is compressed, and after that layers and bases go, the least recently used first, a layer
//! never before those that are built on it. Nothing in use is touched.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::Cache;
use super::base::StoredBase;
use super::envelope;
use super::error::CacheError;
use super::exports::Records;
use super::find::is_lost;
use super::layer::{DAMAGED, Entry, ID_DIGITS, RECORD, Record, allocated, entries};
use super::lock::{Hold, KeyLock, USED, last_used, remove_dead_locks};
use super::recipe::{FORMAT, LayerId};
use super::scratch::{remove_dead, take_away};
use crate::profile::units::parse_size;

/// The limit when nobody says another, in bytes.
pub const DEFAULT_LIMIT: u64 = 20 << 30;
/// How long a layer must not have been used before its memory is compressed.
const RESTING: Duration = Duration::from_secs(3600);
/// When what can be computed again, and was not for so long, is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(90 * 86400);
/// When a file that was being written beside another one is nobody's any more.
const STRAY: Duration = Duration::from_secs(86400);

/// What a collection is to do.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// What all layers and bases together may take on the disk, in bytes.
    pub bytes: u64,
    /// Whether memory may be compressed, which takes its time.
    pub pack: bool,
    /// Stops it.
    pub cancel: &'a AtomicBool,
}

/// A layer or a base that a collection or a person removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The beginning of its ID, 8 digits.
    pub id: String,
    /// Its title, when its record could be read.
    pub title: String,
    /// What that freed, in bytes.
    pub bytes: u64,
    /// Why.
    pub why: &'static str,
    /// Whether it was a base.
    pub base: bool,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What layers and bases took before, in bytes.
    pub before: u64,
    /// What they take now.
    pub after: u64,
    /// The layers and bases that went.
    pub removed: Vec<Removed>,
    /// The short IDs of the layers whose memory was compressed, and what each freed.
    pub packed: Vec<(String, u64)>,
}

/// Returns the limit that `$KVMBAKE_CACHE_LIMIT` names, or [`DEFAULT_LIMIT`].
///
/// # Errors
/// The variable holds no size.
pub fn limit_from_environment() -> Result<u64, CacheError> {
    match std::env::var("KVMBAKE_CACHE_LIMIT") {
        Err(_) => Ok(DEFAULT_LIMIT),
        Ok(text) => parse_size(&text).map_err(|why| CacheError::Limit { why }),
    }
}

/// A layer as a collection sees it.
pub(super) struct Item {
    pub entry: Entry,
    pub record: Result<Record, &'static str>,
    pub bytes: u64,
    pub used: SystemTime,
}

impl Item {
    pub fn id(&self) -> Option<LayerId> {
        self.record.as_ref().ok().map(|record| record.id)
    }

    fn parent(&self) -> Option<LayerId> {
        self.record.as_ref().ok().and_then(|record| record.parent)
    }
}

impl Cache {
    /// Brings the store within its limit, as far as what is in use allows.
    ///
    /// # Errors
    /// The store cannot be read or written, or `cancel` was set.
    pub fn gc(&self, limits: &Limits<'_>) -> Result<Collected, CacheError> {
        let path = self.locks().join("gc");
        let lock = KeyLock::acquire(&path, &mut |_| {}, limits.cancel)
            .map_err(CacheError::io("lock", &path))?
            .ok_or(CacheError::Cancelled)?;
        remove_dead(&self.tmp());
        remove_dead_locks(&self.locks());
        let mut items = self.items()?;
        self.sweep_bases()?;
        let mut bases = self.list_bases()?;
        let before = total(&items) + total_of_bases(&bases);
        let mut done = Collected { before, ..Collected::default() };
        items.iter().for_each(remove_strays);
        self.remove_garbage(&mut items, &mut done.removed)?;
        if limits.pack {
            self.pack_resting(&mut items, &bases, limits, &mut done.packed)?;
        }
        self.evict(&mut items, &mut bases, limits, &mut done.removed)?;
        self.sweep(&items);
        done.after = total(&items) + total_of_bases(&bases);
        drop(lock);
        Ok(done)
    }

    /// Reads all layers' records, without a look at their files.
    pub(super) fn items(&self) -> Result<Vec<Item>, CacheError> {
        let mut items = Vec::new();
        for entry in entries(&self.layers())? {
            let record = match envelope::read::<Record>(&entry.folder.join(RECORD)) {
                _ if entry.folder.join(DAMAGED).exists() => Err("damaged"),
                Ok(Some(record)) if record.format != FORMAT => Err("of another version"),
                Ok(Some(record)) if record.folder_name() == entry.name() => Ok(record),
                // Another process has just taken it away.
                Ok(None) if !entry.folder.exists() => continue,
                Ok(_) | Err(CacheError::Damaged { .. }) => Err("damaged"),
                Err(CacheError::Io { source, .. }) if is_lost(&source) => Err("damaged"),
                Err(error) => return Err(error),
            };
            let (bytes, used) = (allocated(&entry.folder), last_used(&entry.folder));
            items.push(Item { entry, record, bytes, used });
        }
        Ok(items)
    }

    /// Takes a layer away unless it is in use. Returns whether it did, or found it gone.
    pub(super) fn take(&self, folder: &Path) -> Result<bool, CacheError> {
        let failed = |error| CacheError::io("remove", folder)(error);
        match Hold::exclusive(folder).map_err(failed)? {
            Some(alone) => {
                take_away(folder, &self.tmp()).map_err(failed)?;
                drop(alone);
                Ok(true)
            }
            // A layer without its lock's file cannot be in use: whoever uses one has it open.
            None if folder.exists() && !folder.join(USED).exists() => {
                take_away(folder, &self.tmp()).map_err(failed)?;
                Ok(true)
            }
            None => Ok(!folder.exists()),
        }
    }

    fn remove_garbage(
        &self,
        items: &mut Vec<Item>,
        removed: &mut Vec<Removed>,
    ) -> Result<(), CacheError> {
        loop {
            // Listed after the items, so that a parent which came meanwhile is no missing one.
            let stored: HashSet<_> =
                entries(&self.layers())?.into_iter().map(|entry| entry.id).collect();
            let garbage = garbage(items, &stored);
            let mut went = HashSet::new();
            for (index, why) in garbage {
                if self.take(&items[index].entry.folder)? {
                    removed.push(items[index].removed(why));
                    went.insert(index);
                }
            }
            if went.is_empty() {
                return Ok(());
            }
            let mut index = 0;
            items.retain(|_| {
                index += 1;
                !went.contains(&(index - 1))
            });
        }
    }

    fn pack_resting(
        &self,
        items: &mut [Item],
        bases: &[StoredBase],
        limits: &Limits<'_>,
        packed: &mut Vec<(String, u64)>,
    ) -> Result<(), CacheError> {
        let now = self.now();
        items.sort_by_key(|item| item.used);
        let mut sum = total(items) + total_of_bases(bases);
        for item in items.iter_mut() {
            let rests = now.duration_since(item.used).is_ok_and(|since| since >= RESTING);
            if sum <= limits.bytes || !rests {
                break;
            }
            let freed = match self.pack(&item.entry.folder, limits.cancel) {
                Ok(freed) => freed,
                Err(CacheError::Cancelled) => return Err(CacheError::Cancelled),
                // Without room to compress, or damaged: it can still be removed.
                Err(error) => {
                    tracing::warn!("{error}");
                    0
                }
            };
            if freed > 0 {
                packed.push((item.short(), freed));
                let bytes = allocated(&item.entry.folder);
                sum = sum.saturating_sub(item.bytes) + bytes;
                item.bytes = bytes;
            }
        }
        Ok(())
    }

    fn evict(
        &self,
        items: &mut Vec<Item>,
        bases: &mut Vec<StoredBase>,
        limits: &Limits<'_>,
        removed: &mut Vec<Removed>,
    ) -> Result<(), CacheError> {
        let mut sum = total(items) + total_of_bases(bases);
        let mut stuck: HashSet<PathBuf> = HashSet::new();
        while sum > limits.bytes {
            if limits.cancel.load(Ordering::Relaxed) {
                return Err(CacheError::Cancelled);
            }
            let parents: HashSet<_> = items.iter().filter_map(Item::parent).collect();
            let leaf = |item: &Item| item.id().is_none_or(|id| !parents.contains(&id));
            let candidates = items.iter().enumerate();
            let candidates = candidates
                .filter(|(_, item)| leaf(item) && !stuck.contains(&item.entry.folder))
                // What was used in the same moment goes by name, so that it is the same everywhere.
                .min_by_key(|(_, item)| (item.used, item.entry.id.clone()));
            let oldest = bases.iter().enumerate().filter(|(_, base)| !stuck.contains(&base.folder));
            let oldest = oldest.min_by_key(|(_, base)| (base.used, base.id.clone()));
            if let Some((index, base)) = oldest
                && candidates.is_none_or(|(_, item)| base.used < item.used)
            {
                if self.take(&base.folder)? {
                    removed.push(base.removed("least recently used"));
                    sum = sum.saturating_sub(base.allocated);
                    bases.swap_remove(index);
                } else {
                    stuck.insert(base.folder.clone());
                }
                continue;
            }
            let Some((index, item)) = candidates else { break };
            if self.take(&item.entry.folder)? {
                removed.push(item.removed("least recently used"));
                sum = sum.saturating_sub(item.bytes);
                items.swap_remove(index);
            } else {
                stuck.insert(item.entry.folder.clone());
            }
        }
        Ok(())
    }

    /// Forgets what is of no use any more beside the layers.
    fn sweep(&self, items: &[Item]) {
        let now = self.now();
        let older = |path: &Path, age: Duration| {
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|since| since > age))
        };
        let known: HashSet<_> = items.iter().filter_map(Item::id).collect();
        for name in ["digests", "traces", "exports", "ssh", "."] {
            let folder = self.root.join(name);
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let stray = path.extension().is_some_and(|extension| extension == "new");
                let useless = match name {
                    _ if stray => older(&path, STRAY),
                    "digests" | "traces" => older(&path, FORGOTTEN),
                    "exports" => envelope::read::<Records>(&path)
                        .is_ok_and(|found| found.is_some_and(|one| !known.contains(&one.layer))),
                    _ => false,
                };
                if useless {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
}

impl Item {
    pub fn short(&self) -> String {
        self.entry.id.chars().take(8).collect()
    }

    pub fn removed(&self, why: &'static str) -> Removed {
        let title = self.record.as_ref().map_or(String::new(), |record| record.title.clone());
        Removed { id: self.short(), title, bytes: self.bytes, why, base: false }
    }
}

fn total(items: &[Item]) -> u64 {
    items.iter().map(|item| item.bytes).sum()
}

fn total_of_bases(bases: &[StoredBase]) -> u64 {
    bases.iter().map(|base| base.allocated).sum()
}

/// Returns the indices of the layers that nothing can find any more.
fn garbage(items: &[Item], stored: &HashSet<String>) -> Vec<(usize, &'static str)> {
    let bad: HashSet<_> =
        items.iter().filter(|item| item.record.is_err()).map(|item| &item.entry.id).collect();
    let is_gone = |id: LayerId| {
        let name = id.digest().prefix(ID_DIGITS);
        !stored.contains(&name) || bad.contains(&name)
    };
    let mut newest: HashMap<_, (u64, LayerId)> = HashMap::new();
    for record in items.iter().filter_map(|item| item.record.as_ref().ok()) {
        let this = (record.created_ms, record.id);
        let best = newest.entry((record.key, record.served.clone())).or_insert(this);
        *best = this.max(*best);
    }
    let judge = |item: &Item| match &item.record {
        Err(why) => Some(*why),
        Ok(record) if record.parent.is_some_and(is_gone) => Some("what it was built on is gone"),
        Ok(record) => {
            let best = newest.get(&(record.key, record.served.clone()));
            best.is_some_and(|(_, id)| *id != record.id).then_some("made again since")
        }
    };
    let judged = items.iter().enumerate();
    judged.filter_map(|(index, item)| judge(item).map(|why| (index, why))).collect()
}

/// Removes what a process that was killed left in a layer's folder.
fn remove_strays(item: &Item) {
    let Ok(record) = &item.record else { return };
    let is_known = |name: &str| {
        [USED, RECORD, DAMAGED].contains(&name) || record.files.iter().any(|file| file.name == name)
    };
    let strays: Vec<PathBuf> = fs::read_dir(&item.entry.folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !is_known(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    if strays.is_empty() {
        return;
    }
    if let Ok(Some(alone)) = Hold::exclusive(&item.entry.folder) {
        // The record may be a newer one than was read.
        let now = envelope::read::<Record>(&item.entry.folder.join(RECORD));
        if now.is_ok_and(|now| now.as_ref() == Some(record)) {
            strays.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        drop(alone);
    }
}
