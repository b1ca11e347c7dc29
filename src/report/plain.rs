//! One line an event, for logs and pipes.

use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use super::{Event, Report, cell_table, label, planned, printable, render_failure};
use crate::profile::units::{Elapsed, Size};

/// Progress is told each time it passes another such part of the whole.
const PROGRESS_STEPS: u64 = 4;

/// Writes plain lines.
pub struct Plain {
    out: Mutex<Box<dyn Write + Send>>,
    started: Instant,
    /// The phase and the part of it that was told last.
    told: Mutex<(String, u64)>,
}

impl Plain {
    /// Writes to standard error, and starts the clock.
    pub fn new() -> Plain {
        Plain::to(Box::new(std::io::stderr()))
    }

    /// Writes to `out`, and starts the clock.
    pub fn to(out: Box<dyn Write + Send>) -> Plain {
        Plain { out: Mutex::new(out), started: Instant::now(), told: Mutex::default() }
    }

    fn write(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nobody may read standard error any more; that is no reason to stop a build.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Writes the lines of `event`, each with the cell that it is of.
    fn tell(&self, cell: &str, event: Event<'_>) {
        let line = |label: &str, text: &str| {
            let elapsed = Elapsed(self.started.elapsed()).to_string();
            self.write(&format!("{elapsed:>8}  {cell}{label:<10}  {text}\n"));
        };
        match event {
            Event::Planned { action, position, title, remark } => {
                line(action, &planned(position, title, remark));
            }
            Event::Started { stage, step, detail } => line(&label(stage, step), detail),
            Event::Finished { stage, step, detail, took } => {
                let detail = if detail.is_empty() { "done" } else { detail };
                line(&label(stage, step), &format!("{detail}  ({})", Elapsed(took)));
            }
            Event::Note { stage, text } => line(stage.name(), &printable(text)),
            Event::Output { line: text, .. } => line("", &format!("| {}", printable(text))),
            Event::Progress { stage, phase, done, total } => {
                let part = (done * PROGRESS_STEPS).checked_div(total).unwrap_or(0);
                let mut told = self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let whose = format!("{cell}{phase}");
                if told.0 != whose || told.1 < part {
                    *told = (whose, part);
                    line(stage.name(), &format!("{phase}  {} of {}", Size(done), Size(total)));
                }
            }
            Event::Done { folder, artifacts, took } => {
                for artifact in artifacts {
                    line("", artifact);
                }
                line("done", &format!("{folder}  ({})", Elapsed(took)));
            }
            Event::Kept { error, help } => {
                self.write(&render_failure(error));
                help.iter().for_each(|text| line("kept", text));
            }
            Event::Failed(error) => {
                if !cell.is_empty() {
                    line("failed", "");
                }
                self.write(&render_failure(error));
            }
            Event::Cells(cells) => {
                cell_table(cells).iter().for_each(|row| line("", row));
            }
        }
    }
}

impl Report for Plain {
    fn event(&self, event: Event<'_>) {
        self.tell("", event);
    }

    fn cell_event(&self, cell: &str, event: Event<'_>) {
        self.tell(&format!("[{cell}] "), event);
    }
}
