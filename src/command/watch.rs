//! `kvmbake watch`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event as Change, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{CacheArgs, ProfileArgs};
use crate::build::{Build, Cancel, Inputs, Position};
use crate::error::{Blame, Error};
use crate::report::{Event, Report, Stage};
use crate::secret::Secrets;

/// An editor saves in several strokes; a run begins when it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(300);

/// Runs again whenever the profile or a file that it names changes
///
/// The first run begins at once. A run that fails is told like any other, and the next change starts
/// another one. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Folder for the finished builds
    #[arg(short, long, value_name = "OUT", default_value = "out")]
    output: PathBuf,
    /// Stop each run after STEP (`boot`, a number or a title), and write no images
    #[arg(long, value_name = "STEP", conflicts_with = "no_cache")]
    until: Option<String>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs until interrupted.
///
/// # Errors
/// The files cannot be watched, or the user stopped it.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    super::block_on(async {
        let (tell, mut changes) = mpsc::unbounded_channel();
        let mut watched = Watched::new(tell)?;
        loop {
            // Watched before it is read, so that no change falls between the two.
            let inputs = args.profile.inputs(secrets);
            watched.follow(&inputs)?;
            match bake(args, Arc::clone(&report), secrets, cancel.clone()).await {
                Err(error) if error.blame == Blame::Interrupted => return Err(error),
                Err(error) => report.event(Event::Failed(&error)),
                Ok(()) => {}
            }
            report.event(Event::Note {
                stage: Stage::Watch,
                text: "waiting for a change; Ctrl-C ends",
            });
            let changed = tokio::select! {
                () = cancel.wait() => return Err(Error::interrupted()),
                changed = next_change(&mut changes, &inputs) => changed,
            };
            let text = format!("{} changed", changed.display());
            report.event(Event::Note { stage: Stage::Watch, text: &text });
        }
    })
}

async fn bake(
    args: &Args,
    report: Arc<dyn Report>,
    secrets: &Secrets,
    cancel: Cancel,
) -> Result<(), Error> {
    let plan = Arc::new(args.profile.plan(&report, secrets, &cancel)?);
    let until =
        args.until.as_deref().map(|text| Position::find(&plan.profile, text)).transpose()?;
    let options = args.cache.options(&plan)?;
    let build = Build::new(plan, &options, report, cancel)?;
    match until {
        None => build.images(&args.output).await.map(drop),
        Some(goal) => build.until(goal).await,
    }
}

/// Waits for a change of one of `inputs`, and until it has been quiet after it.
async fn next_change(changes: &mut mpsc::UnboundedReceiver<PathBuf>, inputs: &Inputs) -> PathBuf {
    loop {
        let Some(path) = changes.recv().await else { return std::future::pending().await };
        if !inputs.contain(&path) {
            continue;
        }
        while let Ok(Some(_)) = tokio::time::timeout(QUIET, changes.recv()).await {}
        return path;
    }
}

/// The folders that are watched. Folders and not files, because editors replace files.
struct Watched {
    watcher: RecommendedWatcher,
    folders: BTreeSet<(PathBuf, bool)>,
}

impl Watched {
    fn new(tell: mpsc::UnboundedSender<PathBuf>) -> Result<Watched, Error> {
        let watcher = notify::recommended_watcher(move |change: notify::Result<Change>| {
            let Ok(change) = change else { return };
            if !matches!(change.kind, EventKind::Access(_)) {
                change.paths.into_iter().for_each(|path| drop(tell.send(path)));
            }
        });
        let watcher = watcher.map_err(|error| failed(&error))?;
        Ok(Watched { watcher, folders: BTreeSet::new() })
    }

    fn follow(&mut self, inputs: &Inputs) -> Result<(), Error> {
        for (folder, deep) in inputs.folders() {
            if !self.folders.insert((folder.clone(), deep)) {
                continue;
            }
            let mode = if deep { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            self.watch(&folder, mode)?;
        }
        Ok(())
    }

    fn watch(&mut self, folder: &Path, mode: RecursiveMode) -> Result<(), Error> {
        self.watcher.watch(folder, mode).map_err(|error| failed(&error))
    }
}

fn failed(error: &notify::Error) -> Error {
    Error::input("Cannot watch the profile's files").because(error)
}
