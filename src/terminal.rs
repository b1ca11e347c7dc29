//! A person, or a script, in a guest: a terminal where the command runs on one, plain streams where it
//! does not.

use std::io::{IsTerminal, Write};

use kvmbake_provision::session::TerminalError;
use kvmbake_provision::{Command, Output, Session, Stream};

use crate::error::Error;

/// Runs `command`, or the login's shell, until it ends, and returns its exit code.
///
/// # Errors
/// The connection was lost, or there is no terminal for a shell.
pub async fn run(session: &Session, command: Option<&str>) -> Result<u8, Error> {
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let status = match command {
        Some(command) if !on_terminal => {
            let run = session.run(&Command::shell(command), &mut Streams).await;
            run.map_err(|error| Error::guest("The command did not end").because(&error))?
        }
        _ => match kvmbake_provision::terminal::run(session, command).await {
            Ok(status) => status,
            Err(TerminalError::Left) => return Ok(0),
            Err(error @ TerminalError::Input(_)) => {
                return Err(Error::input("There is no terminal for a shell")
                    .because(&error)
                    .hint("Give a command behind `--`, or run kvmbake on a terminal"));
            }
            Err(error) => return Err(Error::guest("The terminal was lost").because(&error)),
        },
    };
    Ok(u8::try_from(status.code()).unwrap_or(u8::MAX))
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
