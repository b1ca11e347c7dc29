//! Runs one command over a channel and follows it to its end.

use std::sync::Arc;
use std::time::Duration;

use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, client};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::remote::{NOT_STARTED, Place, kill_words, line_words, words};
use super::{Session, SessionError};
use crate::command::{Command, ExitStatus, Privilege};
use crate::output::{Capture, Output, Stream};

/// How long after the exit status we listen for output that is still on its way, or that a program left in the
/// background keeps the channel open for.
const GRACE: Duration = Duration::from_secs(3);

/// How long the killing of a command may take: its own ten seconds, and a slow guest.
const KILLING: Duration = Duration::from_secs(60);

/// How much is read of what a login's start-up files print before the command begins.
const NOISE: usize = 64 << 10;

/// What a command printed that was run for its output.
#[derive(Debug, Clone)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, cut at 1 MiB.
    pub stdout: String,
    /// Standard error, cut at 1 MiB.
    pub stderr: String,
}

impl Capture {
    fn into_captured(self, status: ExitStatus) -> Captured {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Captured { status, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

impl Session {
    /// Runs a command and hands its output over as it comes.
    ///
    /// A command that takes longer than it may is killed, its whole process group, before this returns. A program that
    /// it leaves in the background does not hold it up: three seconds after the exit status the channel is closed.
    ///
    /// # Errors
    /// When there is no exit status: see [`SessionError`]. An exit code other than 0 is no error here.
    pub async fn run(
        &self,
        command: &Command,
        output: &mut dyn Output,
    ) -> Result<ExitStatus, SessionError> {
        let mark = format!("kvmbake-{:016x}", mark_number());
        let remote = words(command, self.who(), &mark)?;
        let channel = self.start(&remote.exec).await?;
        let mut running = Running::new(self, channel, remote.stdin, Preamble::new(remote.mark));
        let limit = command.timeout;
        let deadline = limit.map(|limit| Instant::now() + limit);
        match running.follow(deadline, output).await? {
            Some(status) => running.conclude(status, remote.as_user),
            None => {
                let ended = self.end_of(&mut running, &command.privilege, output).await;
                Err(SessionError::TimedOut { limit: limit.unwrap_or_default(), ended })
            }
        }
    }

    /// Runs a command for its output, up to 1 MiB of each stream.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub async fn capture(&self, command: &Command) -> Result<Captured, SessionError> {
        let mut capture = Capture::new(1 << 20);
        let status = self.run(command, &mut capture).await?;
        Ok(capture.into_captured(status))
    }

    /// Kills what has run too long and listens until it is gone; whether it is.
    async fn end_of(
        &self,
        running: &mut Running<'_>,
        privilege: &Privilege,
        output: &mut dyn Output,
    ) -> bool {
        // It may be about to begin: what is not known cannot be killed, so it is given time to tell.
        let patience = Instant::now() + KILLING;
        while running.preamble.place.is_none() && Instant::now() < patience {
            let next = Instant::now() + Duration::from_millis(100);
            if !matches!(running.follow(Some(next), output).await, Ok(None)) {
                return true;
            }
        }
        let Some(place) = running.preamble.place.clone() else {
            running.close().await;
            return false;
        };
        // What it prints must be read on: a full channel would stop the killer's own.
        let listening = running.follow(Some(Instant::now() + KILLING), output);
        let (killed, ended) =
            tokio::join!(timeout(KILLING, self.kill(&place, privilege)), listening);
        running.close().await;
        killed.unwrap_or(false) || matches!(ended, Ok(Some(_)) | Err(_))
    }

    async fn kill(&self, place: &Place, privilege: &Privilege) -> bool {
        let Ok((exec, stdin)) = kill_words(place, privilege, self.who()) else { return false };
        let Ok(channel) = self.start(&exec).await else { return false };
        let mut killer = Running::new(self, channel, stdin, Preamble::none());
        matches!(killer.follow(None, &mut ()).await, Ok(Some(ExitStatus::Code(0))))
    }

    /// Runs one line of shell, made when its channel stands, for its output: a single program's worth of words, without
    /// the folder and the process group of a [`Command`]. What it starts is not killed when `limit` is over.
    pub(crate) async fn ask(
        &self,
        privilege: &Privilege,
        limit: Duration,
        line: impl FnOnce() -> String,
    ) -> Result<Captured, SessionError> {
        let mark = format!("kvmbake-{:016x}", mark_number());
        let asking = async {
            let channel = self.open().await?;
            let remote = line_words(&line(), privilege, self.who(), &mark)?;
            channel.exec(true, &*remote.exec).await.map_err(|_| self.lost(false))?;
            let mut running = Running::new(self, channel, remote.stdin, Preamble::new(remote.mark));
            let mut capture = Capture::new(64 << 10);
            match running.follow(Some(Instant::now() + limit), &mut capture).await? {
                Some(status) => {
                    Ok(capture.into_captured(running.conclude(status, remote.as_user)?))
                }
                None => {
                    running.close().await;
                    Err(SessionError::TimedOut { limit, ended: false })
                }
            }
        };
        // The opening too may never be answered, by a guest that hangs.
        let opened = timeout(limit + Duration::from_secs(1), asking).await;
        opened.unwrap_or(Err(SessionError::TimedOut { limit, ended: false }))
    }

    async fn start(&self, exec: &str) -> Result<Channel<client::Msg>, SessionError> {
        let channel = self.open().await?;
        channel.exec(true, exec).await.map_err(|_| self.lost(false))?;
        Ok(channel)
    }

    /// Opens a channel for one program.
    pub(crate) async fn open(&self) -> Result<Channel<client::Msg>, SessionError> {
        if self.is_closed() {
            return Err(self.lost(false));
        }
        match self.handle.channel_open_session().await {
            Ok(channel) => Ok(channel),
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                Err(SessionError::ChannelRefused { detail: format!("{reason:?}") })
            }
            Err(_) => Err(self.lost(false)),
        }
    }

    pub(crate) fn lost(&self, started: bool) -> SessionError {
        SessionError::ConnectionLost { started, detail: self.end() }
    }
}

/// A word that no output holds by chance; it guards nothing, so the clock and the process serve for it.
pub(crate) fn mark_number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

struct Running<'a> {
    session: &'a Session,
    reader: ChannelReadHalf,
    writer: Arc<ChannelWriteHalf<client::Msg>>,
    /// Sends the input. On its own, because the channel's window may make it wait for the program to read.
    sending: JoinHandle<()>,
    preamble: Preamble,
    /// What was printed before the command is known to have begun.
    stderr: Vec<u8>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

impl<'a> Running<'a> {
    fn new(
        session: &'a Session,
        channel: Channel<client::Msg>,
        stdin: Vec<u8>,
        preamble: Preamble,
    ) -> Running<'a> {
        let (reader, writer) = channel.split();
        let writer = Arc::new(writer);
        let sender = writer.clone();
        let sending = tokio::spawn(async move {
            // A program that reads no input ends this early, and is within its rights.
            let _ = sender.data(&stdin[..]).await;
            let _ = sender.eof().await;
        });
        Running { session, reader, writer, sending, preamble, stderr: Vec::new() }
    }

    async fn close(&self) {
        let _ = timeout(Duration::from_secs(1), self.writer.close()).await;
    }

    /// Passes the output on until the command has ended; none when the deadline came first.
    async fn follow(
        &mut self,
        deadline: Option<Instant>,
        output: &mut dyn Output,
    ) -> Result<Option<ExitStatus>, SessionError> {
        let mut status = None;
        let far = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let mut until = deadline.unwrap_or(far);
        loop {
            let message = tokio::select! {
                message = self.reader.wait() => message,
                () = sleep_until(until) => {
                    if status.is_some() {
                        let _ = timeout(Duration::from_secs(1), self.writer.close()).await;
                    }
                    return Ok(status);
                }
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    let begun = self.preamble.done();
                    let text = self.preamble.push(&data);
                    if !begun && self.preamble.done() && !self.stderr.is_empty() {
                        // The two streams overtake each other: some of this may be the command's own.
                        output.write(Stream::Stderr, &std::mem::take(&mut self.stderr));
                    }
                    if let Some(text) = text {
                        output.write(Stream::Stdout, &text);
                    }
                }
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    if self.preamble.done() {
                        output.write(Stream::Stderr, &data);
                    } else {
                        keep_last(&mut self.stderr, &data, NOISE);
                    }
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    status = Some(ExitStatus::Code(exit_status))
                }
                Some(ChannelMsg::ExitSignal { signal_name, core_dumped, .. }) => {
                    status =
                        Some(ExitStatus::Signal { name: signal_text(&signal_name), core_dumped });
                }
                Some(ChannelMsg::Failure) => {
                    return Err(SessionError::ChannelRefused {
                        detail: "the command was not accepted".into(),
                    });
                }
                Some(ChannelMsg::Close) => {
                    return match status {
                        Some(status) => Ok(Some(status)),
                        None if self.session.closed(Duration::from_secs(1)).await => {
                            Err(self.session.lost(self.preamble.done()))
                        }
                        None => Err(SessionError::NoExitStatus),
                    };
                }
                None => {
                    return match status {
                        Some(status) => Ok(Some(status)),
                        None => Err(self.session.lost(self.preamble.done())),
                    };
                }
                Some(_) => {}
            }
            if status.is_some() && until > Instant::now() + GRACE {
                until = Instant::now() + GRACE;
            }
        }
    }

    /// Tells a command's own exit status from that of what should have started it.
    fn conclude(
        self,
        status: ExitStatus,
        as_user: Option<String>,
    ) -> Result<ExitStatus, SessionError> {
        if self.preamble.done() {
            return Ok(status);
        }
        let mut said = self.preamble.noise();
        said.extend_from_slice(&self.stderr);
        let message = String::from_utf8_lossy(&said).trim().to_owned();
        let message = if message.is_empty() { format!("no output, {status}") } else { message };
        match (self.preamble.shell_reached, as_user) {
            (false, Some(user)) => Err(SessionError::SudoRefused {
                login: self.session.user.clone(),
                user,
                with_password: self.session.sudo_password.is_some(),
                message,
            }),
            _ => {
                let code = if let ExitStatus::Code(code) = status { Some(code) } else { None };
                Err(SessionError::NotStarted {
                    code: code.filter(|&code| code != NOT_STARTED),
                    message,
                })
            }
        }
    }
}

/// Takes our own lines off the beginning of standard output, and what a login's start-up files print before them.
struct Preamble {
    mark: Option<String>,
    held: Vec<u8>,
    shell_reached: bool,
    place: Option<Place>,
}

impl Preamble {
    fn new(mark: String) -> Preamble {
        Preamble { mark: Some(mark), held: Vec::new(), shell_reached: false, place: None }
    }

    /// For a command that says nothing of itself.
    fn none() -> Preamble {
        Preamble { mark: None, held: Vec::new(), shell_reached: true, place: None }
    }

    /// Whether the command has begun.
    fn done(&self) -> bool {
        self.mark.is_none()
    }

    fn noise(&self) -> Vec<u8> {
        self.held.clone()
    }

    /// Takes bytes; gives those that are the command's own.
    fn push(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let Some(mark) = &self.mark else { return Some(bytes.to_vec()) };
        self.held.extend_from_slice(bytes);
        while let Some(end) = self.held.iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&self.held[..end]).into_owned();
            // A start-up file may have left its last line open: the mark then stands inside ours.
            let Some((_, told)) = line.split_once(mark.as_str()) else {
                self.held.drain(..=end);
                continue;
            };
            self.held.drain(..=end);
            if told == " shell" {
                self.shell_reached = true;
            } else if let Some(place) = told.strip_prefix(" run ").and_then(Place::parse) {
                self.place = Some(place);
                self.mark = None;
                let rest = std::mem::take(&mut self.held);
                return if rest.is_empty() { None } else { Some(rest) };
            }
        }
        if self.held.len() > NOISE {
            let extra = self.held.len() - NOISE;
            self.held.drain(..extra);
        }
        None
    }
}

fn keep_last(kept: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    kept.extend_from_slice(bytes);
    let extra = kept.len().saturating_sub(limit);
    kept.drain(..extra);
}

pub(super) fn signal_text(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.chars().filter(char::is_ascii_alphanumeric).take(16).collect(),
        named => format!("{named:?}"),
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
