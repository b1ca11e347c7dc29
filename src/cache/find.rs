//! Looking a layer up: by its key, and by what the guest fetched while it was made. A layer that
//! turns out damaged is thrown away with all that is built on it, and the caller is told.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::Cache;
use super::digest::Digest;
use super::envelope;
use super::error::CacheError;
use super::layer::{
    DAMAGED, Depth, Entry, ID_DIGITS, Inner, KEY_DIGITS, Layer, RECORD, Record, check_files,
    entries,
};
use super::lock::Hold;
use super::recipe::{FORMAT, LayerId, LayerKey, Recipe};
use super::scratch::take_away;

/// Longest chain of layers; a longer one is no profile's.
const MAXIMUM_CHAIN: usize = 4096;

/// What is looked for.
#[derive(Clone, Copy)]
pub struct Lookup<'a> {
    /// The layer it is built on; `None` for the first.
    pub parent: Option<LayerId>,
    /// What makes it.
    pub recipe: &'a Recipe,
    /// How old it may be. Zero means that none will do: the layer is built anew.
    pub max_age: Option<Duration>,
    /// Returns the digest of what the guest would be served now for a path; `None` where it would
    /// get nothing.
    pub served: &'a dyn Fn(&str) -> Option<Digest>,
    /// Stops long work.
    pub cancel: &'a AtomicBool,
}

impl Lookup<'_> {
    /// Returns the key that the layer has.
    pub fn key(&self) -> LayerKey {
        self.recipe.key(self.parent)
    }
}

/// A layer that was thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// The beginning of its ID, 8 digits.
    pub id: String,
    /// Its title, when its record could be read.
    pub title: Option<String>,
    /// Why, as a sentence without its full stop.
    pub why: String,
}

impl fmt::Display for Discarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.id)?;
        if let Some(title) = &self.title {
            write!(f, " ({title})")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Why there is no layer to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// No layer has the key.
    Absent,
    /// The layer is older than it may be.
    Expired {
        /// How old it is.
        age: Duration,
        /// How old it may be.
        max_age: Duration,
    },
    /// What the guest fetched then, it would not get now.
    Served {
        /// The path as the guest asked for it.
        path: String,
        /// What it got.
        was: Option<Digest>,
        /// What it would get.
        is: Option<Digest>,
    },
    /// The layer was damaged.
    Damaged {
        /// In which way.
        why: String,
    },
}

/// What a lookup gives.
#[derive(Debug)]
pub struct Found {
    /// The layer, or why there is none.
    pub result: Result<Layer, Miss>,
    /// What was thrown away on the way.
    pub discarded: Vec<Discarded>,
}

impl Cache {
    /// Looks for a layer, checks it and all it is built on, and notes their use.
    ///
    /// The check is a cheap one: the record's digest, the files' lengths and times; where a time is
    /// another, the content's digest. A layer in use is never taken away under its user.
    ///
    /// # Errors
    /// The store cannot be read, or `cancel` was set. A damaged layer is no error.
    pub fn find(&self, lookup: &Lookup<'_>) -> Result<Found, CacheError> {
        let key = lookup.key();
        let prefix = key.0.prefix(KEY_DIGITS);
        let now = self.now();
        let mut discarded = Vec::new();
        let mut layers: Vec<Layer> = Vec::new();
        for entry in entries(&self.layers())?.iter().filter(|entry| entry.key == prefix) {
            if let Some(layer) = self.open(entry, lookup.cancel, &mut discarded, 0)?
                && layer.key() == key
                && layer.parent().map(Layer::id) == lookup.parent
            {
                layers.push(layer);
            }
        }
        layers.sort_by_key(|layer| std::cmp::Reverse((layer.0.record.created_ms, layer.id())));
        // The newest one's reason is told, as that is the one that the user made last.
        let mut miss = None;
        for layer in layers {
            match unfit(&layer.0.record, lookup, now) {
                None => {
                    for layer in layer.chain() {
                        // Not knowing the time of a use only makes an eviction less wise.
                        let _ = layer.0.hold.touch(now);
                    }
                    return Ok(Found { result: Ok(layer), discarded });
                }
                Some(why) => miss = miss.or(Some(why)),
            }
        }
        let miss = miss.unwrap_or_else(|| {
            let id = discarded.first();
            id.map_or(Miss::Absent, |gone| Miss::Damaged { why: gone.to_string() })
        });
        Ok(Found { result: Err(miss), discarded })
    }

    /// Returns the layer with this ID; `None` when it is gone.
    ///
    /// # Errors
    /// The store cannot be read, or `cancel` was set.
    pub fn layer(
        &self,
        id: LayerId,
        cancel: &AtomicBool,
    ) -> Result<(Option<Layer>, Vec<Discarded>), CacheError> {
        let mut discarded = Vec::new();
        let layer = self.open_by_id(id, cancel, &mut discarded, 0)?;
        if let Some(layer) = &layer {
            let now = self.now();
            layer.chain().iter().for_each(|layer| drop(layer.0.hold.touch(now)));
        }
        Ok((layer, discarded))
    }

    /// Throws a layer away, and all that is built on it, because its user found that it is not what
    /// it should be. While somebody else uses it, it only is not found any more.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn throw_away(&self, layer: Layer, why: &str) -> Result<Vec<Discarded>, CacheError> {
        let folder = layer.0.folder.clone();
        let title = Some(layer.title().to_string());
        drop(layer);
        let mut discarded = Vec::new();
        let entry = entries(&self.layers())?.into_iter().find(|entry| entry.folder == folder);
        let hold = Hold::shared(&folder).map_err(CacheError::io("lock", &folder))?;
        if let (Some(entry), Some(hold)) = (entry, hold) {
            self.discard(&entry, hold, title, why, &mut discarded)?;
        }
        Ok(discarded)
    }

    fn open_by_id(
        &self,
        id: LayerId,
        cancel: &AtomicBool,
        discarded: &mut Vec<Discarded>,
        level: usize,
    ) -> Result<Option<Layer>, CacheError> {
        let prefix = id.0.prefix(ID_DIGITS);
        for entry in entries(&self.layers())?.iter().filter(|entry| entry.id == prefix) {
            if let Some(layer) = self.open(entry, cancel, discarded, level)?
                && layer.id() == id
            {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// Holds, reads and checks the layer and all it is built on. `None` when it cannot be used;
    /// what was thrown away is added to `discarded`.
    pub(super) fn open(
        &self,
        entry: &Entry,
        cancel: &AtomicBool,
        discarded: &mut Vec<Discarded>,
        level: usize,
    ) -> Result<Option<Layer>, CacheError> {
        let folder = &entry.folder;
        let failed = |error| CacheError::io("lock", folder)(error);
        let Some(hold) = Hold::shared(folder).map_err(failed)? else { return Ok(None) };
        if folder.join(DAMAGED).exists() {
            return self.take_marked(entry, hold);
        }
        let mut record = match envelope::read::<Record>(&folder.join(RECORD)) {
            Ok(Some(record)) if record.format != FORMAT => return Ok(None),
            Ok(Some(record)) if record.folder_name() == entry.name() => record,
            Ok(Some(_)) => {
                return self.discard(entry, hold, None, "its record is another's", discarded);
            }
            Ok(None) => return self.discard(entry, hold, None, "its record is missing", discarded),
            Err(CacheError::Damaged { why, .. }) => {
                let why = format!("its record is damaged: {why}");
                return self.discard(entry, hold, None, &why, discarded);
            }
            Err(CacheError::Io { action: "read", source, .. }) if is_lost(&source) => {
                let why = format!("its record cannot be read: {source}");
                return self.discard(entry, hold, None, &why, discarded);
            }
            Err(error) => return Err(error),
        };
        let title = Some(record.title.clone());
        let parent = match record.parent {
            None => None,
            Some(id) if level < MAXIMUM_CHAIN => {
                match self.open_by_id(id, cancel, discarded, level + 1)? {
                    Some(parent) => Some(parent),
                    None => {
                        // Marked when its parent was thrown away just now.
                        if folder.join(DAMAGED).exists() {
                            return self.take_marked(entry, hold);
                        }
                        let why = format!("the layer {} that it is built on is gone", id.short());
                        return self.discard(entry, hold, title, &why, discarded);
                    }
                }
            }
            Some(_) => return self.discard(entry, hold, title, "its chain has no end", discarded),
        };
        match check_files(folder, &mut record, Depth::Quick, cancel)? {
            Ok(false) => {}
            Ok(true) => {
                // Costs only another full look next time when it fails.
                if let Err(error) = envelope::write(&folder.join(RECORD), &record, true) {
                    tracing::warn!("{error}");
                }
            }
            Err(why) => return self.discard(entry, hold, title, &why, discarded),
        }
        let folder = folder.clone();
        Ok(Some(Layer(Arc::new(Inner { folder, record, parent, hold }))))
    }

    /// Takes a layer away that was in use when it was found to be damaged, once nobody uses it.
    fn take_marked(&self, entry: &Entry, hold: Hold) -> Result<Option<Layer>, CacheError> {
        let failed = |error| CacheError::io("throw away", &entry.folder)(error);
        if let Some(alone) = hold.alone().map_err(failed)? {
            take_away(&entry.folder, &self.tmp()).map_err(failed)?;
            drop(alone);
        }
        Ok(None)
    }

    /// Throws a layer and all that is built on it away. One that is in use by another process stays
    /// where it is, marked, until that has ended.
    pub(super) fn discard(
        &self,
        entry: &Entry,
        hold: Hold,
        title: Option<String>,
        why: &str,
        discarded: &mut Vec<Discarded>,
    ) -> Result<Option<Layer>, CacheError> {
        let failed = |error| CacheError::io("throw away", &entry.folder)(error);
        match hold.alone().map_err(failed)? {
            Some(alone) => {
                take_away(&entry.folder, &self.tmp()).map_err(failed)?;
                drop(alone);
            }
            None => match std::fs::write(entry.folder.join(DAMAGED), why) {
                // Without the mark it is found out again by the next one.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("Cannot mark {}: {error}", entry.folder.display());
                }
                _ => {}
            },
        }
        let id: String = entry.id.chars().take(8).collect();
        discarded.push(Discarded { id: id.clone(), title, why: why.to_string() });
        for child in entries(&self.layers())? {
            let record = envelope::read::<Record>(&child.folder.join(RECORD)).ok().flatten();
            let Some(record) = record else { continue };
            let ours = |parent: LayerId| parent.0.prefix(ID_DIGITS) == entry.id;
            if record.parent.is_some_and(ours)
                && !child.folder.join(DAMAGED).exists()
                && let Some(hold) = Hold::shared(&child.folder).map_err(failed)?
            {
                let why = format!("the layer {id} that it is built on was thrown away");
                self.discard(&child, hold, Some(record.title), &why, discarded)?;
            }
        }
        Ok(None)
    }
}

impl Entry {
    /// Returns the folder's name.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.key, self.id)
    }
}

/// Whether the disk has lost what it was given, rather than the process lacking something.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG))
}

/// Returns why a sound layer is not the one that is wanted.
fn unfit(record: &Record, lookup: &Lookup<'_>, now: std::time::SystemTime) -> Option<Miss> {
    for served in &record.served {
        let is = (lookup.served)(&served.path);
        if is != served.digest {
            return Some(Miss::Served { path: served.path.clone(), was: served.digest, is });
        }
    }
    let max_age = lookup.max_age?;
    let age = record.age(now);
    (max_age.is_zero() || age > max_age).then_some(Miss::Expired { age, max_age })
}
