//! `kvmbake run`

use std::path::PathBuf;
use std::sync::Arc;

use crate::build::{self, Cancel, Plan};
use crate::error::{Blame, Error};
use crate::report::Report;

/// Bakes the image that a profile describes
///
/// The base image is booted, provisioned over SSH, shut down and written in every format that the
/// profile asks for, to OUT/<name>-<YYYYmmdd-HHMMSS>/. The base itself is never written.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile
    #[arg(value_name = "PROFILE")]
    profile: PathBuf,
    /// Folder for the finished build
    #[arg(short, long, value_name = "OUT", default_value = "out")]
    output: PathBuf,
    /// Print one JSON event a line on standard output
    #[arg(long)]
    pub json: bool,
}

/// Runs the build.
///
/// # Errors
/// Whatever ended it.
pub fn run(args: &Args, report: Arc<dyn Report>) -> Result<(), Error> {
    let plan = Arc::new(Plan::load(&args.profile)?);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Error::new(Blame::Internal, "Cannot start the event loop").because(&error)
        })?;
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    runtime.block_on(build::run(plan, &args.output, report, cancel)).map(drop)
}
