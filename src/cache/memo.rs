//! Digests of large files, remembered as long as the files are untouched.
//!
//! A file is taken for untouched while device, inode, length, mtime and ctime are the same. A change
//! within the clock's grain of the last one would leave all five as they were, so nothing is kept of
//! a file that changed within the last two seconds (git guards its index alike). ctime cannot be set
//! back by anybody, so a tool that restores mtime does not mislead this.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Cache;
use super::digest::Digest;
use super::envelope;
use super::error::CacheError;
use super::layer::mtime_ns;
use crate::checksum::{self, Algorithm, Checksum};

/// How long ago the last change must be.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a file that changes meanwhile is read again.
const TRIES: usize = 3;

/// What tells that a file is the same and untouched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub device: u64,
    pub inode: u64,
    pub length: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

impl Identity {
    pub fn of(metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            mtime_ns: mtime_ns(metadata),
            ctime_ns: metadata
                .ctime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.ctime_nsec()),
        }
    }

    /// Returns whether a change after `now` would show in the ctime.
    fn is_settled(&self, now: SystemTime) -> bool {
        let limit = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = limit.saturating_sub(SETTLED).as_nanos();
        i64::try_from(limit).is_ok_and(|limit| self.ctime_ns < limit)
    }
}

#[derive(Serialize, Deserialize)]
struct Memo<T> {
    identity: Identity,
    value: T,
}

impl Cache {
    /// Returns the digest of the file at `path`, computed only when the file is not the one that it
    /// was computed for.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, keeps changing, or `cancel` was set.
    pub fn file_digest(&self, path: &Path, cancel: &AtomicBool) -> Result<Digest, CacheError> {
        self.remembered(path, "blake3", || {
            let file = File::open(path)?;
            Ok(Digest::of_file(&file, cancel)?.map(|(digest, _)| digest))
        })
    }

    /// Returns a checksum of the file at `path`, as [`Cache::file_digest`] does.
    ///
    /// # Errors
    /// As [`Cache::file_digest`].
    pub fn file_checksum(
        &self,
        path: &Path,
        algorithm: Algorithm,
        cancel: &AtomicBool,
    ) -> Result<Checksum, CacheError> {
        let name = match algorithm {
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        let text = self.remembered(path, name, || {
            let checksum = checksum::of_file(path, algorithm, cancel)?;
            Ok(checksum.map(|checksum| checksum.to_string()))
        })?;
        text.parse().map_err(|why| CacheError::Damaged { path: path.into(), why })
    }

    fn remembered<T: Serialize + DeserializeOwned>(
        &self,
        path: &Path,
        kind: &str,
        mut compute: impl FnMut() -> io::Result<Option<T>>,
    ) -> Result<T, CacheError> {
        for _ in 0..TRIES {
            let now = self.now();
            let identity = identify(path)?;
            let memo = self.memo(&identity, kind);
            // What cannot be read is computed: a memo is never worth an error.
            if let Ok(Some(found)) = envelope::read::<Memo<T>>(&memo)
                && found.identity == identity
            {
                return Ok(found.value);
            }
            let value = compute().map_err(CacheError::io("read", path))?;
            let value = value.ok_or(CacheError::Cancelled)?;
            if identify(path)? != identity {
                continue;
            }
            if !identity.is_settled(now) {
                return Ok(value);
            }
            let found = Memo { identity, value };
            if let Err(error) = envelope::write(&memo, &found, false) {
                tracing::debug!("{error}");
            }
            return Ok(found.value);
        }
        Err(CacheError::Changing { path: path.into() })
    }

    fn memo(&self, identity: &Identity, kind: &str) -> PathBuf {
        let name = format!("{:x}-{:x}.{kind}", identity.device, identity.inode);
        self.root.join("digests").join(name)
    }
}

fn identify(path: &Path) -> Result<Identity, CacheError> {
    let metadata = fs::metadata(path).map_err(CacheError::io("look at", path))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(CacheError::io("read", path)(error));
    }
    Ok(Identity::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NEVER, Store, names};
    use super::*;

    fn later(cache: &Cache) -> Cache {
        Cache { clock: || SystemTime::now() + Duration::from_secs(3), ..cache.clone() }
    }

    fn memos(cache: &Cache) -> usize {
        names(&cache.root().join("digests")).len()
    }

    #[test]
    fn a_settled_file_is_read_once() {
        let store = Store::new();
        let cache = later(&store.cache);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let digest = cache.file_digest(file.path(), &NEVER).unwrap();
        assert_eq!(digest, Digest::of(b"abc"));
        assert_eq!(memos(&cache), 1);
        // A set flag would stop a computation, so this is the memo's.
        let stopped = AtomicBool::new(true);
        assert_eq!(cache.file_digest(file.path(), &stopped).unwrap(), digest);
        fs::write(file.path(), "abd").unwrap();
        assert!(matches!(cache.file_digest(file.path(), &stopped), Err(CacheError::Cancelled)));
        assert_eq!(cache.file_digest(file.path(), &NEVER).unwrap(), Digest::of(b"abd"));
        assert_eq!(memos(&cache), 1);
    }

    #[test]
    fn a_young_file_is_not_remembered() {
        let store = Store::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        store.cache.file_digest(file.path(), &NEVER).unwrap();
        assert_eq!(memos(&store.cache), 0);
    }

    #[test]
    fn restoring_the_mtime_misleads_nobody() {
        let store = Store::new();
        let cache = later(&store.cache);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        cache.file_digest(file.path(), &NEVER).unwrap();
        // The clock's grain: the second change must not share the first one's tick.
        let ctime = |path: &Path| Identity::of(&fs::metadata(path).unwrap()).ctime_ns;
        let before = ctime(file.path());
        super::super::tests::eventually(|| {
            fs::write(file.path(), "xyz").unwrap();
            file.as_file().set_modified(modified).unwrap();
            ctime(file.path()) != before
        });
        assert_eq!(cache.file_digest(file.path(), &NEVER).unwrap(), Digest::of(b"xyz"));
    }

    #[test]
    fn a_damaged_memo_is_computed_again() {
        let store = Store::new();
        let cache = later(&store.cache);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let sha256 = |cache: &Cache| {
            cache.file_checksum(file.path(), Algorithm::Sha256, &NEVER).unwrap().to_string()
        };
        // FIPS 180-4's example.
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&cache), expected);
        let folder = cache.root().join("digests");
        let memo = folder.join(&names(&folder)[0]);
        let text = fs::read_to_string(&memo).unwrap().replace("ba78", "ab78");
        fs::write(&memo, text).unwrap();
        assert_eq!(sha256(&cache), expected);
    }

    #[test]
    fn a_folder_has_no_digest() {
        let store = Store::new();
        let error = store.cache.file_digest(store.cache.root(), &NEVER).unwrap_err();
        assert!(matches!(error, CacheError::Io { .. }), "{error:?}");
    }
}
