//! `kvmbake stop`

use std::io::Read;
use std::time::Duration;

use super::the_build::TheBuild;
use crate::control::{Found, Request};
use crate::error::Error;

/// How often a build that was killed is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Stops a running build, as Ctrl-C does, and waits until it has ended
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: TheBuild,
    /// Kill its process; what that leaves behind, the next build removes
    #[arg(long)]
    kill: bool,
}

/// Stops the build.
///
/// # Errors
/// There is no such build, or it cannot be reached.
pub fn run(args: &Args) -> Result<(), Error> {
    let build = args.build.find()?;
    if args.kill {
        build.kill()?;
    } else {
        let (mut stream, ()) = build.ask(&Request::Stop {})?;
        // It ends with the build.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    wait(&build);
    Ok(())
}

fn wait(build: &Found) {
    while build.lives() {
        std::thread::sleep(LOOK);
    }
}
