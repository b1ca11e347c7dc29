//! `kvmbake run`

use std::path::PathBuf;
use std::sync::Arc;

use super::cells::Cells;
use super::{CacheArgs, ProfileArgs};
use crate::build::{Build, Cancel, Hold, OnError, Plan, Position, Reload, breakpoint};
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
///
/// A profile with a [matrix] is one build for each of its cells, with a log of its own,
/// OUT/<name>.log. What fails in one cell does not stop the others.
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
    /// Builds of a matrix at the same time; fewer where memory lacks
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Write a new folder even when nothing changed
    #[arg(long)]
    force: bool,
    /// Let the guest reach the profile's forwards and nothing else
    #[arg(long)]
    offline: bool,
    /// Go past the profile's breakpoints
    #[arg(long)]
    no_breakpoints: bool,
    /// What becomes of the guest when something fails in it; without it what the step says, else `abort`
    #[arg(long, value_name = "WHAT", value_enum)]
    on_error: Option<OnError>,
    /// Tell at the end what went on in the guest's network, and what was dropped
    #[arg(long)]
    stats: bool,
    /// Print one JSON event a line on standard output
    #[arg(long)]
    pub json: bool,
}

/// Runs the build, or those of a matrix, and returns the exit code.
///
/// # Errors
/// Whatever ended it; what ended a cell of a matrix is told, and in the exit code.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<u8, Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let mut plans = args.profile.plans(&report, secrets, &cancel)?;
    match plans.pop() {
        Some(plan) if plans.is_empty() && plan.profile.cell.is_none() => {
            one(args, plan, report, secrets, &cancel).map(|_| 0)
        }
        last => {
            plans.extend(last);
            let build = |plan, report| one(args, plan, report, secrets, &cancel);
            let jobs = usize::from(args.jobs);
            let cancel = cancel.clone();
            Cells { jobs, output: &args.output, report, secrets, cancel }.run(plans, &build)
        }
    }
}

/// Runs one build, and returns the folder of its images.
fn one(
    args: &Args,
    plan: Arc<Plan>,
    report: Arc<dyn Report>,
    secrets: &Secrets,
    cancel: &Cancel,
) -> Result<Option<String>, Error> {
    let mut profile = args.profile.clone();
    profile.cells = plan.profile.cell.iter().map(|cell| cell.name().to_string()).collect();
    let reload: Reload = {
        let (report, secrets) = (Arc::clone(&report), secrets.clone());
        let cancel = cancel.clone();
        Arc::new(move || profile.plan(&report, &secrets, &cancel))
    };
    let until =
        args.until.as_deref().map(|text| Position::find(&plan.profile, text)).transpose()?;
    if !args.no_breakpoints {
        breakpoint::check(&plan.profile)?;
    }
    let mut options = args.cache.options(&plan)?;
    (options.force, options.offline, options.stats) = (args.force, args.offline, args.stats);
    options.breakpoints = !args.no_breakpoints;
    let build = Build::new(plan, &options, report, cancel.clone())?;
    let build = build.holding(Hold { on_error: args.on_error, reload });
    super::block_on(async {
        match until {
            None => {
                let folder = build.images(&args.output).await?;
                Ok(Some(folder.display().to_string()))
            }
            Some(goal) => build.until(goal).await.map(|()| None),
        }
    })
}
