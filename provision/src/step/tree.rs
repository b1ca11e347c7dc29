//! What an upload consists of: the files, folders and links on the host, and where each goes in the guest.
//!
//! A slash at the end means what it means to rsync: a `source` with one is what is in the folder, and one without goes
//! below the target by its own name. A single file takes the target's name, unless that ends in a slash.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::CheckError;
use crate::glob;

/// Most files of an upload; a source with more is hardly the one that was meant.
const MAX_ENTRIES: usize = 500_000;
/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 128;

/// One thing that goes to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the guest.
    pub to: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
}

/// What goes to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder with these permissions, when it is not there yet.
    Folder {
        /// Its permissions.
        mode: u32,
    },
    /// A file.
    File {
        /// Where it is on the host.
        from: PathBuf,
        /// Its permissions on the host.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: Vec<u8>,
    },
}

/// Lists what `source`, a path or pattern that starts from `folder`, brings to `to`, parents before children and names
/// in their order.
///
/// # Errors
/// Nothing is there, it cannot be read, or it cannot go there.
pub fn entries(folder: &Path, source: &str, to: &str) -> Result<Vec<Entry>, CheckError> {
    let listing = Listing { to: to.as_bytes(), of_folder: source.ends_with('/'), all: Vec::new() };
    listing.of(folder, source)
}

/// Returns the folders whose content an upload of `source` follows from; of a single file the file itself.
pub fn watched(folder: &Path, source: &str) -> PathBuf {
    let fixed: Vec<&str> = source.split('/').take_while(|part| !glob::is_pattern(part)).collect();
    folder.join(fixed.join("/"))
}

struct Listing<'t> {
    to: &'t [u8],
    of_folder: bool,
    all: Vec<Entry>,
}

impl Listing<'_> {
    fn of(mut self, folder: &Path, source: &str) -> Result<Vec<Entry>, CheckError> {
        if !glob::is_pattern(source) {
            let path = folder.join(source);
            // What is named is followed; what is found is taken as it is.
            let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
            self.add(&path, &metadata, false)?;
            return Ok(self.all);
        }
        let found = expand(folder, source)?;
        if found.is_empty() {
            return Err(CheckError::NoMatch { pattern: source.into() });
        }
        for path in found {
            let metadata = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, error))?;
            self.add(&path, &metadata, true)?;
        }
        Ok(self.all)
    }

    /// Adds what was named or matched.
    fn add(&mut self, path: &Path, metadata: &Metadata, matched: bool) -> Result<(), CheckError> {
        let name = path.file_name().map(|name| name.as_bytes().to_vec());
        let below = |to: &[u8], name: Option<Vec<u8>>| match name {
            Some(name) => Ok(joined(to, &name)),
            None => Err(CheckError::NoName { path: path.into() }),
        };
        if metadata.is_dir() {
            let to = match self.of_folder {
                true => trimmed(self.to).to_vec(),
                false => below(self.to, name)?,
            };
            return self.tree(path, metadata, to, 0);
        }
        if self.of_folder {
            return Err(CheckError::NoFolder { path: path.into() });
        }
        let to = match self.to.ends_with(b"/") {
            true => below(self.to, name)?,
            false if matched => {
                let to = String::from_utf8_lossy(self.to).into_owned();
                return Err(CheckError::ManyToOne { to });
            }
            false => self.to.to_vec(),
        };
        self.one(path, metadata, to)
    }

    /// Adds what is no folder.
    fn one(&mut self, path: &Path, metadata: &Metadata, to: Vec<u8>) -> Result<(), CheckError> {
        let kind = if metadata.is_file() {
            EntryKind::File { from: path.into(), mode: metadata.permissions().mode() & 0o777 }
        } else if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(|error| unreadable(path, error))?;
            EntryKind::Link { target: target.as_os_str().as_bytes().to_vec() }
        } else {
            return Err(CheckError::Special { path: path.into() });
        };
        self.push(path, Entry { to, kind })
    }

    fn push(&mut self, path: &Path, entry: Entry) -> Result<(), CheckError> {
        if self.all.len() == MAX_ENTRIES {
            return Err(CheckError::TooMany { path: path.into(), limit: MAX_ENTRIES });
        }
        self.all.push(entry);
        Ok(())
    }

    fn tree(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        to: Vec<u8>,
        depth: usize,
    ) -> Result<(), CheckError> {
        if depth > MAX_DEPTH {
            return Err(CheckError::TooMany { path: path.into(), limit: MAX_DEPTH });
        }
        let mode = metadata.permissions().mode() & 0o777;
        self.push(path, Entry { to: to.clone(), kind: EntryKind::Folder { mode } })?;
        for path in sorted(path)? {
            let metadata = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, error))?;
            let name = path.file_name().unwrap_or_default().as_bytes();
            let to = joined(&to, name);
            match metadata.is_dir() {
                true => self.tree(&path, &metadata, to, depth + 1)?,
                false => self.one(&path, &metadata, to)?,
            }
        }
        Ok(())
    }
}

/// Returns the paths that match, in their order.
fn expand(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, CheckError> {
    let start = if pattern.starts_with('/') { Path::new("/") } else { folder };
    let mut found = vec![start.to_path_buf()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for path in found {
            if !glob::is_pattern(part) {
                next.push(path.join(part));
            } else if path.is_dir() {
                let matched = sorted(&path)?.into_iter().filter(|path| {
                    let name = path.file_name().unwrap_or_default();
                    glob::matches(part.as_bytes(), name.as_bytes())
                });
                next.extend(matched);
            }
        }
        found = next;
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    Ok(found)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, CheckError> {
    let listed = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()
    });
    let mut paths = listed.map_err(|error| unreadable(folder, error))?;
    paths.sort_by(|one, other| one.as_os_str().as_bytes().cmp(other.as_os_str().as_bytes()));
    Ok(paths)
}

fn unreadable(path: &Path, source: std::io::Error) -> CheckError {
    CheckError::NotRead { path: path.into(), source }
}

/// The path without slashes at its end.
fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    if end == 0 && !path.is_empty() { &path[..1] } else { &path[..end] }
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match trimmed(folder) {
        b"/" => [b"/", name].concat(),
        folder => [folder, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("app/conf.d")).expect("folders");
        for name in ["app/a.conf", "app/conf.d/b.conf", "app/c.txt"] {
            fs::write(path(name), name).expect("write");
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o640)).expect("mode");
        }
        symlink("a.conf", path("app/link.conf")).expect("link");
        symlink("app", path("current")).expect("link");
        folder
    }

    fn paths(folder: &Path, source: &str, to: &str) -> Vec<String> {
        let list = entries(folder, source, to).expect("entries");
        let shown = |entry: &Entry| {
            let sign = match &entry.kind {
                EntryKind::Folder { .. } => "/",
                EntryKind::File { .. } => "",
                EntryKind::Link { .. } => "@",
            };
            format!("{}{sign}", String::from_utf8_lossy(&entry.to))
        };
        list.iter().map(shown).collect()
    }

    #[test]
    fn slashes_at_the_end_mean_what_they_mean_to_rsync() {
        let folder = folder();
        let tree = |base: &str| {
            ["/", "/a.conf", "/c.txt", "/conf.d/", "/conf.d/b.conf", "/link.conf@"]
                .map(|end| format!("{base}{end}"))
                .to_vec()
        };
        for to in ["/etc", "/etc/"] {
            assert_eq!(paths(folder.path(), "app", to), tree("/etc/app"), "{to}");
            assert_eq!(paths(folder.path(), "app/", to), tree("/etc"), "{to}");
        }
        assert_eq!(paths(folder.path(), "app/a.conf", "/etc/x"), ["/etc/x"]);
        assert_eq!(paths(folder.path(), "app/a.conf", "/etc/"), ["/etc/a.conf"]);
        assert_eq!(paths(folder.path(), "app/a.conf", "/"), ["/a.conf"]);
        // A link that is named is followed.
        assert_eq!(paths(folder.path(), "current", "/srv").len(), 6);
        assert_eq!(paths(folder.path(), "app/link.conf", "/x"), ["/x"]);
    }

    #[test]
    fn patterns_take_what_they_match_and_links_as_they_are() {
        let folder = folder();
        let found = paths(folder.path(), "app/*.conf", "/etc/");
        assert_eq!(found, ["/etc/a.conf", "/etc/link.conf@"]);
        assert_eq!(paths(folder.path(), "*/conf.d/*", "/etc/")[0], "/etc/b.conf");
        assert!(matches!(
            entries(folder.path(), "app/*.conf", "/etc/x"),
            Err(CheckError::ManyToOne { .. })
        ));
        assert!(matches!(
            entries(folder.path(), "*.none", "/etc/"),
            Err(CheckError::NoMatch { .. })
        ));
    }

    #[test]
    fn what_is_no_file_folder_or_link_is_refused() {
        let folder = folder();
        let fifo = folder.path().join("app/fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
        assert!(made.success());
        for source in ["app", "app/fifo", "app/*"] {
            let error = entries(folder.path(), source, "/etc/").expect_err("refused");
            assert!(matches!(&error, CheckError::Special { path } if *path == fifo), "{error}");
        }
        let missing = entries(folder.path(), "none", "/etc/").expect_err("refused");
        assert!(matches!(missing, CheckError::NotRead { .. }), "{missing}");
        let no_folder = entries(folder.path(), "app/a.conf/", "/etc/").expect_err("refused");
        assert!(matches!(no_folder, CheckError::NotRead { .. } | CheckError::NoFolder { .. }));
    }
}
