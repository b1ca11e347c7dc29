//! The cache's folder: where it is, and that it belongs to this user alone.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::CacheError;
use crate::random;

/// Returns the folder that the environment names: `$KVMBAKE_CACHE`, `$XDG_CACHE_HOME/kvmbake` or
/// `~/.cache/kvmbake`. An empty variable counts as none, and as the XDG specification asks, so does
/// a relative `XDG_CACHE_HOME`.
///
/// # Errors
/// None of the three names a folder.
pub fn default_root() -> Result<PathBuf, CacheError> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.as_os_str() != "");
    let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
    path("KVMBAKE_CACHE")
        .or_else(|| absolute("XDG_CACHE_HOME").map(|cache| cache.join("kvmbake")))
        .or_else(|| absolute("HOME").map(|home| home.join(".cache/kvmbake")))
        .ok_or(CacheError::NoPlace)
}

/// Makes the folder and those above it when they are missing, and refuses one that others own or write.
pub(super) fn private_folder(path: &Path) -> Result<(), CacheError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(CacheError::io("create", path))?;
    let refused = |why: String| CacheError::Unsafe { path: path.to_path_buf(), why };
    let metadata = fs::metadata(path).map_err(CacheError::io("look at", path))?;
    // SAFETY: geteuid takes nothing and cannot fail.
    let me = unsafe { libc::geteuid() };
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != me {
        return Err(refused(format!("belongs to user {}, not to user {me}", metadata.uid())));
    }
    if mode & 0o022 != 0 {
        return Err(refused(format!("can be written by others (mode {mode:04o})")));
    }
    if mode & 0o077 != 0 {
        // It is ours, and nobody else has written there: closing it to readers is enough.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(CacheError::io("protect", path))?;
    }
    Ok(())
}

/// Returns a name that nothing else has: this process's number and 64 random bits.
pub(super) fn unique() -> io::Result<String> {
    let mut bytes = [0; 8];
    random::fill(&mut bytes)?;
    Ok(format!("{}-{:016x}", std::process::id(), u64::from_le_bytes(bytes)))
}

/// Returns what `path` holds, made with `content` when it is missing. Of several processes that do
/// this at once one wins, and all return the winner's.
pub(super) fn once<E>(
    path: &Path,
    content: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E>
where
    E: From<CacheError>,
{
    if let Some(found) = existing(path)? {
        return Ok(found);
    }
    let made = content()?;
    let beside = unique()
        .map(|name| path.with_extension(format!("{name}.new")))
        .map_err(CacheError::io("name", path))?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(&made).and_then(|()| file.sync_all()))
        // Unlike a rename, a link does not replace what another process has put there.
        .and_then(|()| fs::hard_link(&beside, path));
    let _ = fs::remove_file(&beside);
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CacheError::io("create", path)(error).into())
        }
        _ => Ok(existing(path)?.unwrap_or(made)),
    }
}

fn existing(path: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    match fs::read(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CacheError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_write_is_refused_and_one_they_read_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        private_folder(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        private_folder(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = private_folder(&path).unwrap_err();
        assert!(matches!(error, CacheError::Unsafe { .. }), "{error:?}");
        assert!(error.to_string().contains("mode 0770"), "{error}");
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        // SAFETY: geteuid takes nothing and cannot fail.
        let me = unsafe { libc::geteuid() };
        let folder = tempfile::tempdir().unwrap();
        // Only root can give a folder away; for everybody else /proc is another user's.
        let path = if me == 0 {
            std::os::unix::fs::chown(folder.path(), Some(12345), None).unwrap();
            folder.path().to_path_buf()
        } else {
            PathBuf::from("/proc")
        };
        let error = private_folder(&path).unwrap_err();
        assert!(error.to_string().contains("belongs to user"), "{error}");
    }

    #[test]
    fn of_many_makers_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16u8)
                .map(|index| {
                    let path = &path;
                    scope.spawn(move || once::<CacheError>(path, || Ok(vec![index; 32])).unwrap())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().all(|one| *one == made[0]), "{made:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
