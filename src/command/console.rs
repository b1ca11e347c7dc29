//! `kvmbake console`

use std::io::IsTerminal;
use std::os::unix::net::UnixStream;

use kvmbake_provision::terminal::Terminal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::the_build::TheBuild;
use crate::control::Request;
use crate::error::{Blame, Error};

/// The key that leaves, Ctrl-], as in telnet and virsh.
const DETACH: u8 = 0x1d;
/// Bytes that are passed on at a time.
const CHUNK: usize = 16 << 10;

/// Attaches to the serial console of a running build's guest
///
/// What it showed last comes first. On a terminal every key goes to the guest, Ctrl-C too; Ctrl-] detaches.
/// Elsewhere what comes on standard input is typed. The command ends with the guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: TheBuild,
}

/// Attaches.
///
/// # Errors
/// There is no such build, or it has no guest.
pub fn run(args: &Args) -> Result<(), Error> {
    let build = args.build.find()?;
    let (stream, ()) = build.ask(&Request::Console {})?;
    match std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        true => super::block_on(attach(stream, build.id())),
        false => super::nc::join(stream),
    }
}

async fn attach(stream: UnixStream, id: &str) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(Blame::Internal, "Cannot attach to the console").because(&error)
    };
    stream.set_nonblocking(true).map_err(failed)?;
    let mut stream = tokio::net::UnixStream::from_std(stream).map_err(failed)?;
    let (mut shown, mut typed) = stream.split();
    let terminal = Terminal::open().map_err(failed)?;
    eprintln!("attached to the console of {id}; Ctrl-] detaches");
    let raw = terminal.raw().map_err(failed)?;
    let (mut screen, mut keys) = (&terminal, &terminal);
    let ended = tokio::select! {
        ended = show(&mut shown, &mut screen) => ended.map(|()| "the guest has ended"),
        ended = type_in(&mut keys, &mut typed) => ended.map(|()| "detached"),
    };
    drop(raw);
    eprintln!("\n{}", ended.map_err(failed)?);
    Ok(())
}

/// Shows what comes until the guest has ended.
async fn show(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).await {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&chunk[..length]).await?,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Types what is typed until the key that leaves.
async fn type_in(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        let keys = &chunk[..length];
        let leaves = keys.iter().position(|key| *key == DETACH);
        to.write_all(&keys[..leaves.unwrap_or(keys.len())]).await?;
        if leaves.is_some() || length == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_typed_up_to_the_one_that_leaves() {
        let (mut person, mut keys) = tokio::io::duplex(64);
        let (mut guest, mut typed) = tokio::io::duplex(64);
        person.write_all(b"reboot\r\x03\x1dexit").await.unwrap();
        type_in(&mut keys, &mut typed).await.unwrap();
        drop(typed);
        let mut seen = Vec::new();
        guest.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"reboot\r\x03");
    }
}
