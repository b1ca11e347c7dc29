//! The folder a build works in: `.kvmbake-<name>-<stamp>-<pid>` inside the output folder, so that
//! the finished build appears by one rename. A lock in it tells a living build from a dead one,
//! whose leftovers the next build removes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const PREFIX: &str = ".kvmbake-";
const LOCK: &str = "lock";
/// How many builds of one name may end in the same second.
const MAXIMUM_SUFFIX: u32 = 100;

/// A build's folder; removed with all its content unless it was published.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    output: PathBuf,
    title: String,
    lock: Option<File>,
}

impl Workspace {
    /// Makes a new folder in `output`, which is made as well when it is missing.
    ///
    /// # Errors
    /// The file system's error, with the path it is about.
    pub fn create(
        output: &Path,
        name: &str,
        now: SystemTime,
    ) -> Result<Workspace, (PathBuf, io::Error)> {
        fs::create_dir_all(output).map_err(|error| (output.to_path_buf(), error))?;
        let title = format!("{name}-{}", stamp(now));
        let folder = output.join(format!("{PREFIX}{title}-{}", std::process::id()));
        let failed = |error| (folder.clone(), error);
        // Layers and keys are nobody else's business while the build runs.
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let mut workspace =
            Workspace { folder: folder.clone(), output: output.into(), title, lock: None };
        let path = folder.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        lock.try_lock().map_err(|error| failed(io::Error::other(error)))?;
        workspace.lock = Some(lock);
        Ok(workspace)
    }

    /// Returns the path of `file` in the folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Gives the folder its final name, `<name>-<stamp>`, and returns it.
    ///
    /// # Errors
    /// The file system's error; the folder is removed then.
    pub fn publish(mut self) -> io::Result<PathBuf> {
        fs::remove_file(self.path(LOCK))?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o755))?;
        File::open(&self.folder)?.sync_all()?;
        let mut suffix = 1;
        let published = loop {
            let name =
                if suffix == 1 { self.title.clone() } else { format!("{}-{suffix}", self.title) };
            let target = self.output.join(name);
            match fs::rename(&self.folder, &target) {
                Ok(()) => break target,
                // The target is there and is not empty: another build ended in this second.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOTEMPTY | libc::EEXIST | libc::ENOTDIR)
                    ) && suffix < MAXIMUM_SUFFIX =>
                {
                    suffix += 1;
                }
                Err(error) => return Err(error),
            }
        };
        self.lock = None;
        File::open(&self.output)?.sync_all()?;
        Ok(published)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!("Cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Removes the folders of builds that died in `output`, and returns their paths.
///
/// # Errors
/// The file system's error, with the path it is about. A missing `output` is no error.
pub fn remove_leftovers(output: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err((output.to_path_buf(), error)),
    };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let folder = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if ours && is_folder && is_dead(&folder) {
            fs::remove_dir_all(&folder).map_err(|error| (folder.clone(), error))?;
            removed.push(folder);
        }
    }
    Ok(removed)
}

/// A build that lives holds the lock. One that is just being born has no lock file yet, and one
/// that was killed in that moment is told from it by its process.
fn is_dead(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => {
            let name = folder.to_string_lossy();
            let pid = name.rsplit('-').next().and_then(|pid| pid.parse::<u32>().ok());
            pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        }
    }
}

/// `YYYYmmdd-HHMMSS` of a moment, in UTC.
fn stamp(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil_date(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// The moment as RFC 3339 writes it, in UTC, to the second.
pub fn rfc3339(at: SystemTime) -> String {
    let text = stamp(at);
    let part = |range: std::ops::Range<usize>| &text[range];
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    )
}

/// The same to the millisecond.
pub fn rfc3339_milliseconds(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}Z", rfc3339(at).trim_end_matches('Z'), since.subsec_millis())
}

/// Year, month and day of a number of days since 1970-01-01, by whole 400-year cycles of the
/// Gregorian calendar counted from a March, so that the leap day ends a year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    let days = days + 719_468;
    let (cycle, day) = (days / CYCLE, days % CYCLE);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn stamps_are_right_around_leap_days() {
        // The expected values are those of `date -u -d @N +%Y%m%d-%H%M%S`.
        assert_eq!(stamp(at(0)), "19700101-000000");
        assert_eq!(stamp(at(951_782_400)), "20000229-000000");
        assert_eq!(stamp(at(1_709_251_199)), "20240229-235959");
        assert_eq!(stamp(at(4_107_542_400)), "21000301-000000");
        assert_eq!(rfc3339(at(1_709_251_199)), "2024-02-29T23:59:59Z");
        let later = at(1_709_251_199) + Duration::from_millis(7);
        assert_eq!(rfc3339_milliseconds(later), "2024-02-29T23:59:59.007Z");
    }

    #[test]
    fn an_unpublished_workspace_vanishes() {
        let output = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(output.path(), "web", at(0)).unwrap();
        fs::write(workspace.path("overlay.qcow2"), "x").unwrap();
        drop(workspace);
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_published_workspace_appears_under_its_name_without_its_lock() {
        let output = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(output.path(), "web", at(0)).unwrap();
        fs::write(workspace.path("web.raw"), "x").unwrap();
        let folder = workspace.publish().unwrap();
        assert_eq!(folder, output.path().join("web-19700101-000000"));
        let names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["web.raw"]);
    }

    #[test]
    fn two_builds_of_one_second_get_two_names() {
        let output = tempfile::tempdir().unwrap();
        let taken = output.path().join("web-19700101-000000");
        fs::create_dir(&taken).unwrap();
        fs::write(taken.join("web.raw"), "first").unwrap();
        let folder = Workspace::create(output.path(), "web", at(0)).unwrap().publish().unwrap();
        assert_eq!(folder, output.path().join("web-19700101-000000-2"));
        assert_eq!(fs::read(taken.join("web.raw")).unwrap(), b"first");
    }

    #[test]
    fn leftovers_of_the_dead_go_and_the_living_stay() {
        let output = tempfile::tempdir().unwrap();
        let living = Workspace::create(output.path(), "web", at(0)).unwrap();
        let dead = output.path().join(".kvmbake-web-19700101-000000-1");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("overlay.qcow2"), "x").unwrap();
        fs::write(output.path().join(".kvmbake-note"), "not a folder").unwrap();
        assert_eq!(remove_leftovers(output.path()).unwrap(), [dead]);
        assert!(living.folder.exists());
        assert!(output.path().join(".kvmbake-note").exists());
    }

    #[test]
    fn no_output_folder_means_no_leftovers() {
        assert!(remove_leftovers(Path::new("/nonexistent/out")).unwrap().is_empty());
    }
}
