//! `kvmbake shell`

use std::sync::Arc;

use super::{CacheArgs, ProfileArgs};
use crate::build::{Build, Cancel, Position};
use crate::error::Error;
use crate::report::Report;
use crate::secret::Secrets;

/// Opens a terminal in the guest as it was after a step
///
/// The guest is taken from the cache, or built as far as it is needed. What is done in it is thrown
/// away when the terminal ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// After this step: `boot`, a number or a title; the last one when not given
    #[arg(long, value_name = "STEP")]
    at: Option<String>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Command to run instead of the login shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Opens the terminal, and returns how it ended.
///
/// # Errors
/// Whatever kept the guest from being there.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<u8, Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let plan = Arc::new(args.profile.plan(&report, secrets, &cancel)?);
    let steps = plan.profile.steps.len();
    let goal =
        match args.at.as_deref().map(|text| Position::find(&plan.profile, text)).transpose()? {
            Some(Position::Sealed) => {
                return Err(Error::input("A sealed disk has no guest to open a terminal in")
                    .hint("The step before it is the last one with a guest"));
            }
            Some(goal) => goal,
            None if steps == 0 => Position::Boot,
            None => Position::Step(steps),
        };
    let options = args.cache.options(&plan)?;
    let build = Build::new(plan, &options, report, cancel)?;
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    super::block_on(async {
        let (mut guest, place) = build.guest_at(goal).await?;
        let ended = guest.terminal(command.as_deref()).await;
        drop(guest);
        drop(place);
        ended
    })
}
