//! All that a person sees of a command: events come in, text goes out. One implementation for a
//! terminal, one for plain lines, one for JSON; the pipeline does not know which it speaks to.

mod cell;
mod failure;
mod json;
#[cfg(test)]
mod notes;
mod plain;
mod redacted;
mod terminal;

use std::io::IsTerminal;
use std::time::Duration;

use crate::error::Error;
use crate::profile::units::Elapsed;

pub use cell::OfCell;
pub use failure::render as render_failure;
#[cfg(test)]
pub use notes::Notes;
pub use redacted::Redacted;

/// The parts of a build, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Leftovers of dead builds.
    Clean,
    /// Layers kept, found and thrown away.
    Cache,
    /// The base image: opened, checked, overlaid.
    Base,
    /// The machine, up to its kernel's entry.
    Boot,
    /// Until the guest takes commands.
    Ssh,
    /// cloud-init.
    CloudInit,
    /// The names of the network interfaces.
    Names,
    /// One of the profile's steps.
    Step,
    /// What the guest is served over HTTP, during any other stage.
    Http,
    /// What the guest's network does not let through, and what else is to say of it.
    Net,
    /// The key removed, the guest shut down.
    Seal,
    /// The images written.
    Export,
    /// An image converted.
    Convert,
    /// Two images compared.
    Compare,
    /// What an image is taken for.
    Image,
    /// Between two runs of `watch`.
    Watch,
    /// The cells of a matrix, each a build of its own.
    Cells,
}

impl Stage {
    /// Returns the stage's name as it is shown and as it stands in JSON events.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Clean => "clean",
            Stage::Cache => "cache",
            Stage::Base => "base",
            Stage::Boot => "boot",
            Stage::Ssh => "ssh",
            Stage::CloudInit => "cloud-init",
            Stage::Names => "names",
            Stage::Step => "step",
            Stage::Http => "http",
            Stage::Net => "net",
            Stage::Seal => "seal",
            Stage::Export => "export",
            Stage::Convert => "convert",
            Stage::Compare => "compare",
            Stage::Image => "image",
            Stage::Watch => "watch",
            Stage::Cells => "cells",
        }
    }
}

/// Something that a person may want to know.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// What will become of a part of the build, told before any of it begins.
    Planned {
        /// `cached` or `run`.
        action: &'a str,
        /// The part.
        position: &'a str,
        /// What it is.
        title: &'a str,
        /// Which layer it is, or why it is made.
        remark: &'a str,
    },
    /// A stage begins.
    Started {
        /// Which.
        stage: Stage,
        /// The step's number, from 1.
        step: Option<usize>,
        /// What it is about.
        detail: &'a str,
    },
    /// A stage ended well.
    Finished {
        /// Which.
        stage: Stage,
        /// The step's number, from 1.
        step: Option<usize>,
        /// What came of it.
        detail: &'a str,
        /// How long it took.
        took: Duration,
    },
    /// A piece of news within a stage.
    Note {
        /// Which stage.
        stage: Stage,
        /// The news.
        text: &'a str,
    },
    /// One line that a step printed.
    Output {
        /// The step's number, from 1.
        step: usize,
        /// Whether it came on standard error.
        stderr: bool,
        /// The line, without its end.
        line: &'a str,
    },
    /// How far the export, or another long job on bytes, has come.
    Progress {
        /// Which stage.
        stage: Stage,
        /// What is being done.
        phase: &'a str,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The build is complete.
    Done {
        /// The output folder.
        folder: &'a str,
        /// A line on each artifact.
        artifacts: &'a [String],
        /// How long the whole took.
        took: Duration,
    },
    /// Something failed in the guest, which stays for a person to look at.
    Kept {
        /// What failed.
        error: &'a Error,
        /// What a person can do, a line each.
        help: &'a [String],
    },
    /// The command failed.
    Failed(&'a Error),
    /// What became of the cells of a matrix.
    Cells(&'a [CellResult]),
}

/// What became of one cell of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct CellResult {
    /// Its name.
    pub cell: String,
    /// In a word.
    pub result: &'static str,
    /// How long it took.
    pub took: Duration,
    /// The folder of its images, when there are any.
    pub folder: Option<String>,
}

/// Where events go.
pub trait Report: Send + Sync {
    /// Shows one event.
    fn event(&self, event: Event<'_>);

    /// Shows one event of a cell of a matrix; like any other, unless the report tells cells apart.
    fn cell_event(&self, _cell: &str, event: Event<'_>) {
        self.event(event);
    }
}

/// Returns a report of plain lines that go to `out`.
pub fn plain_to(out: Box<dyn std::io::Write + Send>) -> Box<dyn Report> {
    Box::new(plain::Plain::to(out))
}

/// Returns the report that fits standard error, or the JSON one on standard output.
pub fn for_process(json: bool) -> Box<dyn Report> {
    if json {
        Box::new(json::Json::new())
    } else if std::io::stderr().is_terminal() {
        Box::new(terminal::Terminal::new())
    } else {
        Box::new(plain::Plain::new())
    }
}

/// Says nothing.
pub struct Quiet;

impl Report for Quiet {
    fn event(&self, _: Event<'_>) {}
}

/// Makes guest text safe to print: control characters, escape sequences among them, become U+FFFD.
pub fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// As [`printable`], for a text of several lines.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Cuts a text at `width` characters.
pub fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Columns of a title with a remark beside it.
const TITLE: usize = 36;

/// A part of a build as it is planned, with its action in a column of its own before it.
pub fn planned(position: &str, title: &str, remark: &str) -> String {
    let cut = shortened(title, TITLE);
    printable(&format!("{position:<7}  {cut:<TITLE$}  {remark}"))
}

/// A table of what became of cells, line by line.
fn cell_table(cells: &[CellResult]) -> Vec<String> {
    let width = |longest: &str, text: &dyn Fn(&CellResult) -> usize| {
        cells.iter().map(text).chain([longest.len()]).max().unwrap_or(0)
    };
    let cell_width = width("cell", &|one| one.cell.len());
    let result_width = width("result", &|one| one.result.len());
    let line = |cell: &str, result: &str, took: &str, folder: &str| {
        let text = format!("{cell:<cell_width$}  {result:<result_width$}  {took:>7}  {folder}");
        text.trim_end().to_string()
    };
    let rows = cells.iter().map(|one| {
        let took = Elapsed(one.took).to_string();
        line(&one.cell, one.result, &took, one.folder.as_deref().unwrap_or_default())
    });
    std::iter::once(line("cell", "result", "time", "folder")).chain(rows).collect()
}

/// The stage's label, with the step's number.
fn label(stage: Stage, step: Option<usize>) -> String {
    match step {
        Some(number) => format!("{} {number}", stage.name()),
        None => stage.name().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_cells_is_a_table() {
        let cells = [("debian-4G", "done", Some("out/a-1")), ("arch-4G", "failed", None)];
        let cells = cells.map(|(cell, result, folder)| CellResult {
            cell: cell.into(),
            result,
            took: Duration::from_secs(75),
            folder: folder.map(str::to_string),
        });
        let expected = [
            "cell       result     time  folder",
            "debian-4G  done     1m 15s  out/a-1",
            "arch-4G    failed   1m 15s",
        ];
        assert_eq!(cell_table(&cells), expected);
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        assert_eq!(
            printable("a\x1b]0;title\x07b\u{9b}31m"),
            "a\u{fffd}]0;title\u{fffd}b\u{fffd}31m"
        );
        assert_eq!(printable("tab\tstays"), "tab\tstays");
    }
}
