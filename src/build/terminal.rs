//! A person, or a script, in the guest: a terminal where the command runs on one, plain streams
//! where it does not.

use std::io::{IsTerminal, Write};

use kvmbake_provision::session::TerminalError;
use kvmbake_provision::{Command, Output, Stream};

use super::guest::Guest;
use crate::error::Error;

impl Guest {
    /// Runs `command`, or the login's shell, until it ends, and returns its exit code.
    ///
    /// # Errors
    /// The guest ended, or there is no terminal for a shell.
    pub async fn terminal(&mut self, command: Option<&str>) -> Result<u8, Error> {
        self.connect().await?;
        let session = &self.provisioned()?.session;
        let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let status = match command {
            Some(command) if !on_terminal => {
                let command = Command::shell(command);
                let run = self.watch(session.run(&command, &mut Streams)).await;
                run.map_err(|ended| self.explain(&ended))?
                    .map_err(|error| self.failed("The command did not end").because(&error))?
            }
            _ => {
                let joined = kvmbake_provision::terminal::run(session, command);
                match self.watch(joined).await.map_err(|ended| self.explain(&ended))? {
                    Ok(status) => status,
                    Err(TerminalError::Left) => return Ok(0),
                    Err(error @ TerminalError::Input(_)) => {
                        return Err(Error::input("There is no terminal for a shell")
                            .because(&error)
                            .hint("Give a command behind `--`, or run kvmbake on a terminal"));
                    }
                    Err(error) => return Err(self.failed("The terminal was lost").because(&error)),
                }
            }
        };
        Ok(u8::try_from(status.code()).unwrap_or(u8::MAX))
    }
}

/// Passes a command's output on to our own.
struct Streams;

impl Output for Streams {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        // Whoever reads us may have gone; the command still has to end.
        let _ = match stream {
            Stream::Stdout => std::io::stdout().lock().write_all(bytes),
            Stream::Stderr => std::io::stderr().lock().write_all(bytes),
        };
    }
}
