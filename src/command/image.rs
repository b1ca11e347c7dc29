//! What the commands on images share: how an input is named, and its faults told in one line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_convert::{Format, OpenOptions, Progress, Silent};
use kvmbake_disk::Block;

use crate::build::export::{Told, explain};
use crate::error::Error;
use crate::report::{Event, Report, Stage};

/// The one image that a command is about.
#[derive(Debug, clap::Args)]
pub struct Subject {
    /// The image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    pub format: Option<Format>,
    #[command(flatten)]
    pub style: Style,
    #[command(flatten)]
    allowed: Allowed,
    /// The image
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,
}

impl Subject {
    /// Returns the options to open it with.
    pub fn options(&self) -> OpenOptions {
        self.allowed.options(self.format)
    }
}

/// For whom a command prints.
#[derive(Debug, clap::Args)]
pub struct Style {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// As qemu-img asks for it
    #[arg(long, value_name = "STYLE", hide = true)]
    output: Option<Listing>,
}

impl Style {
    /// Whether to print JSON.
    pub fn is_json(&self) -> bool {
        self.json || self.output == Some(Listing::Json)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Listing {
    Human,
    Json,
}

/// Folders that images may name files in.
#[derive(Debug, Clone, clap::Args)]
pub struct Allowed {
    /// Folder below which an image may name other files (backing, data, extents); may be repeated
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
}

impl Allowed {
    /// Returns the folders.
    pub fn folders(&self) -> &[PathBuf] {
        &self.allow_backing
    }

    /// Returns the options to open an image with.
    pub fn options(&self, format: Option<Format>) -> OpenOptions {
        OpenOptions { format, allow_backing: self.allow_backing.clone(), scratch: None }
    }
}

/// Opens an image; says what it is taken for, unless the caller named its format, and whatever is
/// to be known of how it is read.
pub fn open(
    path: &Path,
    options: &OpenOptions,
    report: &dyn Report,
) -> Result<Arc<dyn Block>, Error> {
    let failed = |error| unreadable(path, &error);
    let note = |text: &str| report.event(Event::Note { stage: Stage::Image, text });
    if options.format.is_none() {
        let format = kvmbake_convert::probe(path).map_err(failed)?;
        note(&format!(
            "{} is taken for {format}; name its format if it is another",
            path.display()
        ));
    }
    let (disk, notes) = kvmbake_convert::open_noting(path, options).map_err(failed)?;
    for text in notes {
        note(&format!("{}: {text}", path.display()));
    }
    Ok(disk)
}

/// Returns where progress is told: on a terminal always, elsewhere if it was asked for.
pub fn progress(asked: bool, report: &Arc<dyn Report>, stage: Stage) -> Box<dyn Progress> {
    if asked || std::io::stderr().is_terminal() {
        Box::new(Told::new(Arc::clone(report), stage))
    } else {
        Box::new(Silent)
    }
}

/// The error of an image that cannot be read: one line with the file and the reason, and what to
/// do about it.
pub fn unreadable(path: &Path, error: &kvmbake_convert::Error) -> Error {
    let mut failed = explain(error);
    if matches!(error, kvmbake_convert::Error::Cancelled) {
        return failed;
    }
    let mut message = std::mem::take(&mut failed.causes).join(": ");
    let name = path.display().to_string();
    if !message.contains(&name) {
        message = format!("Cannot read {name}: {message}");
    }
    failed.message = message.replace('\n', " ");
    failed.hint = error.hint().map(|hint| match error {
        kvmbake_convert::Error::Ambiguous { .. } => "Name the format with -f".to_owned(),
        _ => hint,
    });
    failed
}
