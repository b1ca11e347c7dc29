//! `kvmbake run`

use std::path::PathBuf;
use std::sync::Arc;

use super::{CacheArgs, ProfileArgs};
use crate::build::{Build, Cancel, Position};
use crate::error::Error;
use crate::report::Report;
use crate::secret::Secrets;

/// Bakes the image that a profile describes
///
/// The base image is booted, provisioned over SSH, shut down and written in every format that the
/// profile asks for, to OUT/<name>-<YYYYmmdd-HHMMSS>/. The base itself is never written.
///
/// What an earlier run made and nothing has changed since is taken from the cache: the booted guest,
/// each step, the finished disk. When nothing changed at all and the images of the earlier run are
/// untouched in OUT, that run's folder is the result.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Folder for the finished build
    #[arg(short, long, value_name = "OUT", default_value = "out")]
    output: PathBuf,
    #[command(flatten)]
    cache: CacheArgs,
    /// Stop after STEP (`boot`, a number or a title), keep its layer, write no images
    #[arg(long, value_name = "STEP", conflicts_with = "no_cache")]
    until: Option<String>,
    /// Write a new folder even when nothing changed
    #[arg(long)]
    force: bool,
    /// Let the guest reach the profile's forwards and nothing else
    #[arg(long)]
    offline: bool,
    /// Tell at the end what went on in the guest's network, and what was dropped
    #[arg(long)]
    stats: bool,
    /// Print one JSON event a line on standard output
    #[arg(long)]
    pub json: bool,
}

/// Runs the build.
///
/// # Errors
/// Whatever ended it.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let plan = Arc::new(args.profile.plan(&report, secrets, &cancel)?);
    let until =
        args.until.as_deref().map(|text| Position::find(&plan.profile, text)).transpose()?;
    let mut options = args.cache.options(&plan)?;
    (options.force, options.offline, options.stats) = (args.force, args.offline, args.stats);
    let build = Build::new(plan, &options, Arc::clone(&report), cancel)?;
    super::block_on(async {
        match until {
            None => build.images(&args.output).await.map(drop),
            Some(goal) => build.until(goal).await,
        }
    })
}
