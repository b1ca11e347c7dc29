//! `kvmbake nc`

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::control::{Request, find};
use crate::error::Error;

/// Bytes that are passed on at a time.
const CHUNK: usize = 64 << 10;

/// Connects standard input and output with a TCP port of a running build's guest
///
/// No port is opened on the host. For OpenSSH: `ssh -o ProxyCommand='kvmbake nc %h %p' USER@BUILD`. The
/// end of standard input is passed on; the command ends when the guest has closed the connection.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The build: its id or how that begins, the profile's or the image's name, or its control socket
    #[arg(value_name = "BUILD")]
    build: String,
    /// The port
    #[arg(value_name = "PORT")]
    port: u16,
}

/// Connects.
///
/// # Errors
/// There is no such build, or the guest does not take the connection.
pub fn run(args: &Args) -> Result<(), Error> {
    let build = find(Some(&args.build))?;
    let (stream, ()) = build.ask(&Request::Nc { port: args.port })?;
    join(stream)
}

/// Joins standard input and output with `stream` until that ends.
///
/// # Errors
/// The connection was lost, or standard output cannot be written.
pub fn join(mut stream: UnixStream) -> Result<(), Error> {
    let lost = |error: io::Error| Error::guest("The connection was lost").because(&error);
    let mut upward = stream.try_clone().map_err(lost)?;
    // Left behind when the guest is done: there is no need to read more.
    std::thread::spawn(move || {
        let _ = pass(&mut io::stdin().lock(), &mut upward);
        let _ = upward.shutdown(Shutdown::Write);
    });
    match pass(&mut stream, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(lost(error)),
        _ => Ok(()),
    }
}

/// Copies until `from` has ended; what has been read is written at once.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&chunk[..length]).and_then(|()| to.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
