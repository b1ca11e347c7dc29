//! The build's end of the socket: a thread that takes connections, and one for each of them. None of
//! them holds the build up, and when the build ends all of them have ended.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::protocol::{
    Console, Login, REQUEST_LIMIT, Refusal, Reply, Request, Status, read, write,
};

/// Connections at a time; more are turned away.
const CONNECTIONS: usize = 64;
/// How long a connection may take to ask.
const ASKING: Duration = Duration::from_secs(10);
/// How long an answer may take to be read.
const ANSWERING: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a console without output looks whether its reader is still there.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes that are passed on at a time.
const CHUNK: usize = 16 << 10;
/// Stack of each thread: what they do is shallow, but for reading a profile.
const STACK: usize = 1 << 20;

/// What a build answers.
pub trait Serve: Send + Sync + 'static {
    /// What it is doing.
    fn status(&self) -> Status;
    /// Connects to a TCP port of the guest. May block.
    fn dial(&self, port: u16) -> Result<UnixStream, Refusal>;
    /// Lets somebody look at the serial console, and type.
    fn console(&self) -> Result<Console, Refusal>;
    /// Says how to log in.
    fn login(&self) -> Result<Login, Refusal>;
    /// Stops the build.
    fn stop(&self);
    /// Runs the failed step again; says what will be done. May block.
    fn retry(&self) -> Result<String, Refusal>;
}

/// A socket that is answered at until this is dropped.
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    build: Arc<dyn Serve>,
    stopping: AtomicBool,
    /// The connections there are, to be ended with the server.
    open: Mutex<HashMap<u64, UnixStream>>,
}

impl Server {
    /// Answers for `build` at a new socket at `path`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(path: &Path, build: Arc<dyn Serve>) -> io::Result<Server> {
        let listener = UnixListener::bind(path)?;
        let open = Mutex::default();
        let shared = Arc::new(Shared { build, stopping: AtomicBool::new(false), open });
        let (theirs, taken) = (Arc::clone(&shared), listener.try_clone()?);
        let thread = thread("control", move || accept(&taken, &theirs))?;
        Ok(Server { shared, listener, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // SAFETY: the descriptor is the listener's, which lives. Linux ends accept(2) with EINVAL then.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Their threads end by themselves now; one that dials when the network has ended.
        for stream in self.shared.open().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).stack_size(STACK).spawn(body)
}

/// Takes connections until the listener is shut down.
fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.stopping.load(Ordering::Acquire) => return,
            Err(_) => {
                // Out of descriptors, mostly: later there may be some.
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let kept = stream.try_clone();
        let mut open = shared.open();
        let refusal = match (Peer::of(&stream), kept) {
            (Ok(peer), _) if !peer.is_trusted() => {
                format!("The build belongs to another user than the one with the id {}", peer.uid)
            }
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            (Ok(_), Ok(_)) if open.len() >= CONNECTIONS => {
                format!("The build has {CONNECTIONS} connections already")
            }
            (Ok(_), Ok(kept)) => {
                open.insert(number, kept);
                drop(open);
                let theirs = Arc::clone(shared);
                let started = thread("control peer", move || {
                    serve(&stream, theirs.build.as_ref());
                    theirs.open().remove(&number);
                });
                if started.is_err() {
                    shared.open().remove(&number);
                }
                continue;
            }
        };
        drop(open);
        refuse(&stream, Refusal::new(refusal));
    }
}

fn refuse(stream: &UnixStream, refusal: Refusal) {
    let _ = stream.set_write_timeout(Some(ANSWERING));
    let _ = write(stream, &Reply::<()>::Refused(refusal));
}

/// Hears what one connection asks, and does it. Whatever goes wrong ends the connection.
fn serve(stream: &UnixStream, build: &dyn Serve) {
    let asked = match read(stream, REQUEST_LIMIT, Some(Instant::now() + ASKING)) {
        Ok(asked) => asked,
        Err(error) => return refuse(stream, Refusal::new(format!("Not a request: {error}"))),
    };
    let _ = stream.set_write_timeout(Some(ANSWERING));
    let _ = match asked {
        Request::Status {} => write(stream, &Reply::Ok(build.status())),
        Request::Login {} => answer(stream, build.login()).map(drop),
        Request::Retry {} => answer(stream, build.retry()).map(drop),
        Request::Stop {} => {
            build.stop();
            // The connection ends with the build, by which the other side knows.
            write(stream, &Reply::Ok(())).map(|()| wait_for_end(stream))
        }
        Request::Nc { port } => match build.dial(port) {
            Ok(guest) => write(stream, &Reply::Ok(())).and_then(|()| join(stream, &guest)),
            Err(refusal) => answer::<()>(stream, Err(refusal)).map(drop),
        },
        Request::Console {} => match build.console() {
            Ok(console) => write(stream, &Reply::Ok(())).and_then(|()| look_at(stream, console)),
            Err(refusal) => answer::<()>(stream, Err(refusal)).map(drop),
        },
    };
}

fn answer<T: serde::Serialize>(stream: &UnixStream, result: Result<T, Refusal>) -> io::Result<()> {
    match result {
        Ok(value) => write(stream, &Reply::Ok(value)),
        Err(refusal) => write(stream, &Reply::<()>::Refused(refusal)),
    }
}

fn wait_for_end(mut stream: &UnixStream) {
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored), Ok(1..)) {}
}

/// Joins two streams until both directions have ended. The end of one direction is passed on and
/// leaves the other as it is.
fn join(peer: &UnixStream, guest: &UnixStream) -> io::Result<()> {
    // A guest that takes nothing for a while is no reason to hang up.
    peer.set_write_timeout(None)?;
    guest.set_nonblocking(false)?;
    let (from, to) = (peer.try_clone()?, guest.try_clone()?);
    let upward = thread("control peer", move || copy(&from, &to))?;
    copy(guest, peer);
    let _ = upward.join();
    Ok(())
}

/// Copies until `from` has ended, and passes the end on. When `to` takes nothing any more, `from` is
/// told.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break drop(to.shutdown(Shutdown::Write)),
            Ok(length) if to.write_all(&chunk[..length]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) => break drop(from.shutdown(Shutdown::Read)),
            Err(_) => break drop(to.shutdown(Shutdown::Both)),
        }
    }
}

/// Shows a console until the reader or the build has ended. A reader that has only ended its typing
/// goes on reading.
fn look_at(stream: &UnixStream, console: Console) -> io::Result<()> {
    let Console { recent, output, mut input } = console;
    let mut shown = stream;
    shown.write_all(&recent)?;
    let typed = stream.try_clone()?;
    let typing = thread("control peer", move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = (&typed).read(&mut chunk) {
            input(&chunk[..length]);
        }
    })?;
    loop {
        match output.recv_timeout(LOOK) {
            Ok(bytes) => shown.write_all(&bytes)?,
            Err(RecvTimeoutError::Timeout) if !has_hung_up(stream) => {}
            Err(_) => break,
        }
    }
    stream.shutdown(Shutdown::Both)?;
    let _ = typing.join();
    Ok(())
}

/// Whether the other side has closed the connection altogether: POLLHUP of poll(2).
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: the pointer is to one live pollfd, and nothing is kept of it.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// A build without a guest. Port 7 is an echo that says a word at the end.
    struct Fake {
        stopped: AtomicBool,
        typed: Arc<Mutex<Vec<u8>>>,
        output: Mutex<Option<Receiver<Vec<u8>>>>,
    }

    impl Serve for Fake {
        fn status(&self) -> Status {
            Status {
                id: "abcdef".into(),
                pid: 1,
                profile: "/p.toml".into(),
                name: "web".into(),
                output: None,
                started: 0,
                state: "boot".into(),
                since: 0,
                kept: false,
            }
        }

        fn dial(&self, port: u16) -> Result<UnixStream, Refusal> {
            if port != 7 {
                return Err(Refusal::new("refused"));
            }
            let (one, mut other) = UnixStream::pair().unwrap();
            std::thread::spawn(move || {
                other.write_all(b"hello ").unwrap();
                let mut all = Vec::new();
                other.read_to_end(&mut all).unwrap();
                other.write_all(&all).unwrap();
            });
            Ok(one)
        }

        fn console(&self) -> Result<Console, Refusal> {
            let typed = Arc::clone(&self.typed);
            let output = self.output.lock().unwrap().take();
            Ok(Console {
                recent: b"login: ".to_vec(),
                output: output.ok_or_else(|| Refusal::new("once"))?,
                input: Box::new(move |bytes| typed.lock().unwrap().extend_from_slice(bytes)),
            })
        }

        fn login(&self) -> Result<Login, Refusal> {
            Err(Refusal { message: "not yet".into(), hint: Some("wait".into()) })
        }

        fn stop(&self) {
            self.stopped.store(true, Ordering::Release);
        }

        fn retry(&self) -> Result<String, Refusal> {
            Ok("step 1 runs again".into())
        }
    }

    struct Running {
        server: Server,
        build: Arc<Fake>,
        console: SyncSender<Vec<u8>>,
        folder: tempfile::TempDir,
    }

    impl Running {
        fn new() -> Running {
            let folder = tempfile::tempdir().unwrap();
            let (console, output) = sync_channel(8);
            let build = Arc::new(Fake {
                stopped: AtomicBool::new(false),
                typed: Arc::default(),
                output: Mutex::new(Some(output)),
            });
            let server = Server::start(&folder.path().join("control"), Arc::clone(&build) as _);
            Running { server: server.unwrap(), build, console, folder }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.folder.path().join("control")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        }

        /// Sends a line and returns the answer's.
        fn ask(&self, line: &str) -> (UnixStream, serde_json::Value) {
            let mut stream = self.connect();
            // One that is turned away is answered before it has asked.
            let _ = stream.write_all(line.as_bytes());
            let answer = read(&stream, 1 << 16, None).unwrap();
            (stream, answer)
        }
    }

    #[test]
    fn questions_are_answered_and_refusals_carry_their_hint() {
        let running = Running::new();
        let (_, status) = running.ask("{\"op\":\"status\"}\n");
        assert_eq!(status["ok"]["name"], "web");
        let (_, login) = running.ask("{\"op\":\"login\"}\n");
        assert_eq!(
            (&login["refused"]["message"], &login["refused"]["hint"]),
            (&"not yet".into(), &"wait".into())
        );
        let (_, retry) = running.ask("{\"op\":\"retry\"}\n");
        assert_eq!(retry["ok"], "step 1 runs again");
        let (_, refused) = running.ask("{\"op\":\"nc\",\"port\":22}\n");
        assert_eq!(refused["refused"]["message"], "refused");
    }

    #[test]
    fn a_hostile_peer_is_told_and_hung_up_on_and_others_are_served() {
        let running = Running::new();
        for wrong in ["{}\n".to_string(), "x".repeat(REQUEST_LIMIT * 2), "\u{0}\n".into()] {
            let mut stream = running.connect();
            // The server may hang up before it has read all of it.
            let _ = stream.write_all(wrong.as_bytes());
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(answer.is_empty() || answer.contains("Not a request"), "{answer}");
        }
        let mut silent: Vec<UnixStream> = (0..CONNECTIONS).map(|_| running.connect()).collect();
        let (_, refused) = running.ask("{\"op\":\"status\"}\n");
        assert!(refused["refused"]["message"].as_str().unwrap().contains("connections"));
        // One that ends without having asked makes room.
        silent.pop();
        let deadline = Instant::now() + Duration::from_secs(60);
        while running.ask("{\"op\":\"status\"}\n").1["ok"].is_null() {
            assert!(Instant::now() < deadline);
        }
    }

    #[test]
    fn a_connection_to_the_guest_ends_one_way_at_a_time() {
        let running = Running::new();
        let (mut stream, answer) = running.ask("{\"op\":\"nc\",\"port\":7}\nearly ");
        assert!(answer.get("ok").is_some());
        stream.write_all(&vec![b'x'; 200_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all.starts_with(b"hello early xxx"));
        assert_eq!(all.len(), "hello early ".len() + 200_000);
    }

    #[test]
    fn the_console_shows_what_was_and_what_comes_and_takes_keys() {
        let running = Running::new();
        let (mut stream, answer) = running.ask("{\"op\":\"console\"}\nroot\r");
        assert!(answer.get("ok").is_some());
        stream.shutdown(Shutdown::Write).unwrap();
        running.console.send(b"Password: ".to_vec()).unwrap();
        let mut seen = vec![0; "login: Password: ".len()];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(seen, b"login: Password: ");
        let deadline = Instant::now() + Duration::from_secs(60);
        while *running.build.typed.lock().unwrap() != b"root\r" {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let Running { console, .. } = running;
        drop(console);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest is gone");
    }

    #[test]
    fn all_connections_end_with_the_server_and_so_does_a_stop() {
        let running = Running::new();
        let (mut stream, answer) = running.ask("{\"op\":\"stop\"}\n");
        assert!(answer.get("ok").is_some() && running.build.stopped.load(Ordering::Acquire));
        let mut idle = running.connect();
        let (mut console, _) = running.ask("{\"op\":\"console\"}\n");
        drop(running.server);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let _ = idle.read_to_end(&mut Vec::new());
        console.read_to_end(&mut Vec::new()).unwrap();
        UnixStream::connect(running.folder.path().join("control")).unwrap_err();
    }
}
