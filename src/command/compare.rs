//! `kvmbake compare`

use std::path::PathBuf;
use std::sync::Arc;

use kvmbake_convert::{Comparison, Format};

use super::image::{self, Allowed, unreadable};
use super::print;
use crate::build::Cancel;
use crate::error::Error;
use crate::report::{Report, Stage};

/// Compares the content of two images of any formats
///
/// Exits with 0 when they hold the same, and with 1 when not. What one has beyond the other's end
/// is the same if it is zero, unless -s is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The first image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    format: Option<Format>,
    /// The second image's format; probed when absent
    #[arg(short = 'F', value_name = "FORMAT")]
    other_format: Option<Format>,
    /// Different sizes are a difference
    #[arg(short = 's')]
    strict: bool,
    /// Show progress; a terminal always does
    #[arg(short = 'p')]
    progress: bool,
    #[command(flatten)]
    allowed: Allowed,
    /// The first image
    #[arg(value_name = "A")]
    one: PathBuf,
    /// The second image
    #[arg(value_name = "B")]
    other: PathBuf,
}

/// Compares.
///
/// # Errors
/// They differ, or one cannot be read.
pub fn run(args: &Args, report: Arc<dyn Report>) -> Result<(), Error> {
    let one = image::open(&args.one, &args.allowed.options(args.format), &*report)?;
    let other = image::open(&args.other, &args.allowed.options(args.other_format), &*report)?;
    let names = (args.one.display(), args.other.display());
    if args.strict && one.len() != other.len() {
        return Err(Error::input(format!(
            "{} has {} bytes, {} has {}",
            names.0,
            one.len(),
            names.1,
            other.len()
        )));
    }
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let progress = image::progress(args.progress, &report, Stage::Compare);
    let found =
        kvmbake_convert::compare(&*one, &*other, &*progress, cancel.flag()).map_err(|error| {
            let is_other = error.to_string().contains(&names.1.to_string());
            unreadable(if is_other { &args.other } else { &args.one }, &error)
        })?;
    match found {
        Comparison::Equal => print(&format!("{} and {} hold the same\n", names.0, names.1)),
        Comparison::DifferAt(offset) => Err(Error::input(format!(
            "{} and {} differ first at byte {offset} ({offset:#x})",
            names.0, names.1
        ))),
    }
}
