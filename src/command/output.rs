//! The files that `convert` writes: made in a folder beside their place, `.NAME.PID.part`, and renamed
//! when all is well. The folder is locked as long as its process lives; one that was killed leaves
//! it behind, and the next that writes NAME removes it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::build::export::file_name;
use crate::error::Error;

const SUFFIX: &str = ".part";

/// An output in the making; its folder goes with it.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    temporary: PathBuf,
    /// The locked folder, once it was made.
    lock: Option<File>,
}

impl Output {
    /// Returns an output that will be at `path`; nothing is created.
    ///
    /// # Errors
    /// There is something else than a regular file.
    pub fn plan(path: &Path) -> Result<Output, Error> {
        if let Ok(there) = fs::metadata(path)
            && !there.is_file()
        {
            let message = format!("{} is there and is not a regular file", path.display());
            return Err(Error::input(message));
        }
        if path.file_name().is_none() {
            return Err(Error::input(format!("{} is no file name", path.display())));
        }
        Ok(Output { path: path.to_owned(), temporary: temporary(path), lock: None })
    }

    /// Returns where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder where it is made.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the folder, and removes those that dead processes left for the same file.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&mut self) -> Result<(), Error> {
        remove_leftovers(&self.path);
        fs::create_dir(&self.temporary)
            .and_then(|()| {
                let folder = File::open(&self.temporary)?;
                // Where the file system has no locks, the process's number must do.
                let _ = folder.try_lock();
                self.lock = Some(folder);
                Ok(())
            })
            .map_err(|error| self.failed(&error))
    }

    /// Gives the output's files their names, its own last.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&self) -> Result<(), Error> {
        let own = file_name(&self.path);
        let mut names: Vec<_> = fs::read_dir(&self.temporary)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(|error| self.failed(&error))?
            .into_iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.file_name())
            .collect();
        names.sort_by_key(|name| *name == *own);
        for name in names {
            fs::rename(self.temporary.join(&name), self.path.with_file_name(&name))
                .map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::input(format!("Cannot create {}: {error}", self.path.display()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Returns the folder where this process makes the file at `path`.
pub fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.{}{SUFFIX}", file_name(path), std::process::id()))
}

/// Returns the folder that a file is in.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Removes the folders in which processes that died were making the file at `path`. What cannot be
/// removed stays.
fn remove_leftovers(path: &Path) {
    let prefix = format!(".{}.", file_name(path));
    for entry in fs::read_dir(folder(path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(SUFFIX)?.parse::<u32>().ok());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Some(process) = process
            && is_folder
            && is_dead(&entry.path(), process)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Tells whether nobody makes anything in the folder any more: it is ours, its process is gone from
/// this system, and none on another one holds the lock.
fn is_dead(folder: &Path, process: u32) -> bool {
    // SAFETY: geteuid only returns a number.
    let user = unsafe { libc::geteuid() };
    let is_ours = fs::symlink_metadata(folder).is_ok_and(|folder| folder.uid() == user);
    is_ours
        && !Path::new(&format!("/proc/{process}")).exists()
        && File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a process that has ended.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.raw");
        let make = |name: String| {
            let part = folder.path().join(name);
            fs::create_dir(&part).unwrap();
            fs::write(part.join("web.raw"), "half").unwrap();
            part
        };
        let gone = make(format!(".web.raw.{}.part", dead()));
        let locked = make(format!(".web.raw.{}.part", dead()));
        let lock = File::open(&locked).unwrap();
        lock.try_lock().unwrap();
        let stay = [
            locked.clone(),
            make(".web.raw.1.part".into()),
            make(format!(".other.raw.{}.part", dead())),
            make(".web.raw.x.part".into()),
        ];
        let link = folder.path().join(format!(".web.raw.{}.part", dead()));
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let mut output = Output::plan(&path).unwrap();
        output.create().unwrap();
        assert!(!gone.exists());
        assert!(stay.iter().all(|part| part.join("web.raw").exists()));
        assert!(link.exists());
        let own = output.temporary().to_owned();
        assert!(own.is_dir());
        drop(output);
        assert!(!own.exists());
    }

    #[test]
    fn a_planned_output_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.raw");
        fs::create_dir(temporary(&path)).unwrap();
        drop(Output::plan(&path).unwrap());
        assert!(temporary(&path).exists());
    }
}
