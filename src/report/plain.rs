//! One line an event on standard error, for logs and pipes.

use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use super::{Event, Report, label, planned, printable, render_failure};
use crate::profile::units::{Elapsed, Size};

/// Progress is told each time it passes another such part of the whole.
const PROGRESS_STEPS: u64 = 4;

/// Writes plain lines.
pub struct Plain {
    started: Instant,
    /// The phase and the part of it that was told last.
    told: Mutex<(String, u64)>,
}

impl Plain {
    /// Starts the clock.
    pub fn new() -> Plain {
        Plain { started: Instant::now(), told: Mutex::default() }
    }

    fn line(&self, label: &str, text: &str) {
        let elapsed = Elapsed(self.started.elapsed()).to_string();
        // Nobody may read standard error any more; that is no reason to stop a build.
        let _ = writeln!(std::io::stderr().lock(), "{elapsed:>8}  {label:<10}  {text}");
    }
}

impl Report for Plain {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Planned { action, position, title, remark } => {
                self.line(action, &planned(position, title, remark));
            }
            Event::Started { stage, step, detail } => self.line(&label(stage, step), detail),
            Event::Finished { stage, step, detail, took } => {
                let detail = if detail.is_empty() { "done" } else { detail };
                self.line(&label(stage, step), &format!("{detail}  ({})", Elapsed(took)));
            }
            Event::Note { stage, text } => self.line(stage.name(), &printable(text)),
            Event::Output { line, .. } => self.line("", &format!("| {}", printable(line))),
            Event::Progress { stage, phase, done, total } => {
                let part = (done * PROGRESS_STEPS).checked_div(total).unwrap_or(0);
                let mut told = self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if told.0 != phase || told.1 < part {
                    *told = (phase.to_string(), part);
                    self.line(stage.name(), &format!("{phase}  {} of {}", Size(done), Size(total)));
                }
            }
            Event::Done { folder, artifacts, took } => {
                for artifact in artifacts {
                    self.line("", artifact);
                }
                self.line("done", &format!("{folder}  ({})", Elapsed(took)));
            }
            Event::Failed(error) => {
                let _ = std::io::stderr().lock().write_all(render_failure(error).as_bytes());
            }
        }
    }
}
