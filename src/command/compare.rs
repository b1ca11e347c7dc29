//! `kvmbake compare`

use std::path::PathBuf;
use std::sync::Arc;

use kvmbake_convert::{Comparison, Format};

use super::image::{self, Allowed, unreadable};
use super::print;
use crate::build::Cancel;
use crate::error::Error;
use crate::report::{Quiet, Report, Stage};

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
    /// Say nothing but errors: the exit code tells
    #[arg(short = 'q')]
    quiet: bool,
    #[command(flatten)]
    allowed: Allowed,
    /// The first image
    #[arg(value_name = "A")]
    one: PathBuf,
    /// The second image
    #[arg(value_name = "B")]
    other: PathBuf,
}

/// Compares, and returns the exit code.
///
/// # Errors
/// They differ, or one cannot be read.
pub fn run(args: &Args, report: Arc<dyn Report>) -> Result<u8, Error> {
    let report = if args.quiet { Arc::new(Quiet) } else { report };
    let one = image::open(&args.one, &args.allowed.options(args.format), &*report)?;
    let other = image::open(&args.other, &args.allowed.options(args.other_format), &*report)?;
    let names = (args.one.display(), args.other.display());
    let differ = |how: String| if args.quiet { Ok(1) } else { Err(Error::input(how)) };
    if args.strict && one.len() != other.len() {
        let lens = (one.len(), other.len());
        return differ(format!("{} has {} bytes, {} has {}", names.0, lens.0, names.1, lens.1));
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
        Comparison::Equal => {
            if !args.quiet {
                print(&format!("{} and {} hold the same\n", names.0, names.1))?;
            }
            Ok(0)
        }
        Comparison::DifferAt(offset) => differ(format!(
            "{} and {} differ first at byte {offset} ({offset:#x})",
            names.0, names.1
        )),
    }
}
