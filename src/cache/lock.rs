//! Who uses what: locks by flock(2), which the kernel drops with the process that holds them.
//!
//! - Each layer's folder, and each folder in `tmp/`, has a file `used`. Whoever uses the folder
//!   holds it shared; whoever takes the folder away or changes it holds it exclusively, and only
//!   for a moment, so that a use waits at most for that. Its mtime is the last use.
//! - Each key that is being built has a file in `locks/`, held exclusively by its builder, with the
//!   builder's process number in it.
//!
//! Order: a key's lock, then a layer's, then those of its ancestors. Exclusive locks on folders are
//! only ever tried, never waited for, so no order of them can lock up.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The file in a folder that tells of its use.
pub(super) const USED: &str = "used";
/// How long a folder can be held exclusively by one that is not stopped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries of a lock that another process has.
const POLL: Duration = Duration::from_millis(20);

/// A folder in use; as long as this lives nobody takes the folder away.
#[derive(Debug)]
pub(super) struct Hold {
    file: File,
}

impl Hold {
    /// Makes the folder's `used` and holds it; `None` when a cleaner took the new folder for a dead one.
    pub fn create(folder: &Path) -> io::Result<Option<Hold>> {
        let path = folder.join(USED);
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let locked = try_shared(&file)?;
        Ok((locked && is_at(&file, &path)).then_some(Hold { file }))
    }

    /// Holds the folder against being taken away; `None` when it is gone.
    pub fn shared(folder: &Path) -> io::Result<Option<Hold>> {
        let path = folder.join(USED);
        let Some(file) = open(&path)? else { return Ok(None) };
        let deadline = Instant::now() + PATIENCE;
        while !try_shared(&file)? {
            if Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
        Ok(is_at(&file, &path).then_some(Hold { file }))
    }

    /// Holds the folder alone; `None` when it is gone or in use.
    pub fn exclusive(folder: &Path) -> io::Result<Option<Hold>> {
        let path = folder.join(USED);
        let Some(file) = open(&path)? else { return Ok(None) };
        Ok((try_exclusive(&file)? && is_at(&file, &path)).then_some(Hold { file }))
    }

    /// Tries to become the only holder. The hold is lost when that fails.
    pub fn alone(self) -> io::Result<Option<Hold>> {
        Ok(try_exclusive(&self.file)?.then_some(self))
    }

    /// Notes a use.
    pub fn touch(&self, now: SystemTime) -> io::Result<()> {
        self.file.set_modified(now)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child process that is just being started, which
        // has copies of all descriptors until it executes its program.
        let _ = self.file.unlock();
    }
}

/// Returns when the folder was last used.
pub(super) fn last_used(folder: &Path) -> SystemTime {
    let modified = fs::metadata(folder.join(USED)).and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Returns whether somebody uses the folder right now.
pub(super) fn is_used(folder: &Path) -> bool {
    let there = folder.join(USED).exists();
    there && !matches!(Hold::exclusive(folder), Ok(Some(_)))
}

/// The right to build what a key stands for. The file goes with it.
#[derive(Debug)]
pub(super) struct KeyLock {
    file: File,
    path: PathBuf,
}

impl KeyLock {
    /// Waits for the lock. `waits` hears the holder's process number once when the wait begins, and
    /// again when the holder changes. `None` when `cancel` was set meanwhile.
    pub fn acquire(
        path: &Path,
        waits: &mut dyn FnMut(Option<u32>),
        cancel: &AtomicBool,
    ) -> io::Result<Option<KeyLock>> {
        let mut told = None;
        let mut polls = 0;
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(path)?;
            if !try_exclusive(&file)? {
                let holder = holder(&mut file);
                polls += 1;
                // One who looks for dead locks holds each for a moment, which is no wait to tell of.
                // A builder writes its number after it has the lock; until then nothing is known.
                let begins = told.is_none() && polls > 1;
                if begins || (told.is_some() && holder.is_some() && told != Some(holder)) {
                    waits(holder);
                    told = Some(holder);
                }
                std::thread::sleep(POLL);
                continue;
            }
            // The last holder removes the file, so the one locked may not be the one at the path.
            if is_at(&file, path) {
                file.set_len(0)?;
                write!(file, "{}", std::process::id())?;
                return Ok(Some(KeyLock { file, path: path.into() }));
            }
        }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Removed while it is still held: whoever gets this file's lock next sees that it is gone.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Removes the lock files of dead builders from `locks`.
pub(super) fn remove_dead_locks(locks: &Path) {
    for entry in fs::read_dir(locks).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(Some(file)) = open(&path)
            && try_exclusive(&file).unwrap_or(false)
            && is_at(&file, &path)
        {
            drop(KeyLock { file, path });
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

fn try_shared(file: &File) -> io::Result<bool> {
    outcome(file.try_lock_shared())
}

fn try_exclusive(file: &File) -> io::Result<bool> {
    outcome(file.try_lock())
}

fn outcome(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_not_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let first = Hold::create(folder.path()).unwrap().unwrap();
        let second = Hold::shared(folder.path()).unwrap().unwrap();
        assert!(is_used(folder.path()));
        assert!(Hold::exclusive(folder.path()).unwrap().is_none());
        assert!(first.alone().unwrap().is_none());
        let alone = second.alone().unwrap().unwrap();
        drop(alone);
        assert!(!is_used(folder.path()));
        assert!(Hold::exclusive(folder.path()).unwrap().is_some());
    }

    #[test]
    fn a_use_waits_for_a_change_and_sees_that_the_folder_went() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("layer");
        fs::create_dir(&folder).unwrap();
        drop(Hold::create(&folder).unwrap().unwrap());
        let alone = Hold::exclusive(&folder).unwrap().unwrap();
        let found = std::thread::scope(|scope| {
            let user = scope.spawn(|| Hold::shared(&folder).unwrap());
            fs::rename(&folder, parent.path().join("gone")).unwrap();
            drop(alone);
            user.join().unwrap()
        });
        assert!(found.is_none());
    }

    #[test]
    fn a_key_is_built_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let never = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let lock = KeyLock::acquire(&path, &mut |_| {}, &never).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn a_wait_tells_the_holder_and_ends_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let cancel = AtomicBool::new(false);
        let lock = KeyLock::acquire(&path, &mut |_| panic!("no wait"), &cancel).unwrap().unwrap();
        let mut told = Vec::new();
        let waited = KeyLock::acquire(
            &path,
            &mut |pid| {
                told.push(pid);
                cancel.store(true, Ordering::Relaxed);
            },
            &cancel,
        );
        assert!(waited.unwrap().is_none());
        assert_eq!(told, [Some(std::process::id())]);
        remove_dead_locks(folder.path());
        assert!(path.exists());
        drop(lock);
        fs::write(&path, "1").unwrap();
        remove_dead_locks(folder.path());
        assert!(!path.exists());
    }
}
