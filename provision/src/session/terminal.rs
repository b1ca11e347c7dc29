//! A terminal of the guest's: a shell or one command on a pseudo-terminal, joined with two streams of the caller's.
//!
//! RFC 4254, section 6.2 to 6.10. Requests are sent in one go, so a terminal stands after one round trip behind the
//! opening of its channel. The caller's own terminal is none of this module's business; see [`crate::terminal`].

use std::io;
use std::time::Duration;

use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, client};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::exec::signal_text;
use super::{Session, SessionError};
use crate::command::ExitStatus;

/// How much is read of the caller's input at a time.
const CHUNK: usize = 16 << 10;

/// How long the guest may take to hear that the terminal is given up.
const GOODBYE: Duration = Duration::from_secs(1);

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for TerminalSize {
    fn default() -> TerminalSize {
        TerminalSize { columns: 80, rows: 24 }
    }
}

/// What runs on the terminal, and how it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalRequest {
    /// The kind of terminal, as `TERM` names it.
    pub term: String,
    /// What the login's shell is to run; none is the login shell itself.
    pub command: Option<String>,
}

/// Why a terminal has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The session's side failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The server gives no pseudo-terminal.
    #[error("The guest's SSH server gives no terminal")]
    Refused,
    /// The caller's input could not be read.
    #[error("The input of the terminal cannot be read")]
    Input(#[source] io::Error),
    /// The caller's output could not be written.
    #[error("The output of the terminal cannot be written")]
    Output(#[source] io::Error),
    /// The user has left, and what ran there was hung up on.
    #[error("The terminal was left before its shell ended")]
    Left,
}

impl Session {
    /// Runs a shell or a command on a terminal of the guest's until it ends.
    ///
    /// What comes from `input` is typed there, what is shown there goes to `output`. The terminal has the size that
    /// `size` holds, now and whenever it changes. The end of `input` is told to the guest, and does not end the shell.
    /// When this fails, or is dropped with the session, what runs there is hung up on.
    ///
    /// # Errors
    /// See [`TerminalError`]. An exit code other than 0 is no error here.
    pub async fn terminal<R, W>(
        &self,
        request: &TerminalRequest,
        size: watch::Receiver<TerminalSize>,
        input: R,
        output: W,
    ) -> Result<ExitStatus, TerminalError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let channel = self.open().await?;
        let (mut reader, writer) = channel.split();
        let joined = self.join(request, size, (input, output), &mut reader, &writer).await;
        // After an end of the guest's own the channel is closed already.
        let _ = timeout(GOODBYE, writer.close()).await;
        joined
    }

    async fn join<R, W>(
        &self,
        request: &TerminalRequest,
        mut size: watch::Receiver<TerminalSize>,
        (input, output): (R, W),
        reader: &mut ChannelReadHalf,
        writer: &ChannelWriteHalf<client::Msg>,
    ) -> Result<ExitStatus, TerminalError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let TerminalSize { columns, rows } = *size.borrow_and_update();
        let (columns, rows) = (u32::from(columns), u32::from(rows));
        // The guest's terminal takes what is typed as UTF-8, so that erasing takes whole characters.
        let modes = [(Pty::IUTF8, 1)];
        let asked = writer.request_pty(true, &request.term, columns, rows, 0, 0, &modes);
        asked.await.map_err(|_| self.lost(false))?;
        let started = match &request.command {
            Some(command) => writer.exec(true, command.as_bytes()).await,
            None => writer.request_shell(true).await,
        };
        started.map_err(|_| self.lost(false))?;

        let typing = type_in(input, writer);
        let resizing = resize(size, writer);
        let showing = self.show(output, reader);
        tokio::pin!(typing, resizing, showing);
        let mut typed = false;
        loop {
            tokio::select! {
                ended = &mut showing => return ended,
                result = &mut typing, if !typed => {
                    result.map_err(TerminalError::Input)?;
                    typed = true;
                }
                () = &mut resizing => {}
            }
        }
    }

    /// Writes what the guest shows until the channel ends.
    async fn show<W>(
        &self,
        mut output: W,
        reader: &mut ChannelReadHalf,
    ) -> Result<ExitStatus, TerminalError>
    where
        W: AsyncWrite + Unpin,
    {
        // The answers come in the order of the requests: the terminal's, then the shell's.
        let mut granted = 0;
        let mut status = None;
        loop {
            match reader.wait().await {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    output.write_all(&data).await.map_err(TerminalError::Output)?;
                    output.flush().await.map_err(TerminalError::Output)?;
                }
                Some(ChannelMsg::Success) => granted += 1,
                Some(ChannelMsg::Failure) if granted == 0 => return Err(TerminalError::Refused),
                Some(ChannelMsg::Failure) if granted == 1 => {
                    let detail = "the command was not accepted".into();
                    return Err(SessionError::ChannelRefused { detail }.into());
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    status = Some(ExitStatus::Code(exit_status));
                }
                Some(ChannelMsg::ExitSignal { signal_name, core_dumped, .. }) => {
                    let name = signal_text(&signal_name);
                    status = Some(ExitStatus::Signal { name, core_dumped });
                }
                Some(ChannelMsg::Close) | None => {
                    return match status {
                        Some(status) => Ok(status),
                        None if self.closed(Duration::from_secs(1)).await => {
                            Err(self.lost(granted > 1).into())
                        }
                        None => Err(SessionError::NoExitStatus.into()),
                    };
                }
                Some(_) => {}
            }
        }
    }
}

/// Sends what is typed until the input ends.
async fn type_in<R>(mut input: R, writer: &ChannelWriteHalf<client::Msg>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = input.read(&mut chunk).await?;
        // That the channel has ended is told by its other half.
        if len == 0 {
            let _ = writer.eof().await;
            return Ok(());
        }
        if writer.data_bytes(chunk[..len].to_vec()).await.is_err() {
            return Ok(());
        }
    }
}

/// Tells the guest each new size; never ends.
async fn resize(mut size: watch::Receiver<TerminalSize>, writer: &ChannelWriteHalf<client::Msg>) {
    while size.changed().await.is_ok() {
        let TerminalSize { columns, rows } = *size.borrow_and_update();
        let _ = writer.window_change(u32::from(columns), u32::from(rows), 0, 0).await;
    }
    std::future::pending().await
}

#[cfg(test)]
#[path = "terminal_tests.rs"]
mod tests;
