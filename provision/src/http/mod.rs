//! A directory served over HTTP/1.1, for what guests fetch while they are built.
//!
//! Any stream will do: [`DirectoryServer::connect`] gives the client's end of a socket pair and serves the other on a
//! thread of its own, so no port of the host is opened. GET and HEAD, keep-alive, single ranges, listings. Nothing
//! outside the directory is reachable, neither by `..` nor through a symbolic link. The client is hostile: heads are
//! bounded, idle connections end, and the number of connections is limited.
//!
//! Left out: conditional requests, compression, uploads. RFC 9110 and 9112.

mod request;
mod resource;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use request::{HeadError, Request};
use resource::{Body, Reply};

/// How many connections are served at once; a further one is refused.
const MAX_CONNECTIONS: usize = 128;

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(60);

/// One answered request, for whoever watches the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The method, shortened and free of control characters.
    pub method: String,
    /// The path as asked for, likewise.
    pub path: String,
    /// The path as asked for, whole and as it came.
    pub target: String,
    /// The status code of the answer.
    pub status: u16,
    /// Bytes of content sent.
    pub bytes: u64,
    /// How long the answer took.
    pub duration: Duration,
}

/// What a GET would be answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The content of this file.
    File(PathBuf),
    /// Something else: a listing, or a status without content that matters.
    Other {
        /// The status code.
        status: u16,
        /// The listing.
        text: String,
    },
}

type Watcher = Arc<dyn Fn(&Served) + Send + Sync>;

/// Serves one directory. Cheap to clone: clones share the limit on connections.
#[derive(Clone)]
pub struct DirectoryServer {
    root: PathBuf,
    watcher: Option<Watcher>,
    connections: Arc<AtomicUsize>,
}

impl fmt::Debug for DirectoryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryServer").field("root", &self.root).finish_non_exhaustive()
    }
}

impl DirectoryServer {
    /// Serves what is in `root` at the time of each request.
    ///
    /// # Errors
    /// When `root` is no readable directory.
    pub fn new(root: impl AsRef<Path>) -> io::Result<DirectoryServer> {
        let root = root.as_ref().canonicalize()?;
        if !root.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(DirectoryServer { root, watcher: None, connections: Arc::default() })
    }

    /// Tells `watcher` of every answer; it is called on the connection's thread.
    pub fn with_watcher(
        mut self,
        watcher: impl Fn(&Served) + Send + Sync + 'static,
    ) -> DirectoryServer {
        self.watcher = Some(Arc::new(watcher));
        self
    }

    /// Returns what a GET of `path`, a request's [`Served::target`], would be answered with now.
    pub fn answer_to(&self, path: &str) -> Answer {
        resource::answer_to(&self.root, path)
    }

    /// Opens a connection: the client's end of a stream whose other end is served on a new thread, until either closes.
    ///
    /// # Errors
    /// `ConnectionRefused` when too many connections stand already, or what the system says.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let taken = self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < MAX_CONNECTIONS).then_some(count + 1)
        });
        if taken.is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let place = Place(self.connections.clone());
        let (client, ours) = UnixStream::pair()?;
        ours.set_read_timeout(Some(IDLE))?;
        ours.set_write_timeout(Some(IDLE))?;
        let server = self.clone();
        std::thread::Builder::new().name("http".into()).spawn(move || {
            let _place = place;
            if let Err(error) = server.serve(ours) {
                tracing::debug!(%error, "HTTP connection ended");
            }
        })?;
        Ok(client)
    }

    /// Serves one connection on this thread, until the client closes it, goes wrong, or asks for an end.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn serve(&self, mut stream: impl Read + Write) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let request = match Request::read(&mut stream, &mut buffer) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(HeadError::Stream(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(());
                }
                Err(HeadError::Stream(error)) => return Err(error),
                Err(HeadError::Refused(status)) => {
                    let refused = Request::unreadable();
                    self.answer(&mut stream, &refused, resource::plain(status), Instant::now())?;
                    return stream.flush();
                }
            };
            let started = Instant::now();
            let reply = resource::reply(&self.root, &request);
            self.answer(&mut stream, &request, reply, started)?;
            if !request.keep_alive {
                return stream.flush();
            }
        }
    }

    fn answer(
        &self,
        stream: &mut (impl Read + Write),
        request: &Request,
        reply: Reply,
        started: Instant,
    ) -> io::Result<()> {
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, resource::reason(reply.status));
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = reply.body.len();
        head.push_str(&format!("Content-Length: {length}\r\nConnection: {connection}\r\n\r\n"));
        let sent = stream.write_all(head.as_bytes()).and_then(|()| match reply.body {
            _ if request.is_head => Ok(0),
            Body::Text(text) => stream.write_all(text.as_bytes()).map(|()| length),
            Body::File(file, _) => io::copy(&mut file.take(length), stream),
        });
        if let Some(watcher) = &self.watcher {
            watcher(&Served {
                method: request.method.clone(),
                path: request.shown_path(),
                target: request.path.clone(),
                status: reply.status,
                bytes: sent.as_ref().copied().unwrap_or(0),
                duration: started.elapsed(),
            });
        }
        // A file that became shorter meanwhile: the client must not take the next answer for the rest of this one.
        match sent? {
            sent if sent < length && !request.is_head => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => stream.flush(),
        }
    }
}

/// Gives its connection's place back, however the thread ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
