//! `kvmbake ssh`

use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvmbake_provision::session::{HostKey, Login, Session};
use kvmbake_provision::{BuildKey, ConnectError};

use super::the_build::TheBuild;
use crate::control::{self, Request};
use crate::error::{Blame, Error};
use crate::terminal;

/// How long the log-in may take.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Opens a terminal in the guest of a running build
///
/// The build goes on meanwhile, unless a step has failed and the guest is kept (`run --on-error keep`).
/// What is done in the guest of a build that goes on is in its image. `~.` at the beginning of a line
/// leaves a guest that hangs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: TheBuild,
    /// Command to run instead of the login shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Opens the terminal, and returns how it ended.
///
/// # Errors
/// There is no such build, or its guest cannot be logged in to.
pub fn run(args: &Args) -> Result<u8, Error> {
    let build = args.build.find()?;
    let (_, login): (_, control::Login) = build.ask(&Request::Login {})?;
    let (stream, ()) = build.ask(&Request::Nc { port: 22 })?;
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    super::block_on(async {
        let session = log_in(stream, &login).await?;
        let ended = terminal::run(&session, command.as_deref()).await;
        session.close().await;
        ended
    })
}

async fn log_in(stream: UnixStream, login: &control::Login) -> Result<Session, Error> {
    let io = |error: std::io::Error| {
        Error::new(Blame::Internal, "Cannot use the connection to the guest").because(&error)
    };
    let unreadable = || format!("Cannot read {}", login.key.display());
    let text = std::fs::read_to_string(&login.key)
        .map_err(|error| Error::input(unreadable()).because(&error))?;
    let key = BuildKey::from_openssh(&text)
        .map_err(|error| Error::input(unreadable()).because(&error))?;
    stream.set_nonblocking(true).map_err(io)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
    let host_key = HostKey::from_openssh(&login.host_key);
    let login = Login { timeout: HANDSHAKE, host_key, ..Login::new(&login.user, &key) };
    Session::log_in(stream, &login).await.map_err(|error: ConnectError| {
        Error::guest("Cannot log in to the guest")
            .because(&error)
            .hint("`kvmbake console` shows its serial console")
    })
}
