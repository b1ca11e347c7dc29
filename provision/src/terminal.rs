//! The terminal that our own process runs on, joined with one of the guest's: what `ssh` does with it.
//!
//! While the two are joined ours is in raw mode: every key goes to the guest, Ctrl-C too. So there is a way out of a guest
//! that hangs, OpenSSH's: `~.` at the beginning of a line. Raw mode ends with its guard, on an error and on a panic too; a
//! process that is killed cannot help it.
//!
//! The terminal is opened anew as `/dev/tty`, so that it can be read without blocking and without that being seen by
//! those who share our standard input. termios(3), tty_ioctl(4).

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, Termios};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::command::ExitStatus;
use crate::session::{Session, TerminalError, TerminalRequest, TerminalSize};

/// The kind of terminal that is asked for when ours has no name.
const PLAIN: &str = "dumb";

/// A terminal of this system's.
#[derive(Debug)]
pub struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// Opens the terminal that the process runs on. Needs a runtime.
    ///
    /// # Errors
    /// The process runs on none, or the system refuses.
    pub fn open() -> io::Result<Terminal> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Terminal::new(rustix::fs::open("/dev/tty", flags, Mode::empty())?)
    }

    /// Takes an open terminal, whose descriptor must be non-blocking.
    fn new(fd: OwnedFd) -> io::Result<Terminal> {
        #[expect(
            deprecated,
            reason = "unsafe is only what its successor asks of types that do not own their descriptor"
        )]
        Ok(Terminal { fd: AsyncFd::new(fd)? })
    }

    /// Returns how large it is; the usual size where it does not know.
    pub fn size(&self) -> TerminalSize {
        match rustix::termios::tcgetwinsize(&self.fd) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                TerminalSize { columns: size.ws_col, rows: size.ws_row }
            }
            _ => TerminalSize::default(),
        }
    }

    /// Puts it into raw mode until the guard is dropped.
    ///
    /// # Errors
    /// The system refuses.
    pub fn raw(&self) -> io::Result<RawMode> {
        let fd = self.fd.get_ref().try_clone()?;
        let before = rustix::termios::tcgetattr(&fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&fd, OptionalActions::Now, &raw)?;
        Ok(RawMode { fd, before })
    }
}

/// A terminal is in raw mode as long as this lives.
#[derive(Debug)]
pub struct RawMode {
    fd: OwnedFd,
    before: Termios,
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.fd, OptionalActions::Now, &self.before);
    }
}

impl AsyncRead for &Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(rustix::io::read(fd, buf.initialize_unfilled())?));
            match read {
                Ok(Ok(len)) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for &Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Joins the process's terminal with one of the guest's that runs `command`, or the login's shell, until that ends.
///
/// # Errors
/// See [`TerminalError`]: the process has no terminal ([`TerminalError::Input`]), the guest gives none, the user has left.
pub async fn run(session: &Session, command: Option<&str>) -> Result<ExitStatus, TerminalError> {
    let terminal = Terminal::open().map_err(TerminalError::Input)?;
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    let request = TerminalRequest {
        term: term.unwrap_or_else(|| PLAIN.into()),
        command: command.map(str::to_owned),
    };
    join(session, &terminal, &request).await
}

async fn join(
    session: &Session,
    terminal: &Terminal,
    request: &TerminalRequest,
) -> Result<ExitStatus, TerminalError> {
    let mut resized = signal(SignalKind::window_change()).map_err(TerminalError::Input)?;
    let (sizes, size) = watch::channel(terminal.size());
    let _raw = terminal.raw().map_err(TerminalError::Input)?;
    let (leaving, left) = (Leave::default(), std::cell::Cell::new(false));
    let input = Typed { terminal, leave: leaving, left: &left };
    let joined = session.terminal(request, size, input, terminal);
    tokio::pin!(joined);
    loop {
        tokio::select! {
            ended = &mut joined => {
                return if left.get() { Err(TerminalError::Left) } else { ended };
            }
            _ = resized.recv() => {
                sizes.send_if_modified(|size| {
                    let before = std::mem::replace(size, terminal.size());
                    before != *size
                });
            }
        }
    }
}

/// What is typed on a terminal, up to the keys that leave.
struct Typed<'a> {
    terminal: &'a Terminal,
    leave: Leave,
    left: &'a std::cell::Cell<bool>,
}

impl AsyncRead for Typed<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut terminal = self.terminal;
        let polled = ready!(Pin::new(&mut terminal).poll_read(cx, buf));
        if polled.is_ok() && self.leave.push(&buf.filled()[before..]) {
            self.left.set(true);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(polled)
    }
}

/// Sees `~.` at the beginning of a line of what is typed. The tilde is passed on like any other key.
#[derive(Debug, Default)]
enum Leave {
    #[default]
    LineStart,
    Tilde,
    Inside,
}

impl Leave {
    /// Takes what was typed; whether it leaves.
    fn push(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            *self = match (&self, byte) {
                (Leave::Tilde, b'.') => return true,
                (_, b'\r' | b'\n') => Leave::LineStart,
                (Leave::LineStart, b'~') => Leave::Tilde,
                _ => Leave::Inside,
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::Sshd;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    /// A pair: the side that a person sits at, and the terminal.
    fn pair() -> (Terminal, Terminal) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = openpt(flags).expect("a pseudo-terminal");
        grantpt(&person).expect("grant");
        unlockpt(&person).expect("unlock");
        let name = ptsname(&person, Vec::new()).expect("name");
        rustix::fs::fcntl_setfl(&person, OFlags::NONBLOCK).expect("nonblock");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("open");
        (Terminal::new(person).expect("async"), Terminal::new(fd).expect("async"))
    }

    fn is_raw(terminal: &Terminal) -> bool {
        let modes = tcgetattr(&terminal.fd).expect("modes").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn resize(terminal: &Terminal, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal.fd, size).expect("size");
    }

    /// Reads what is shown until it holds `what`.
    async fn expect(mut person: &Terminal, shown: &mut String, what: &str) {
        let seen = timeout(Duration::from_secs(20), async {
            let mut chunk = [0; 1024];
            while !shown.contains(what) {
                let len = person.read(&mut chunk).await.expect("read");
                shown.push_str(&String::from_utf8_lossy(&chunk[..len]));
            }
        });
        assert!(seen.await.is_ok(), "no {what:?} in {shown:?}");
    }

    #[tokio::test]
    async fn raw_mode_ends_with_its_guard_and_with_a_panic() {
        let (_person, terminal) = pair();
        assert!(!is_raw(&terminal));
        let raw = terminal.raw().expect("raw");
        assert!(is_raw(&terminal));
        drop(raw);
        assert!(!is_raw(&terminal));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _raw = terminal.raw().expect("raw");
            assert!(is_raw(&terminal));
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err() && !is_raw(&terminal));
    }

    #[tokio::test]
    async fn a_person_works_on_the_guest_s_terminal_and_gets_theirs_back() {
        let (mut person, terminal) = {
            let (person, terminal) = pair();
            (Box::leak(Box::new(person)) as &Terminal, terminal)
        };
        resize(&terminal, 91, 33);
        let sshd = Sshd::new();
        let (session, _server) = sshd.session().await;
        let request =
            TerminalRequest { term: "xterm".into(), command: Some("exec /bin/sh".into()) };
        let joined = join(&session, &terminal, &request);
        let typing = async {
            let mut shown = String::new();
            person.write_all(b"echo in; stty size; echo ${TERM}; echo on\r").await.expect("type");
            expect(person, &mut shown, "33 91\r\nxterm\r\non\r\n").await;
            assert!(is_raw(&terminal));
            // The kernel tells the terminal's own processes; this one has none, so the test does.
            resize(&terminal, 47, 11);
            rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::WINCH,
            )
            .expect("signal");
            person
                .write_all(
                    b"until [ \"$(stty size)\" = '11 47' ]; do sleep 0.05; done; echo resi''zed\r",
                )
                .await
                .expect("type");
            expect(person, &mut shown, "resized").await;
            // Ctrl-C is the guest's.
            person.write_all(b"echo beg''un; sleep 600\r").await.expect("type");
            expect(person, &mut shown, "begun").await;
            // One that comes while the shell is starting its child may go to neither.
            let onward = async {
                loop {
                    person.write_all(b"\x03echo on''ward\r").await.expect("type");
                    let seen = expect(person, &mut shown, "onward");
                    if timeout(Duration::from_millis(500), seen).await.is_ok() {
                        break;
                    }
                }
            };
            timeout(Duration::from_secs(60), onward).await.expect("the command is interrupted");
            person.write_all(b"exit 5\r").await.expect("type");
        };
        let (status, ()) = tokio::join!(joined, typing);
        assert_eq!(status.expect("status"), ExitStatus::Code(5));
        assert!(!is_raw(&terminal));
    }

    #[tokio::test]
    async fn a_guest_that_hangs_can_be_left() {
        let (person, terminal) = pair();
        let sshd = Sshd::new();
        let (session, _server) = sshd.session().await;
        let command = Some("stty raw -echo; echo $$; exec sleep 600".into());
        let request = TerminalRequest { term: "dumb".into(), command };
        let joined = join(&session, &terminal, &request);
        let mut shown = String::new();
        let typing = async {
            expect(&person, &mut shown, "\n").await;
            (&person).write_all(b"x~.\r~").await.expect("type");
            (&person).write_all(b".").await.expect("type");
        };
        let (ended, ()) = tokio::join!(joined, typing);
        assert!(matches!(ended, Err(TerminalError::Left)), "{ended:?}");
        assert!(!is_raw(&terminal));
        // What ran there was hung up on.
        let process = format!("/proc/{}", shown.trim());
        let gone = timeout(Duration::from_secs(20), async {
            while std::path::Path::new(&process).exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(gone.await.is_ok(), "{process} is still there");
    }

    #[test]
    fn only_a_tilde_and_a_dot_at_the_beginning_of_a_line_leave() {
        let leaves = |text: &str| Leave::default().push(text.as_bytes());
        assert!(leaves("~.") && leaves("ls\r~.") && leaves("~~\r~."));
        assert!(!leaves("a~.") && !leaves("~~.") && !leaves("~x.") && !leaves("cd ~.\r"));
    }
}
