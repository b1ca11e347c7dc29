//! The sealed disk to its artifacts: `convert` does the work on a thread of its own, this passes
//! progress and the wish to stop between it and the build.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvmbake_convert::{Export, Progress, Stage as Phase, Target};
use kvmbake_disk::{Block, ErrorKind};

use super::cancel::Cancel;
use crate::error::{Blame, Error};
use crate::report::{Event, Report, Stage};

/// How often a report hears of progress.
const INTERVAL: Duration = Duration::from_millis(100);

/// Writes `disk` to all `targets`.
///
/// # Errors
/// What `convert` met; nothing of the targets is left then.
pub async fn export(
    disk: Arc<dyn Block>,
    targets: Vec<Target>,
    report: Arc<dyn Report>,
    cancel: Cancel,
) -> Result<Export, Error> {
    let work = tokio::task::spawn_blocking(move || {
        let progress = Told::new(report, Stage::Export);
        kvmbake_convert::export(disk.as_ref(), &targets, &progress, cancel.flag())
            .map_err(|error| explain(&error))
    });
    work.await.map_err(|error| Error::new(Blame::Internal, "The export died").because(&error))?
}

/// Turns an error of `convert` into the build's.
pub fn explain(error: &kvmbake_convert::Error) -> Error {
    if matches!(error, kvmbake_convert::Error::Cancelled) {
        return Error::interrupted();
    }
    let mut explained = Error::input("Cannot write the images").because(error);
    if let kvmbake_convert::Error::Disk(disk) = error {
        explained.hint = disk.hint().map(str::to_string);
        if disk.kind() == ErrorKind::NoSpace && explained.hint.is_none() {
            explained.hint = Some("Make room there, or choose another folder with --output".into());
        }
    }
    explained
}

/// Passes progress on to a report, not more often than a person can see.
pub struct Told {
    report: Arc<dyn Report>,
    stage: Stage,
    done: AtomicU64,
    phase: Mutex<(Phase, u64, Instant)>,
}

impl Told {
    /// Passes progress on to `report`, as that of `stage`.
    pub fn new(report: Arc<dyn Report>, stage: Stage) -> Told {
        Told {
            report,
            stage,
            done: AtomicU64::new(0),
            phase: Mutex::new((Phase::Write, 0, Instant::now())),
        }
    }

    fn tell(&self, phase: Phase, done: u64, total: u64) {
        let name = match (self.stage, phase) {
            (Stage::Compare, _) => "reading",
            (_, Phase::Write) => "writing",
            _ => "verifying",
        };
        let done = done.min(total);
        self.report.event(Event::Progress { stage: self.stage, phase: name, done, total });
    }
}

impl Progress for Told {
    fn started(&self, stage: Phase, total_bytes: u64) {
        self.done.store(0, Ordering::Relaxed);
        *self.phase.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            (stage, total_bytes, Instant::now());
        self.tell(stage, 0, total_bytes);
    }

    fn advanced(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds the lock taken leaves the telling to the other.
        let Ok(mut phase) = self.phase.try_lock() else { return };
        if phase.2.elapsed() >= INTERVAL {
            phase.2 = Instant::now();
            self.tell(phase.0, done, phase.1);
        }
    }

    fn finished(&self, stage: Phase) {
        let total = self.phase.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1;
        self.tell(stage, total, total);
    }
}

/// Says that an image's format could not express the disk's size.
pub fn rounded_up(file: &str, format: &str, size: u64, virtual_size: u64) -> String {
    format!("{file}: {size} bytes are rounded up to {virtual_size}, which {format} can express")
}

/// Returns the time that the environment asks to write into the images
/// (reproducible-builds.org/specs/source-date-epoch), in seconds since 1970.
///
/// # Errors
/// It is no such number.
pub fn source_date_epoch() -> Result<Option<u64>, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| {
        Error::input(format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds"))
    })
}

/// Returns the name of `path`'s file as text.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
