//! The other end: the running builds of this user, and what is asked of one.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::folder::{Living, living};
use super::peer::Peer;
use super::protocol::{REPLY_LIMIT, Refusal, Reply, Request, Status, read, write};
use crate::error::{Error, with_causes};

/// How long a build may take to tell what it is doing.
const QUESTION: Duration = Duration::from_secs(5);

/// A running build.
pub struct Found {
    socket: PathBuf,
    folder: Option<Living>,
    status: Option<Status>,
}

/// Returns the running builds of this user, those first that began first.
pub fn all() -> Vec<Found> {
    let look = |folder: Living| {
        let socket = folder.socket();
        let status = status(&socket).or_else(|| serde_json::from_slice(&folder.facts().ok()?).ok());
        Found { socket, folder: Some(folder), status }
    };
    let mut found: Vec<Found> = living().into_iter().map(look).collect();
    found.sort_by_key(|build| build.status.as_ref().map(|status| status.started));
    found
}

/// Finds the build that a person means: by its id or how that begins, by its profile's or image's name,
/// or by the path of its socket. Without a word, the only one.
///
/// # Errors
/// There is none, or there are several.
pub fn find(word: Option<&str>) -> Result<Found, Error> {
    if let Some(path) = word.map(Path::new).filter(|path| is_socket(path)) {
        return Ok(Found { status: status(path), socket: path.into(), folder: None });
    }
    let mut builds = all();
    let chosen = choose(&builds.iter().map(Found::names).collect::<Vec<_>>(), word);
    match chosen.as_slice() {
        [index] => Ok(builds.swap_remove(*index)),
        [] => Err(match word {
            Some(word) => Error::input(format!("No running build is called `{word}`")),
            None => Error::input("No build is running"),
        }
        .hint("`kvmbake ps` lists the running builds of this user")),
        several => {
            let ids: Vec<&str> = several.iter().map(|index| builds[*index].id()).collect();
            Err(match word {
                Some(word) => Error::input(format!("Several running builds are called `{word}`")),
                None => Error::input("Several builds are running"),
            }
            .hint(format!("Name one by its id: {}", ids.join(", "))))
        }
    }
}

fn is_socket(path: &Path) -> bool {
    path.components().count() > 1
        && fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// What a build may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    id: String,
    others: Vec<String>,
}

/// Returns which of `builds` a word means: an id before the beginning of one, and that before a name.
fn choose(builds: &[Names], word: Option<&str>) -> Vec<usize> {
    let fitting = |test: &dyn Fn(&Names) -> bool| {
        let fitting = builds.iter().enumerate().filter(|(_, names)| test(names));
        fitting.map(|(index, _)| index).collect::<Vec<_>>()
    };
    let Some(word) = word else { return fitting(&|_| true) };
    let ways: [&dyn Fn(&Names) -> bool; 3] = [
        &|names| names.id == word,
        &|names| names.others.iter().any(|name| name == word),
        &|names| !word.is_empty() && names.id.starts_with(word),
    ];
    ways.iter().map(|way| fitting(way)).find(|found| !found.is_empty()).unwrap_or_default()
}

fn status(socket: &Path) -> Option<Status> {
    let stream = connect(socket).ok()?;
    ask_over(&stream, &Request::Status {}, Some(Instant::now() + QUESTION)).ok()?.ok()
}

/// Connects to a build of our own user.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    match Peer::of(&stream)?.is_trusted() {
        true => Ok(stream),
        false => Err(io::Error::new(ErrorKind::PermissionDenied, "another user's process listens")),
    }
}

fn ask_over<T: DeserializeOwned>(
    stream: &UnixStream,
    request: &Request,
    deadline: Option<Instant>,
) -> io::Result<Result<T, Refusal>> {
    // A build that turns us away answers before we have asked.
    let asked = write(stream, request);
    match read(stream, REPLY_LIMIT, deadline) {
        Ok(Reply::Ok(value)) => Ok(Ok(value)),
        Ok(Reply::Refused(refusal)) => Ok(Err(refusal)),
        Err(error) => Err(asked.err().unwrap_or(error)),
    }
}

impl Found {
    /// Returns the build's id, or the path of its socket when that is all that is known.
    pub fn id(&self) -> &str {
        match (&self.folder, &self.status) {
            (Some(folder), _) => &folder.id,
            (None, Some(status)) => &status.id,
            (None, None) => self.socket.to_str().unwrap_or_default(),
        }
    }

    /// Returns what the build is doing, as far as it tells.
    pub fn into_status(self) -> Option<Status> {
        self.status
    }

    /// Asks the build something. The connection may carry what follows.
    ///
    /// # Errors
    /// The build cannot be reached, or refuses.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<(UnixStream, T), Error> {
        let failed = |error: io::Error| {
            let message = format!("Cannot reach the build {}", self.id());
            let error = Error::input(message).because(&error);
            error.hint("`kvmbake ps` lists the running builds of this user")
        };
        let stream = connect(&self.socket).map_err(failed)?;
        match ask_over(&stream, request, None).map_err(failed)? {
            Ok(value) => Ok((stream, value)),
            Err(Refusal { message, hint }) => {
                let mut error = Error::input(message);
                error.hint = hint;
                Err(error)
            }
        }
    }

    /// Kills the build's process. What that leaves behind, the next build removes.
    ///
    /// # Errors
    /// The build cannot be reached, or the system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        let failed = |error: &io::Error| {
            Error::input(format!("Cannot kill the build {}: {}", self.id(), with_causes(error)))
        };
        // The kernel knows who listens, whatever the files say.
        let peer = UnixStream::connect(&self.socket).and_then(|stream| Peer::of(&stream));
        let peer = peer.map_err(|error| failed(&error))?;
        if peer.pid <= 0 || !peer.is_trusted() {
            return Err(failed(&ErrorKind::PermissionDenied.into()));
        }
        // SAFETY: kill takes two numbers.
        match unsafe { libc::kill(peer.pid, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(failed(&io::Error::last_os_error())),
        }
    }

    /// Returns whether the build still lives.
    pub fn lives(&self) -> bool {
        match &self.folder {
            Some(folder) => folder.lives(),
            None => connect(&self.socket).is_ok(),
        }
    }

    fn names(&self) -> Names {
        let stem = |path: &Path| Some(path.file_stem()?.to_string_lossy().into_owned());
        let file = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
        let of_status = |status: &Status| {
            let path = Some(status.profile.to_string_lossy().into_owned());
            let names = [Some(status.name.clone()), path, file(&status.profile)];
            names.into_iter().chain([stem(&status.profile)]).flatten().collect()
        };
        let others = self.status.as_ref().map(of_status).unwrap_or_default();
        Names { id: self.id().to_string(), others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(id: &str, others: &[&str]) -> Names {
        Names { id: id.into(), others: others.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn a_build_is_found_by_its_id_its_name_or_how_its_id_begins() {
        let builds = [
            names("abcdef", &["web", "web.toml"]),
            names("abzzzz", &["db", "db.toml"]),
            names("mnpqrs", &["db", "db2.toml"]),
            names("webxyz", &["other"]),
        ];
        let choose = |word| choose(&builds, word);
        assert_eq!(choose(Some("abcdef")), [0]);
        assert_eq!(choose(Some("abc")), [0]);
        assert_eq!(choose(Some("ab")), [0, 1]);
        assert_eq!(choose(Some("web")), [0], "a name before the beginning of an id");
        assert_eq!(choose(Some("db")), [1, 2]);
        assert_eq!(choose(Some("db2.toml")), [2]);
        assert_eq!(choose(None).len(), 4);
        assert!(choose(Some("")).is_empty() && choose(Some("x")).is_empty());
        assert_eq!(super::choose(&builds[..1], None), [0]);
    }
}
