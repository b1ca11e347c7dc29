//! `kvmbake retry`

use super::the_build::TheBuild;
use crate::control::Request;
use crate::error::Error;

/// Runs the failed step of a build again whose guest is kept
///
/// The profile and its files are read anew. The guest that failed is thrown away: the step runs on the
/// layer before it, as if it had not been run, and the build goes on to its end. When earlier steps were
/// changed too, it goes back to before the first of them. A profile with a fault is refused, and the guest
/// stays.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: TheBuild,
}

/// Runs the step again.
///
/// # Errors
/// There is no such build, no step of it has failed, or the profile has a fault.
pub fn run(args: &Args) -> Result<(), Error> {
    let build = args.build.find()?;
    let (_, text): (_, String) = build.ask(&Request::Retry {})?;
    super::print(&format!("{text}\n"))
}
