//! The folder of a running build, `BASE/<id>/` with the mode 0700.
//!
//! BASE is `$XDG_RUNTIME_DIR/kvmbake` (XDG Base Directory Specification 0.8) where that is ours alone,
//! and `/tmp/kvmbake-<uid>` elsewhere. `/tmp` is everybody's: a folder there is used only when it is a
//! folder, no link, ours, and closed to others; what we own below a sticky folder nobody else can replace.
//!
//! A folder is made under another name and gets its own once its lock is held, so that whoever finds it
//! without a living lock may remove it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::random;

/// Longest path of a Unix socket: `sun_path` of unix(7) without its final zero.
const LONGEST_SOCKET: usize = 107;
/// Symbols of an id, none of which looks like another.
const SYMBOLS: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
/// Length of an id.
const ID: usize = 6;
/// How often an id may be taken.
const TRIES: usize = 16;
/// Begins the name of a folder that is being made; the process's id follows.
const NEWBORN: &str = ".new-";
const LOCK: &str = "lock";
const SOCKET: &str = "control";
const FACTS: &str = "build.json";
/// Largest `build.json` that is read.
const FACTS_LIMIT: u64 = 64 << 10;

/// The folder of this process's build; removed when dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    id: String,
    _lock: File,
}

impl Folder {
    /// Makes a new folder at the place for this process.
    ///
    /// # Errors
    /// The file system's error, with the path it is about.
    pub fn create() -> Result<Folder, (PathBuf, io::Error)> {
        let mut refused = None;
        for base in bases() {
            match Folder::create_in(&base) {
                Ok(folder) => return Ok(folder),
                Err(error) => refused = Some((base, error)),
            }
        }
        Err(refused.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::NotFound.into())))
    }

    /// Makes a new folder in `base`, which is made as well when it is missing. What dead builds left
    /// there is removed.
    ///
    /// # Errors
    /// `base` is not ours alone, or the file system's error.
    pub fn create_in(base: &Path) -> io::Result<Folder> {
        make_ours(base)?;
        remove_dead(base);
        for _ in 0..TRIES {
            let id = random_id()?;
            let newborn = base.join(format!("{NEWBORN}{}-{id}", std::process::id()));
            let path = base.join(&id);
            DirBuilder::new().mode(0o700).create(&newborn)?;
            let born = lock_new(&newborn).and_then(|lock| {
                // Onto another build's folder, which holds its lock, this fails.
                fs::rename(&newborn, &path).map(|()| lock)
            });
            match born {
                Ok(lock) => return Ok(Folder { path, id, _lock: lock }),
                Err(error) => {
                    let _ = fs::remove_dir_all(&newborn);
                    if !matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) {
                        return Err(error);
                    }
                }
            }
        }
        Err(io::Error::other("every name for a folder is taken"))
    }

    /// Returns the build's id, by which a person names it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the path of `file` in the folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Writes a file that its owner alone may read, by rename.
    ///
    /// # Errors
    /// The file system's error.
    pub fn write(&self, file: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let (path, part) = (self.path(file), self.path(&format!(".{file}.part")));
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        opened.write_all(bytes)?;
        fs::rename(&part, &path)?;
        Ok(path)
    }

    /// Writes what is known of the build.
    ///
    /// # Errors
    /// The file system's error.
    pub fn write_facts(&self, facts: &[u8]) -> io::Result<()> {
        self.write(FACTS, facts).map(drop)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A folder of a living build, as another process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Living {
    /// The build's id.
    pub id: String,
    /// Its folder.
    pub path: PathBuf,
}

impl Living {
    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Reads what is known of the build.
    ///
    /// # Errors
    /// It is not there yet, or no longer.
    pub fn facts(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(FACTS))?.take(FACTS_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the build still lives.
    pub fn lives(&self) -> bool {
        !is_dead(&self.path)
    }
}

/// Returns the folders of all living builds of this user, by id. What dead ones left is removed.
pub fn living() -> Vec<Living> {
    bases().iter().flat_map(|base| living_in(base)).collect()
}

fn living_in(base: &Path) -> Vec<Living> {
    if check_ours(base).is_err() {
        return Vec::new();
    }
    remove_dead(base);
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry)));
    let builds = named.filter(|(id, entry)| is_id(id) && !is_dead(&entry.path()));
    let mut living: Vec<Living> =
        builds.map(|(id, entry)| Living { id, path: entry.path() }).collect();
    living.sort_by(|one, other| one.id.cmp(&other.id));
    living
}

/// Returns where the folders of builds may be, the preferred place first.
fn bases() -> Vec<PathBuf> {
    // SAFETY: getuid takes nothing and cannot fail.
    let uid = unsafe { libc::getuid() };
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|folder| is_fit(folder) && check_ours(folder).is_ok());
    let runtime = runtime.map(|folder| folder.join("kvmbake"));
    runtime.into_iter().chain([PathBuf::from(format!("/tmp/kvmbake-{uid}"))]).collect()
}

/// Whether a socket below has a path that is short enough, and one that every program's
/// configuration can hold as it is.
fn is_fit(runtime: &Path) -> bool {
    let bytes = runtime.as_os_str().as_bytes();
    let socket = bytes.len() + "/kvmbake/".len() + ID + 1 + SOCKET.len();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_.+, @=:".contains(byte);
    runtime.is_absolute() && socket <= LONGEST_SOCKET && bytes.iter().all(is_plain)
}

/// Makes `base` if it is missing. It is ours alone then, or this fails.
fn make_ours(base: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    check_ours(base)
}

/// Fails unless `folder` is a folder, no link, ours, and closed to others; ours is closed here.
fn check_ours(folder: &Path) -> io::Result<()> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    let found = opened.metadata()?;
    // SAFETY: geteuid takes nothing and cannot fail.
    if found.uid() != unsafe { libc::geteuid() } {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it belongs to the user with the id {}", found.uid()),
        ));
    }
    match found.mode() & 0o077 {
        0 => Ok(()),
        _ => opened.set_permissions(Permissions::from_mode(0o700)),
    }
}

fn lock_new(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let lock = options.write(true).create_new(true).mode(0o600).open(folder.join(LOCK))?;
    lock.try_lock().map_err(io::Error::other)?;
    Ok(lock)
}

/// Removes what dead builds left in `base`.
fn remove_dead(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let dead = match name.strip_prefix(NEWBORN) {
            Some(rest) => {
                let pid = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
                pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
            }
            None => is_id(&name) && is_dead(&entry.path()),
        };
        if is_folder && dead {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether nobody holds the folder's lock.
fn is_dead(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn is_id(name: &str) -> bool {
    name.len() == ID && name.bytes().all(|byte| SYMBOLS.contains(&byte))
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; ID];
    random::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| char::from(SYMBOLS[usize::from(*byte) % SYMBOLS.len()])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_folder_and_what_is_in_it_are_the_owner_s_alone_and_vanish() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("kvmbake");
        let folder = Folder::create_in(&base).unwrap();
        let key = folder.write("key", b"secret").unwrap();
        folder.write("key", b"other").unwrap();
        assert_eq!(fs::read(&key).unwrap(), b"other");
        let path = folder.path("");
        assert_eq!((mode(&base), mode(&path), mode(&key)), (0o700, 0o700, 0o600));
        assert!(is_id(folder.id()), "{}", folder.id());
        drop(folder);
        assert!(!path.exists() && base.exists());
    }

    #[test]
    fn a_link_where_the_folders_should_be_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let base = root.path().join("kvmbake-0");
        std::os::unix::fs::symlink(&elsewhere, &base).unwrap();
        Folder::create_in(&base).unwrap_err();
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert!(living_in(&base).is_empty());
        fs::remove_file(&base).unwrap();
        fs::write(&base, "a file").unwrap();
        Folder::create_in(&base).unwrap_err();
    }

    #[test]
    fn a_folder_that_is_open_to_others_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("kvmbake");
        fs::create_dir(&base).unwrap();
        fs::set_permissions(&base, Permissions::from_mode(0o777)).unwrap();
        let _folder = Folder::create_in(&base).unwrap();
        assert_eq!(mode(&base), 0o700);
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        // Root's own is another's for whoever is not root; root needs one that it gives away.
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("kvmbake");
        fs::create_dir(&base).unwrap();
        let refused = match std::os::unix::fs::chown(&base, Some(65534), None) {
            Ok(()) => base,
            Err(_) => PathBuf::from("/proc/1"),
        };
        let error = Folder::create_in(&refused).unwrap_err();
        assert!(error.to_string().contains("belongs to the user"), "{error}");
    }

    #[test]
    fn the_dead_go_and_the_living_and_the_strange_stay() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("kvmbake");
        let living = Folder::create_in(&base).unwrap();
        let dead = base.join("aaaaaa");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::create_dir(base.join(".new-4194999-bbbbbb")).unwrap();
        let newborn = format!(".new-{}-cccccc", std::process::id());
        fs::create_dir(base.join(&newborn)).unwrap();
        fs::write(base.join("note"), "").unwrap();
        let found = living_in(&base);
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].id, found[0].lives()), (living.id(), true));
        let mut left: Vec<String> = fs::read_dir(&base)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = [living.id().to_string(), newborn, "note".into()];
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_place_too_long_or_too_odd_for_a_socket_is_not_used() {
        assert!(is_fit(Path::new("/run/user/1000")));
        assert!(is_fit(Path::new("/run/with space")));
        assert!(!is_fit(Path::new("run/user/1000")));
        for odd in ["/run/\"x", "/run/a%h", "/run/${x}", "/run/a\nb", "/run/a\\b"] {
            assert!(!is_fit(Path::new(odd)), "{odd}");
        }
        let longest = LONGEST_SOCKET - "/kvmbake/abcdef/control".len();
        let path = |length: usize| PathBuf::from(format!("/{}", "r".repeat(length - 1)));
        assert!(is_fit(&path(longest)) && !is_fit(&path(longest + 1)));
        std::os::unix::net::SocketAddr::from_pathname(path(longest).join("kvmbake/abcdef/control"))
            .unwrap();
    }
}
