//! Files over SFTP: the part of version 3 that uploads and downloads need, with requests sent ahead of their answers.
//!
//! [`Sftp`] belongs to one task: it puts requests into a buffer, sends them together, and reads answers while it sends,
//! so that neither side waits for the other for ever. Whoever uses it keeps at most [`AHEAD`] requests unanswered, which
//! bounds what a guest can make us hold. With root's rights the server is started through sudo, so that files get to
//! where they belong in the same way whoever logs in.
//!
//! Our own and not a library's, because names are bytes here and memory is bounded on both ways.

mod error;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::time::{Instant, timeout_at};

use crate::command::Privilege;
use crate::session::{Session, Sudo};

pub use error::SftpError;
pub(crate) use error::{refusal, refused};
pub(crate) use wire::{Attributes, EOF, NO_SUCH_FILE, OK, Reply};
use wire::{Kind, Request};

/// How many requests may be unanswered.
pub(crate) const AHEAD: usize = 64;
/// What is written or read by one request, in bytes: what every server takes (draft section 3).
pub(crate) const PIECE: usize = 32 << 10;
/// Requests are sent once they add up to this.
const FULL: usize = 128 << 10;
/// How long a server may be silent when an answer is due.
const SILENCE: Duration = Duration::from_secs(120);
/// The exit code of a shell that found no server.
const NOT_FOUND: u32 = 127;
/// Most of what a server prints beside its answers.
const NOISE: usize = 4 << 10;

/// Finds the server where distributions put it.
const SERVER: &str = "for s in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server \
    /usr/libexec/sftp-server /usr/lib/sftp-server; do [ -x \"$s\" ] && exec \"$s\"; done; exit 127";

/// A request that was made: its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

/// One conversation with a server in the guest.
pub(crate) struct Sftp<'s> {
    session: &'s Session,
    reader: ChannelReadHalf,
    writer: ChannelWriteHalf<client::Msg>,
    /// Requests that were not sent yet.
    out: Vec<u8>,
    /// The beginning of a packet.
    input: Vec<u8>,
    next: u32,
    due: BTreeSet<u32>,
    answers: BTreeMap<u32, Reply>,
    /// What the server, or who starts it, says in words.
    noise: Vec<u8>,
    exit: Option<u32>,
    replaces: bool,
}

impl<'s> Sftp<'s> {
    /// Starts a server with the login's rights or root's.
    ///
    /// # Errors
    /// There is none, or sudo lets nobody in.
    pub(crate) async fn start(
        session: &'s Session,
        privilege: &Privilege,
    ) -> Result<Sftp<'s>, SftpError> {
        if *privilege == Privilege::Root && session.user() != "root" {
            return Sftp::greet(session, Some(&session.sudo())).await;
        }
        // Which program it is, the SSH server knows best.
        match Sftp::greet(session, None).await {
            Err(SftpError::NoServer) => {
                let shell = Sudo { exec: "exec /bin/sh".into(), input: Vec::new(), skip: "" };
                Sftp::greet(session, Some(&shell)).await
            }
            greeted => greeted,
        }
    }

    async fn greet(session: &'s Session, shell: Option<&Sudo>) -> Result<Sftp<'s>, SftpError> {
        let channel = session.open().await?;
        let asked = match shell {
            None => channel.request_subsystem(true, "sftp").await,
            Some(Sudo { exec, skip, .. }) => {
                channel.exec(true, format!("{exec} -c '{skip}{SERVER}'")).await
            }
        };
        asked.map_err(|_| session.lost(false))?;
        let (reader, writer) = channel.split();
        let mut sftp = Sftp {
            session,
            reader,
            writer,
            out: shell.map(|shell| shell.input.clone()).unwrap_or_default(),
            input: Vec::new(),
            next: 0,
            due: BTreeSet::new(),
            answers: BTreeMap::new(),
            noise: Vec::new(),
            exit: None,
            replaces: false,
        };
        wire::init(&mut sftp.out);
        sftp.send().await?;
        let packet = loop {
            match wire::take_packet(&mut sftp.input) {
                Ok(Some(packet)) => break packet,
                Ok(None) => sftp.receive().await?,
                // What is no packet is the word of a start-up file.
                Err(_) => {
                    let message = String::from_utf8_lossy(&sftp.input).trim().to_owned();
                    let message = message.chars().take(200).collect();
                    return Err(SftpError::NotStarted { message });
                }
            }
        };
        sftp.replaces = wire::version(&packet)?;
        Ok(sftp)
    }

    /// Ends the conversation.
    pub(crate) async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.writer.close()).await;
    }

    /// Waits for the answer to a request.
    pub(crate) async fn answer(&mut self, ticket: Ticket) -> Result<Reply, SftpError> {
        loop {
            if let Some(reply) = self.answers.remove(&ticket.0) {
                return Ok(reply);
            }
            if !self.out.is_empty() {
                self.send().await?;
            } else {
                self.receive().await?;
            }
            self.sort()?;
        }
    }

    /// Waits for an answer that says no more than whether it was done.
    pub(crate) async fn done(
        &mut self,
        ticket: Ticket,
        action: &'static str,
        path: &[u8],
    ) -> Result<(), SftpError> {
        match self.answer(ticket).await? {
            Reply::Status { code: OK, .. } => Ok(()),
            reply => Err(refused(reply, action, path)),
        }
    }

    /// Waits for the handle of a file or folder.
    pub(crate) async fn handle(
        &mut self,
        ticket: Ticket,
        action: &'static str,
        path: &[u8],
    ) -> Result<Vec<u8>, SftpError> {
        match self.answer(ticket).await? {
            Reply::Handle(handle) => Ok(handle),
            reply => Err(refused(reply, action, path)),
        }
    }

    /// Waits for what is known of a path; none when there is nothing.
    pub(crate) async fn found(
        &mut self,
        ticket: Ticket,
        path: &[u8],
    ) -> Result<Option<Attributes>, SftpError> {
        match self.answer(ticket).await? {
            Reply::Attributes(attributes) => Ok(Some(attributes)),
            Reply::Status { code: NO_SUCH_FILE, .. } => Ok(None),
            reply => Err(refused(reply, "look at", path)),
        }
    }

    /// Makes a request whose only field is a path.
    async fn of_path(&mut self, kind: Kind, path: &[u8]) -> Result<Ticket, SftpError> {
        self.request(kind, |request| request.string(path)).await
    }

    /// Asks what a path is, links followed.
    pub(crate) async fn stat(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        self.of_path(Kind::Stat, path).await
    }

    /// Asks what a path is.
    pub(crate) async fn lstat(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        self.of_path(Kind::Lstat, path).await
    }

    /// Creates a file that is not there yet, for its owner alone.
    pub(crate) async fn create(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        let private = Attributes { mode: Some(0o600), ..Attributes::default() };
        let fill = |request: Request<'_>| {
            request.string(path).number(wire::OPEN_NEW).attributes(&private).finish();
        };
        self.filled(Kind::Open, fill).await
    }

    /// Opens a file for reading.
    pub(crate) async fn open_file(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        let none = Attributes::default();
        let fill = |request: Request<'_>| {
            request.string(path).number(wire::OPEN_READ).attributes(&none).finish();
        };
        self.filled(Kind::Open, fill).await
    }

    /// Writes a piece of at most [`PIECE`] bytes.
    pub(crate) async fn write(
        &mut self,
        handle: &[u8],
        offset: u64,
        bytes: &[u8],
    ) -> Result<Ticket, SftpError> {
        self.request(Kind::Write, |request| request.string(handle).long(offset).string(bytes)).await
    }

    /// Reads at most `length` bytes.
    pub(crate) async fn read(
        &mut self,
        handle: &[u8],
        offset: u64,
        length: u32,
    ) -> Result<Ticket, SftpError> {
        self.request(Kind::Read, |request| request.string(handle).long(offset).number(length)).await
    }

    /// Changes an open file's attributes.
    pub(crate) async fn set_open(
        &mut self,
        handle: &[u8],
        attributes: &Attributes,
    ) -> Result<Ticket, SftpError> {
        self.request(Kind::Fsetstat, |request| request.string(handle).attributes(attributes)).await
    }

    /// Changes the attributes of what is at a path, links followed.
    pub(crate) async fn set(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<Ticket, SftpError> {
        self.request(Kind::Setstat, |request| request.string(path).attributes(attributes)).await
    }

    /// Closes a file or folder.
    pub(crate) async fn close_handle(&mut self, handle: &[u8]) -> Result<Ticket, SftpError> {
        self.of_path(Kind::Close, handle).await
    }

    /// Makes a folder.
    pub(crate) async fn make_folder(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        let usual = Attributes { mode: Some(0o755), ..Attributes::default() };
        self.request(Kind::Mkdir, |request| request.string(path).attributes(&usual)).await
    }

    /// Makes a symbolic link.
    pub(crate) async fn link(&mut self, path: &[u8], target: &[u8]) -> Result<Ticket, SftpError> {
        // OpenSSH took the two for the other way round, and everybody followed: its PROTOCOL, section 4.1.
        self.request(Kind::Symlink, |request| request.string(target).string(path)).await
    }

    /// Asks where a symbolic link leads.
    pub(crate) async fn link_target(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        self.of_path(Kind::Readlink, path).await
    }

    /// Removes a file or link.
    pub(crate) async fn remove(&mut self, path: &[u8]) -> Result<Ticket, SftpError> {
        self.of_path(Kind::Remove, path).await
    }

    /// Renames, in the place of what is there.
    pub(crate) async fn replace(&mut self, from: &[u8], to: &[u8]) -> Result<Ticket, SftpError> {
        if self.replaces {
            let fill = |request: Request<'_>| {
                request.string(wire::POSIX_RENAME).string(from).string(to).finish();
            };
            return self.filled(Kind::Extended, fill).await;
        }
        // A plain rename does not replace (draft section 6.5). Whether there was something to remove does not matter.
        let removed = self.remove(to).await?;
        self.answer(removed).await?;
        self.request(Kind::Rename, |request| request.string(from).string(to)).await
    }

    /// Lists a folder, at most `limit` names, without `.` and `..`.
    ///
    /// # Errors
    /// Among others, names that lead elsewhere.
    pub(crate) async fn list(
        &mut self,
        path: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Attributes)>, SftpError> {
        let opened = self.of_path(Kind::Opendir, path).await?;
        let handle = self.handle(opened, "list", path).await?;
        let mut all = Vec::new();
        loop {
            let asked = self.of_path(Kind::Readdir, &handle).await?;
            match self.answer(asked).await? {
                Reply::Names(names) if names.is_empty() => break,
                Reply::Names(names) => {
                    for (name, attributes) in names {
                        match name.as_slice() {
                            b"." | b".." => continue,
                            [] => return Err(SftpError::protocol("a file without a name")),
                            name if name.contains(&b'/') || name.contains(&0) => {
                                let shown =
                                    String::from_utf8_lossy(name).escape_debug().to_string();
                                return Err(SftpError::protocol(format!("a file called {shown}")));
                            }
                            _ => all.push((name, attributes)),
                        }
                    }
                }
                Reply::Status { code: EOF, .. } => break,
                reply => return Err(refused(reply, "list", path)),
            }
            if all.len() > limit {
                let message = format!("it holds more than {limit} files");
                return Err(refusal("list", path, message));
            }
        }
        let closed = self.close_handle(&handle).await?;
        self.answer(closed).await?;
        Ok(all)
    }

    async fn request(
        &mut self,
        kind: Kind,
        fill: impl for<'o> FnOnce(Request<'o>) -> Request<'o>,
    ) -> Result<Ticket, SftpError> {
        self.filled(kind, |request| fill(request).finish()).await
    }

    /// Puts a request into the buffer, and sends what is there when it is enough.
    async fn filled(
        &mut self,
        kind: Kind,
        fill: impl FnOnce(Request<'_>),
    ) -> Result<Ticket, SftpError> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        fill(Request::new(&mut self.out, kind, id));
        self.due.insert(id);
        if self.out.len() >= FULL {
            self.send().await?;
            self.sort()?;
        }
        Ok(Ticket(id))
    }

    /// Sends all that is in the buffer, and takes in meanwhile what comes.
    async fn send(&mut self) -> Result<(), SftpError> {
        let out = std::mem::take(&mut self.out);
        let Sftp { session, reader, writer, input, noise, exit, .. } = self;
        let sending = writer.data(&out[..]);
        tokio::pin!(sending);
        let mut deadline = Instant::now() + SILENCE;
        loop {
            tokio::select! {
                sent = &mut sending => {
                    // The reason why it could not be sent comes from the other side.
                    return match sent {
                        Err(_) if session.is_closed() => Err(session.lost(true).into()),
                        _ => Ok(()),
                    };
                }
                message = reader.wait() => {
                    deadline = Instant::now() + SILENCE;
                    take(message, session, input, noise, exit)?;
                }
                () = tokio::time::sleep_until(deadline) => return Err(SftpError::Silent),
            }
        }
    }

    /// Takes in the next thing that comes.
    async fn receive(&mut self) -> Result<(), SftpError> {
        let deadline = Instant::now() + SILENCE;
        let message = timeout_at(deadline, self.reader.wait()).await;
        let message = message.map_err(|_| SftpError::Silent)?;
        take(message, self.session, &mut self.input, &mut self.noise, &mut self.exit)
    }

    /// Puts the packets that are there to the requests that they answer.
    fn sort(&mut self) -> Result<(), SftpError> {
        while let Some(packet) = wire::take_packet(&mut self.input)? {
            let (id, reply) = wire::reply(&packet)?;
            if !self.due.remove(&id) {
                return Err(SftpError::protocol("an answer to no question"));
            }
            self.answers.insert(id, reply);
        }
        Ok(())
    }
}

/// Takes a message of the channel in.
fn take(
    message: Option<ChannelMsg>,
    session: &Session,
    input: &mut Vec<u8>,
    noise: &mut Vec<u8>,
    exit: &mut Option<u32>,
) -> Result<(), SftpError> {
    match message {
        Some(ChannelMsg::Data { data }) => input.extend_from_slice(&data),
        Some(ChannelMsg::ExtendedData { data, .. }) => {
            let room = NOISE.saturating_sub(noise.len());
            noise.extend_from_slice(&data[..data.len().min(room)]);
        }
        Some(ChannelMsg::ExitStatus { exit_status }) => *exit = Some(exit_status),
        Some(ChannelMsg::Failure) => return Err(SftpError::NoServer),
        Some(ChannelMsg::Close) | None if session.is_closed() => {
            return Err(session.lost(true).into());
        }
        Some(ChannelMsg::Close) | None if *exit == Some(NOT_FOUND) && noise.is_empty() => {
            return Err(SftpError::NoServer);
        }
        Some(ChannelMsg::Close) | None => {
            let message = String::from_utf8_lossy(noise).trim().to_owned();
            let code = exit.map_or_else(|| "it ended".into(), |code| format!("exit code {code}"));
            let message = if message.is_empty() { code } else { message };
            return Err(SftpError::NotStarted { message });
        }
        Some(_) => {}
    }
    Ok(())
}
