//! Making a layer: one builder a key, in a folder of its own; digests, fsync and the rename into
//! the store run beside the guest. Whatever goes wrong leaves nothing, and the build may go on
//! without the layer.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Cache;
use super::envelope;
use super::error::CacheError;
use super::find::{Discarded, Lookup};
use super::layer::{
    DAMAGED, FileRecord, Inner, Layer, PACKED_MEMORY, RECORD, Record, Served, describe, new_id,
    settle,
};
use super::lock::{KeyLock, USED};
use super::recipe::{FORMAT, LayerId, LayerKey, Recipe};
use super::scratch::Scratch;

/// What [`Cache::begin`] gives.
#[derive(Debug)]
pub enum Begun {
    /// The layer is there; another build may have made it meanwhile.
    Found(Layer),
    /// It is this build's to make.
    Build(Building),
}

/// A layer under way. Dropping it removes what was written.
#[derive(Debug)]
pub struct Building {
    cache: Cache,
    scratch: Scratch,
    lock: KeyLock,
    key: LayerKey,
    parent: Option<LayerId>,
    recipe: Recipe,
}

/// What is told of a layer when it is published.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// What a person calls it.
    pub title: String,
    /// What the guest fetched from the served folder while it was made, in any order.
    pub served: Vec<Served>,
}

/// The layer that another one is built on.
#[derive(Debug)]
pub enum Parent {
    /// None: it is a first layer.
    None,
    /// One that is in the store.
    Layer(Layer),
    /// One that is on its way there.
    Pending(Publishing),
}

impl Parent {
    /// Returns its ID.
    pub fn id(&self) -> Option<LayerId> {
        match self {
            Parent::None => None,
            Parent::Layer(layer) => Some(layer.id()),
            Parent::Pending(pending) => Some(pending.id),
        }
    }
}

impl From<Option<&Layer>> for Parent {
    fn from(layer: Option<&Layer>) -> Parent {
        layer.cloned().map_or(Parent::None, Parent::Layer)
    }
}

impl Cache {
    /// Takes the right to build a layer. While another build has it, this waits: `waits` hears that
    /// build's process number, when it is known. After the wait the layer is looked for again, so
    /// that one build makes it and all use it.
    ///
    /// # Errors
    /// The store cannot be written, or `cancel` was set.
    pub fn begin(
        &self,
        lookup: &Lookup<'_>,
        waits: &mut dyn FnMut(Option<u32>),
    ) -> Result<(Begun, Vec<Discarded>), CacheError> {
        let key = lookup.key();
        let path = self.locks().join(key.to_string());
        let lock = KeyLock::acquire(&path, waits, lookup.cancel)
            .map_err(CacheError::io("lock", &path))?
            .ok_or(CacheError::Cancelled)?;
        let found = self.find(lookup)?;
        let begun = match found.result {
            Ok(layer) => Begun::Found(layer),
            Err(_) => Begun::Build(Building {
                cache: self.clone(),
                scratch: self.scratch()?,
                lock,
                key,
                parent: lookup.parent,
                recipe: lookup.recipe.clone(),
            }),
        };
        Ok((begun, found.discarded))
    }
}

impl Building {
    /// Returns the folder that the layer's files are to be written to.
    pub fn folder(&self) -> &Path {
        self.scratch.folder()
    }

    /// Returns where to write the file of this name, e.g. [`DISK`](super::DISK).
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Returns the layer's key.
    pub fn key(&self) -> LayerKey {
        self.key
    }

    /// Completes the layer on a thread of its own: digests, fsync, record, rename. All files in the
    /// folder become the layer's; none may be written from now on, though open ones can be read.
    /// `parent` is the layer that it was begun on; one that is still on its way is waited for there.
    ///
    /// # Errors
    /// The parent is another one, or what the guest fetched changed while the layer was made. What
    /// fails later is told by [`Publishing::wait`].
    pub fn publish(self, meta: Meta, parent: impl Into<Parent>) -> Result<Publishing, CacheError> {
        let parent = parent.into();
        let given = parent.id();
        if given != self.parent {
            let name = |id: Option<LayerId>| id.map_or("nothing".into(), |id| id.short());
            return Err(CacheError::Parent { expected: name(self.parent), given: name(given) });
        }
        let served = settle(meta.served)?;
        let id = new_id(self.key, &served).map_err(CacheError::io("name", self.folder()))?;
        // Who stops this one stops the one it waits for.
        let cancel = match &parent {
            Parent::Pending(pending) => Arc::clone(&pending.cancel),
            Parent::None | Parent::Layer(_) => Arc::default(),
        };
        let (key, stop) = (self.key, Arc::clone(&cancel));
        let folder = self.folder().to_path_buf();
        let thread = std::thread::Builder::new()
            .name("publish".into())
            .spawn(move || {
                yield_to_the_guest();
                self.complete(id, meta.title, served, parent, &stop)
            })
            .map_err(CacheError::io("start a thread for", &folder))?;
        Ok(Publishing { id, key, cancel, thread: Some(thread) })
    }

    fn complete(
        self,
        id: LayerId,
        title: String,
        served: Vec<Served>,
        parent: Parent,
        cancel: &AtomicBool,
    ) -> Result<Layer, CacheError> {
        let parent = match parent {
            Parent::None => None,
            Parent::Layer(layer) => Some(layer),
            Parent::Pending(pending) => Some(pending.wait()?),
        };
        let files = self.describe_files(cancel)?;
        let Building { cache, scratch, lock, key, recipe, .. } = self;
        let now = cache.now();
        let created = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            format: FORMAT,
            id,
            key,
            parent: parent.as_ref().map(Layer::id),
            recipe,
            served,
            title,
            created_ms: u64::try_from(created.as_millis()).unwrap_or(u64::MAX),
            kvmbake: env!("CARGO_PKG_VERSION").into(),
            files,
        };
        envelope::write(&scratch.path(RECORD), &record, true)?;
        sync_folder(scratch.folder())?;
        if cancel.load(Ordering::Relaxed) {
            return Err(CacheError::Cancelled);
        }
        let target = cache.layers().join(record.folder_name());
        let failed = |error| CacheError::io("rename a layer to", &target)(error);
        let hold = scratch.rename(&target).map_err(failed)?;
        let hold = hold.ok_or_else(|| failed(std::io::Error::other("it is held by nobody")))?;
        // A layer that a power cut takes back is built again: what it held was synced before.
        if let Err(error) = sync_folder(&cache.layers()) {
            tracing::warn!("{error}");
        }
        let _ = hold.touch(now);
        drop(lock);
        Ok(Layer(Arc::new(Inner { folder: target, record, parent, hold })))
    }

    /// Makes each file private and durable, and computes its digest.
    fn describe_files(&self, cancel: &AtomicBool) -> Result<Vec<FileRecord>, CacheError> {
        let folder = self.folder();
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(CacheError::io("list", folder))? {
            let entry = entry.map_err(CacheError::io("list", folder))?;
            let path = entry.path();
            let foreign = |why| CacheError::Foreign { path: path.clone(), why };
            let name =
                entry.file_name().into_string().map_err(|_| foreign("its name is no text"))?;
            if name == USED {
                continue;
            }
            if [RECORD, DAMAGED, PACKED_MEMORY].contains(&name.as_str()) {
                return Err(foreign("the cache itself has a file of this name"));
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                return Err(foreign("it is not a regular file"));
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                .map_err(CacheError::io("protect", &path))?;
            let (file, record) = describe(folder, &name, cancel)?;
            file.sync_all().map_err(CacheError::io("write", &path))?;
            files.push(record);
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(files)
    }
}

/// Lets the threads of the guest go first: this one, and those that it starts, get what is left.
fn yield_to_the_guest() {
    const NICE: libc::c_int = 10;
    // SAFETY: the call takes no memory. On Linux, 0 is the calling thread alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

fn sync_folder(folder: &Path) -> Result<(), CacheError> {
    let synced = File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(CacheError::io("write", folder))
}

/// A layer on its way into the store. Its ID is known, so what is built on it can begin. Dropping
/// it stops the work, and leaves no layer unless that was already there.
#[derive(Debug)]
pub struct Publishing {
    id: LayerId,
    key: LayerKey,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Layer, CacheError>>>,
}

impl Publishing {
    /// Returns the ID that the layer will have.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Returns the layer's key.
    pub fn key(&self) -> LayerKey {
        self.key
    }

    /// Returns whether [`Publishing::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the layer is in the store.
    ///
    /// # Errors
    /// What went wrong, e.g. a full disk; nothing is left of the layer then.
    pub fn wait(mut self) -> Result<Layer, CacheError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(CacheError::Cancelled),
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.cancel.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}
