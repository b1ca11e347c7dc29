//! A live view on a terminal: finished stages as lines, the running one with a spinner and its
//! clock, the export with a bar.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Event, Report, cell_table, label, planned, printable, render_failure};
use crate::error::Error;
use crate::profile::units::Elapsed;

/// Redraws of the spinner.
const TICK: Duration = Duration::from_millis(120);

/// Draws on standard error.
pub struct Terminal {
    bar: Mutex<ProgressBar>,
    /// Whether the bar shows bytes.
    counts: Mutex<bool>,
    started: Instant,
    /// The cell that the event at hand is of, as it stands before its lines.
    cell: Mutex<String>,
}

impl Terminal {
    /// Starts with an empty line.
    pub fn new() -> Terminal {
        Terminal {
            bar: Mutex::new(ProgressBar::hidden()),
            counts: Mutex::new(false),
            started: Instant::now(),
            cell: Mutex::default(),
        }
    }

    fn bar(&self) -> ProgressBar {
        self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn replace(&self, bar: ProgressBar, counts: bool) {
        let mut current = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.finish_and_clear();
        *current = bar;
        *self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = counts;
    }

    fn spinner(&self, label: &str, text: &str) {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix:<10}  {wide_msg} {elapsed:>6}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        bar.set_message(text.to_string());
        bar.enable_steady_tick(TICK);
        self.replace(bar, false);
    }

    fn counter(&self, total: u64) {
        let bar = ProgressBar::new(total);
        let template = "{spinner} {prefix:<10}  {msg} [{wide_bar}] {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(TICK);
        self.replace(bar, true);
    }

    fn failure(&self, error: &Error) {
        self.replace(ProgressBar::hidden(), false);
        let text = render_failure(error).replacen("error:", "\x1b[1;31merror:\x1b[0m", 1);
        let _ = write!(std::io::stderr().lock(), "{text}");
    }

    /// Prints a line above the live one.
    fn line(&self, text: &str) {
        let bar = self.bar();
        let cell = self.cell.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = format!("{cell}{text}");
        if bar.is_hidden() || bar.is_finished() {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        } else {
            bar.println(&text);
        }
    }
}

impl Report for Terminal {
    fn cell_event(&self, cell: &str, event: Event<'_>) {
        // Events of cells come from a thread each; one at a time has its name before its lines.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let call = |name: String| {
            *self.cell.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = name;
        };
        call(format!("\x1b[36m{cell}\x1b[0m "));
        if matches!(event, Event::Failed(_)) {
            self.line("\x1b[1;31mfailed\x1b[0m");
        }
        self.event(event);
        call(String::new());
    }

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Planned { action, position, title, remark } => {
                let colour = if action == "cached" { "\x1b[32m" } else { "\x1b[1m" };
                let text = planned(position, title, remark);
                self.line(&format!("  {colour}{action:<6}\x1b[0m  {text}"));
            }
            Event::Started { stage, step, detail } => self.spinner(&label(stage, step), detail),
            Event::Finished { stage, step, detail, took } => {
                self.replace(ProgressBar::hidden(), false);
                let label = label(stage, step);
                self.line(&format!(
                    "\x1b[32m✓\x1b[0m {label:<10}  {detail}  \x1b[2m{}\x1b[0m",
                    Elapsed(took)
                ));
            }
            Event::Note { stage, text } => {
                self.line(&format!("  {:<10}  {}", stage.name(), printable(text)))
            }
            Event::Output { stderr, line, .. } => {
                let mark = if stderr { "\x1b[33m|\x1b[0m" } else { "\x1b[2m|\x1b[0m" };
                self.line(&format!("  {:<10}  {mark} {}", "", printable(line)));
            }
            Event::Progress { stage, phase, done, total } => {
                let counts = *self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                // The rate of one phase says nothing of the next.
                if !counts || self.bar().message() != phase {
                    self.counter(total);
                }
                let bar = self.bar();
                bar.set_prefix(stage.name());
                bar.set_message(phase.to_string());
                bar.set_length(total);
                bar.set_position(done);
            }
            Event::Done { folder, artifacts, took } => {
                self.replace(ProgressBar::hidden(), false);
                for artifact in artifacts {
                    self.line(&format!("  {:<10}  {artifact}", ""));
                }
                self.line(&format!("\x1b[1;32m✓ done\x1b[0m       {folder}  {}", Elapsed(took)));
            }
            Event::Cells(cells) => {
                self.replace(ProgressBar::hidden(), false);
                cell_table(cells).iter().for_each(|row| self.line(row));
            }
            Event::Kept { error, help } => {
                self.failure(error);
                for line in help {
                    self.line(&format!("\x1b[33mkept\x1b[0m          {line}"));
                }
            }
            Event::Failed(error) => {
                self.failure(error);
                let elapsed = Elapsed(self.started.elapsed());
                let _ = writeln!(std::io::stderr().lock(), "\x1b[2mafter {elapsed}\x1b[0m");
            }
        }
    }
}
