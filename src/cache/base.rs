//! Base images that were downloaded or unpacked: one folder each in `bases/`, named by the SHA-256 of
//! the file as it came, so that whoever names the same file, by whatever checksum and from whatever
//! mirror, finds it.
//!
//! A folder holds `image`, ready to use, `base.json`, and `used` (see `lock.rs`). What is still coming
//! is gathered in `parts/`, under its key's lock, and stays there after a failure to be continued.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Cache;
use super::digest::Digest;
use super::envelope;
use super::error::CacheError;
use super::gc::Removed;
use super::layer::{allocated, mtime_ns};
use super::lock::{Hold, KeyLock, USED, is_used, last_used};
use super::scratch::Scratch;
use crate::checksum::{Algorithm, Checksum};

/// The version of the record; bases of another one are made again.
const FORMAT: u32 = 1;
const RECORD: &str = "base.json";
const IMAGE: &str = "image";
/// Digits of the SHA-256 that name the folder.
const DIGITS: usize = 32;
/// Digits that a person needs.
const SHORT: usize = 8;
/// When what was gathered of a file is given up.
const STALE: Duration = Duration::from_secs(7 * 86400);

/// What is known of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// What the file was called.
    name: String,
    /// Where it came from, when it was downloaded; without passwords.
    url: Option<String>,
    /// What told this version from others there.
    validator: Option<String>,
    /// All checksums of the file as it came.
    checksums: Vec<String>,
    /// How it was packed.
    packed: Option<String>,
    /// The image's length and mtime, and the digest of its content.
    length: u64,
    mtime_ns: i64,
    digest: Digest,
}

impl Record {
    fn checksum(&self, algorithm: Algorithm) -> Option<Checksum> {
        let mut all = self.checksums.iter().filter_map(|text| text.parse::<Checksum>().ok());
        all.find(|checksum| checksum.algorithm == algorithm)
    }
}

/// A base in use; nobody takes it away while this lives.
#[derive(Debug, Clone)]
pub struct Base {
    folder: PathBuf,
    record: Record,
    _hold: Arc<Hold>,
}

impl Base {
    /// Returns the image's path.
    pub fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// Returns a checksum of the file as it came.
    pub fn checksum(&self, algorithm: Algorithm) -> Option<Checksum> {
        self.record.checksum(algorithm)
    }

    /// Returns the URL that it came from, when it was downloaded.
    pub fn url(&self) -> Option<&str> {
        self.record.url.as_deref()
    }

    /// Returns what told its version from others at its URL.
    pub fn validator(&self) -> Option<&str> {
        self.record.validator.as_deref()
    }
}

/// What a file that came is told by.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// What the file is called.
    pub name: String,
    /// Where it was downloaded from, without passwords.
    pub url: Option<String>,
    /// What tells its version there.
    pub validator: Option<String>,
}

/// Writes an image to a path, and returns how the file that it came from was packed.
pub type Unpack<'a, E> = &'a mut dyn FnMut(&Path) -> Result<String, E>;

/// The right to bring one base into the store.
#[derive(Debug)]
pub struct Incoming {
    /// The file to gather it in.
    pub part: PathBuf,
    _lock: KeyLock,
}

/// A base in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBase {
    /// Its ID.
    pub id: String,
    /// What the file was called.
    pub name: String,
    /// Where it came from.
    pub url: Option<String>,
    /// The SHA-256 of the file as it came.
    pub sha256: String,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Whether somebody uses it right now.
    pub in_use: bool,
    pub(super) folder: PathBuf,
}

impl StoredBase {
    /// Returns the beginning of the ID.
    pub fn short(&self) -> String {
        self.id.chars().take(SHORT).collect()
    }

    pub(super) fn removed(&self, why: &'static str) -> Removed {
        let (id, title) = (self.short(), self.name.clone());
        Removed { id, title, bytes: self.allocated, why, base: true }
    }
}

impl Cache {
    /// Finds the base whose file has this checksum; one that is damaged is thrown away.
    ///
    /// # Errors
    /// The store cannot be read, or `cancel` was set.
    pub fn find_base(
        &self,
        checksum: &Checksum,
        cancel: &AtomicBool,
    ) -> Result<Option<Base>, CacheError> {
        let wanted = checksum.to_string();
        self.find_base_by(cancel, &|record| record.checksums.contains(&wanted))
    }

    /// Finds the youngest base that was downloaded from `url`.
    ///
    /// # Errors
    /// As [`Cache::find_base`].
    pub fn find_base_of(&self, url: &str, cancel: &AtomicBool) -> Result<Option<Base>, CacheError> {
        self.find_base_by(cancel, &|record| record.url.as_deref() == Some(url))
    }

    fn find_base_by(
        &self,
        cancel: &AtomicBool,
        fits: &dyn Fn(&Record) -> bool,
    ) -> Result<Option<Base>, CacheError> {
        let mut folders = self.base_folders()?;
        folders.sort_by_key(|folder| std::cmp::Reverse(last_used(folder)));
        for folder in folders {
            let Some(record) = read(&folder).filter(|record| fits(record)) else { continue };
            let hold = Hold::shared(&folder).map_err(CacheError::io("use", &folder))?;
            let Some(hold) = hold else { continue };
            if is_sound(&folder, &record, false, cancel)? {
                let _ = hold.touch(self.now());
                return Ok(Some(Base { folder, record, _hold: Arc::new(hold) }));
            }
            drop(hold);
            self.take(&folder)?;
        }
        Ok(None)
    }

    /// Takes the right to bring in the base that `key` names; `waits` hears when another process has
    /// it. The base may be there afterwards.
    ///
    /// # Errors
    /// The store cannot be written, or `cancel` was set.
    pub fn begin_base(
        &self,
        key: &str,
        waits: &mut dyn FnMut(Option<u32>),
        cancel: &AtomicBool,
    ) -> Result<Incoming, CacheError> {
        let name = Digest::of(key.as_bytes()).prefix(DIGITS);
        let path = self.locks().join(format!("base-{name}"));
        let lock = KeyLock::acquire(&path, waits, cancel).map_err(CacheError::io("lock", &path))?;
        let _lock = lock.ok_or(CacheError::Cancelled)?;
        Ok(Incoming { part: self.parts().join(name), _lock })
    }

    /// Brings the file at `came`, whose checksums are given, into the store. `unpack` writes the image to
    /// the path it is given and returns how the file was packed; without it the file is the image, and
    /// is moved.
    ///
    /// # Errors
    /// The store cannot be written, or `unpack` failed.
    pub fn publish_base<E: From<CacheError>>(
        &self,
        came: &Path,
        origin: Origin,
        checksums: &[Checksum],
        unpack: Option<Unpack<'_, E>>,
        cancel: &AtomicBool,
    ) -> Result<Base, E> {
        let scratch = Scratch::create(&self.tmp())?;
        let image = scratch.path(IMAGE);
        let failed = |error| CacheError::io("write", &image)(error);
        let packed = match unpack {
            Some(unpack) => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600).open(&image).map_err(failed)?;
                Some(unpack(&image)?)
            }
            None => {
                fs::rename(came, &image).map_err(failed)?;
                None
            }
        };
        fs::set_permissions(&image, fs::Permissions::from_mode(0o400)).map_err(failed)?;
        let file = File::open(&image).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let digest = Digest::of_file(&file, cancel).map_err(failed)?;
        let (digest, length) = digest.ok_or(CacheError::Cancelled)?;
        let mtime_ns = mtime_ns(&file.metadata().map_err(failed)?);
        let Origin { name, url, validator } = origin;
        let texts = checksums.iter().map(ToString::to_string).collect();
        let record = Record {
            format: FORMAT,
            name,
            url,
            validator,
            checksums: texts,
            packed,
            length,
            mtime_ns,
            digest,
        };
        let id = id_of(&record).ok_or_else(|| CacheError::Damaged {
            path: came.into(),
            why: "its checksum is not known".into(),
        })?;
        envelope::write(&scratch.path(RECORD), &record, true)?;
        let target = self.bases().join(id);
        // One that is there has the same content, or is damaged; what uses it keeps it.
        if target.exists() {
            self.take(&target)?;
        }
        let held = scratch.rename(&target).map_err(CacheError::io("create", &target))?;
        let hold = held.ok_or(CacheError::Cancelled)?;
        let synced = File::open(self.bases()).and_then(|folder| folder.sync_all());
        synced.map_err(CacheError::io("write", &self.bases()))?;
        Ok(Base { folder: target, record, _hold: Arc::new(hold) })
    }

    /// Lists the bases, the last used first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list_bases(&self) -> Result<Vec<StoredBase>, CacheError> {
        let mut bases = Vec::new();
        for folder in self.base_folders()? {
            let Some(record) = read(&folder) else { continue };
            let sha256 = record.checksum(Algorithm::Sha256).map(|sum| sum.to_string());
            bases.push(StoredBase {
                id: file_name(&folder),
                name: record.name,
                url: record.url,
                sha256: sha256.unwrap_or_default(),
                allocated: allocated(&folder),
                used: last_used(&folder),
                in_use: is_used(&folder),
                folder,
            });
        }
        bases.sort_by_key(|base| (std::cmp::Reverse(base.used), base.id.clone()));
        Ok(bases)
    }

    /// Removes a base.
    ///
    /// # Errors
    /// It is in use, or the store cannot be written.
    pub fn remove_base(&self, base: &StoredBase) -> Result<Removed, CacheError> {
        if self.take(&base.folder)? {
            Ok(base.removed("asked for"))
        } else {
            Err(CacheError::InUse { id: base.short() })
        }
    }

    /// Reads every base in full. Returns those that were damaged, and are gone.
    ///
    /// # Errors
    /// The store cannot be read, or `cancel` was set.
    pub fn verify_bases(
        &self,
        told: &mut dyn FnMut(&StoredBase),
        cancel: &AtomicBool,
    ) -> Result<Vec<StoredBase>, CacheError> {
        let mut damaged = Vec::new();
        for base in self.list_bases()? {
            let hold = Hold::shared(&base.folder).map_err(CacheError::io("use", &base.folder))?;
            let (Some(hold), Some(record)) = (hold, read(&base.folder)) else { continue };
            if is_sound(&base.folder, &record, true, cancel)? {
                told(&base);
                continue;
            }
            drop(hold);
            self.take(&base.folder)?;
            damaged.push(base);
        }
        Ok(damaged)
    }

    /// Removes what nothing can find any more: bases without a record, and parts given up.
    pub(super) fn sweep_bases(&self) -> Result<(), CacheError> {
        for folder in self.base_folders()? {
            if read(&folder).is_none() {
                self.take(&folder)?;
            }
        }
        let now = self.now();
        for entry in fs::read_dir(self.parts()).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|since| since > STALE)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn base_folders(&self) -> Result<Vec<PathBuf>, CacheError> {
        let folder = self.bases();
        let entries = fs::read_dir(&folder).map_err(CacheError::io("list", &folder))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    /// Where the bases are.
    fn bases(&self) -> PathBuf {
        self.root().join("bases")
    }

    /// Where files are gathered.
    pub(super) fn parts(&self) -> PathBuf {
        self.root().join("parts")
    }
}

/// Reads a base's record; `None` when it is not whole, which makes the base useless.
fn read(folder: &Path) -> Option<Record> {
    let record = envelope::read::<Record>(&folder.join(RECORD)).ok().flatten()?;
    let named = id_of(&record).is_some_and(|id| id == file_name(folder));
    (record.format == FORMAT && named && folder.join(USED).exists()).then_some(record)
}

fn id_of(record: &Record) -> Option<String> {
    let text = record.checksum(Algorithm::Sha256)?.to_string();
    Some(text.trim_start_matches("sha256:").chars().take(DIGITS).collect())
}

/// Whether the image is what the record says: by length and mtime, and by its content where these are
/// others or `full` is asked for.
fn is_sound(
    folder: &Path,
    record: &Record,
    full: bool,
    cancel: &AtomicBool,
) -> Result<bool, CacheError> {
    let path = folder.join(IMAGE);
    let Ok(file) = File::open(&path) else { return Ok(false) };
    let metadata = file.metadata().map_err(CacheError::io("read", &path))?;
    if metadata.len() != record.length {
        return Ok(false);
    }
    if !full && mtime_ns(&metadata) == record.mtime_ns {
        return Ok(true);
    }
    let digest = Digest::of_file(&file, cancel).map_err(CacheError::io("read", &path))?;
    Ok(digest.ok_or(CacheError::Cancelled)?.0 == record.digest)
}

fn file_name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
