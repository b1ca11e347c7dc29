//! Folders in `tmp/`: on the store's file system, locked by who works in them, and removed with
//! their owner or, when that was killed, by the next one who opens the cache.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::CacheError;
use super::lock::{Hold, USED};
use super::root::unique;

/// How often a new folder may be taken for a dead one by a cleaner that looks in between its birth
/// and its lock.
const TRIES: usize = 100;

/// A private folder for a while, on the same file system as the layers; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// `None` once the folder has another owner.
    hold: Option<Hold>,
}

impl Scratch {
    /// Makes a folder in `tmp`.
    pub(super) fn create(tmp: &Path) -> Result<Scratch, CacheError> {
        let failed = |error| CacheError::io("create a folder in", tmp)(error);
        for _ in 0..TRIES {
            let folder = tmp.join(unique().map_err(failed)?);
            DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
            match Hold::create(&folder) {
                Ok(Some(hold)) => return Ok(Scratch { folder, hold: Some(hold) }),
                Ok(None) => remove(&folder),
                Err(error) => {
                    remove(&folder);
                    return Err(failed(error));
                }
            }
        }
        Err(failed(io::Error::other("another process removes it again and again")))
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Renames the folder to `target`, and returns the hold on it.
    pub(super) fn rename(mut self, target: &Path) -> io::Result<Option<Hold>> {
        fs::rename(&self.folder, target)?;
        Ok(self.hold.take())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.hold.is_some() {
            remove(&self.folder);
        }
    }
}

/// Removes what the dead left in `tmp`.
pub(super) fn remove_dead(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
        let folder = entry.path();
        let dead = match Hold::exclusive(&folder) {
            Ok(Some(hold)) => Some(hold),
            // Without its `used` a folder is just being born or just being removed, or it was left
            // so: its process tells.
            Ok(None) if !folder.join(USED).exists() && !is_alive(&entry.file_name()) => None,
            _ => continue,
        };
        remove(&folder);
        drop(dead);
    }
}

/// Takes `folder` out of the store in one step, then removes it. The caller holds it alone.
pub(super) fn take_away(folder: &Path, tmp: &Path) -> io::Result<()> {
    let target = tmp.join(unique()?);
    fs::rename(folder, &target)?;
    remove(&target);
    Ok(())
}

fn is_alive(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    let pid = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("Cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_removed_and_the_living_stay() {
        let tmp = tempfile::tempdir().unwrap();
        let living = Scratch::create(tmp.path()).unwrap();
        fs::write(living.path("disk.qcow2"), "x").unwrap();
        // What a process that was killed leaves: the folder without its lock.
        let killed = Scratch::create(tmp.path()).unwrap();
        fs::write(killed.path("disk.qcow2"), "x").unwrap();
        let left = killed.folder().to_path_buf();
        let aside = tmp.path().join("0-aside");
        drop(killed.rename(&aside).unwrap());
        fs::rename(&aside, &left).unwrap();
        // One that was killed before it had its lock's file, and one that is just being born.
        let unborn = tmp.path().join(format!("{}-1", u32::MAX));
        fs::create_dir(&unborn).unwrap();
        let young = tmp.path().join(format!("{}-1", std::process::id()));
        fs::create_dir(&young).unwrap();
        remove_dead(tmp.path());
        assert!(living.path("disk.qcow2").exists());
        assert!(!left.exists() && !unborn.exists() && young.exists());
        let folder = living.folder().to_path_buf();
        drop(living);
        assert!(!folder.exists());
    }

    #[test]
    fn cleaners_never_take_a_new_folder_from_its_owner() {
        let tmp = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    remove_dead(tmp.path());
                }
            });
            for _ in 0..300 {
                let scratch = Scratch::create(tmp.path()).unwrap();
                fs::write(scratch.path("disk.qcow2"), "x").unwrap();
                assert!(scratch.path("disk.qcow2").exists());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
