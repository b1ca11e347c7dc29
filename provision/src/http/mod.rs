//! A folder or fixed contents served over HTTP/1.1, for what guests fetch while they are built, and
//! where they report to.
//!
//! Any stream will do: [`Server::connect`] gives the client's end of a socket pair and serves the other on a
//! thread of its own, so no port of the host is opened. GET and HEAD, keep-alive, single ranges, listings; POST adds
//! to the files of a folder that was made writable, within limits. Nothing
//! outside the directory is reachable, neither by `..` nor through a symbolic link. The client is hostile: heads are
//! bounded, idle connections end, and the number of connections is limited.
//!
//! Left out: conditional requests, compression, chunked requests. RFC 9110 and 9112.

mod request;
mod resource;
mod upload;

use std::collections::BTreeMap;
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

/// Bytes of content that nobody wants and that are read all the same, so that the client sees its answer.
const MAX_UNWANTED: u64 = 64 << 20;

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

/// Fixed contents by their paths; that of the empty path is for all others.
pub type Contents = BTreeMap<String, Arc<[u8]>>;

/// Where answers come from.
#[derive(Debug, Clone)]
enum Root {
    /// A canonical folder, and what may still be added to it when it is writable.
    Folder(PathBuf, Option<Arc<upload::Account>>),
    Fixed(Arc<Contents>),
}

impl Root {
    fn is_writable(&self) -> bool {
        matches!(self, Root::Folder(_, Some(_)))
    }
}

/// Serves one folder, or fixed contents. Cheap to clone: clones share the limits.
#[derive(Clone)]
pub struct Server {
    root: Root,
    watcher: Option<Watcher>,
    connections: Arc<AtomicUsize>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves what is in `root` at the time of each request.
    ///
    /// # Errors
    /// When `root` is no readable directory.
    pub fn new(root: impl AsRef<Path>) -> io::Result<Server> {
        let root = root.as_ref().canonicalize()?;
        if !root.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Server::of(Root::Folder(root, None)))
    }

    /// Serves fixed contents.
    pub fn fixed(contents: Contents) -> Server {
        Server::of(Root::Fixed(Arc::new(contents)))
    }

    fn of(root: Root) -> Server {
        Server { root, watcher: None, connections: Arc::default() }
    }

    /// Whether fixed contents are served.
    pub fn is_fixed(&self) -> bool {
        matches!(self.root, Root::Fixed(_))
    }

    /// Lets clients add to files below the folder; fixed contents stay as they are.
    pub fn writable(mut self) -> Server {
        if let Root::Folder(_, account) = &mut self.root {
            *account = Some(Arc::default());
        }
        self
    }

    /// Tells `watcher` of every answer; it is called on the connection's thread.
    pub fn with_watcher(mut self, watcher: impl Fn(&Served) + Send + Sync + 'static) -> Server {
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
            let (reply, unread) = match &self.root {
                Root::Folder(root, Some(account)) if request.is_post => {
                    let held = request.content.ok_or(411).and_then(|bytes| account.hold(bytes));
                    match held {
                        Ok(_held) => {
                            let content = read_content(&mut stream, &request, &mut buffer)?;
                            let kind = request.content_type.as_deref().unwrap_or_default();
                            let taken = content
                                .and_then(|content| upload::take(root, kind, &content, account));
                            (resource::plain(taken.err().unwrap_or(200)), 0)
                        }
                        Err(status) => (resource::plain(status), request.content.unwrap_or(0)),
                    }
                }
                root => (resource::reply(root, &request), request.content.unwrap_or(0)),
            };
            self.answer(&mut stream, &request, reply, started)?;
            if !request.keep_alive {
                // One that waits with its content does not send what it was told is not wanted.
                if !request.waits {
                    let unread = unread.saturating_sub(buffer.len() as u64).min(MAX_UNWANTED);
                    io::copy(&mut stream.take(unread), &mut io::sink())?;
                }
                return Ok(());
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
            Body::Fixed(content, first, _) => {
                let part = content.get(first..).unwrap_or_default();
                io::copy(&mut part.take(length), stream)
            }
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

/// Reads the content of a request, of which `buffer` has the beginning; else the status to refuse it with.
fn read_content(
    stream: &mut (impl Read + Write),
    request: &Request,
    buffer: &mut Vec<u8>,
) -> io::Result<Result<Vec<u8>, u16>> {
    let length = request.content.unwrap_or(0);
    if request.waits {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        stream.flush()?;
    }
    let mut content = std::mem::take(buffer);
    content.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    let missing = length - content.len() as u64;
    stream.take(missing).read_to_end(&mut content)?;
    Ok(if content.len() as u64 == length { Ok(content) } else { Err(400) })
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
