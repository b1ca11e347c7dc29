//! `kvmbake check`

use serde_json::json;

use super::image::{Subject, unreadable};
use super::print;
use crate::build::Cancel;
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::printable;

/// Checks an image's structure: tables, overlaps, refcounts, checksums, leaks
///
/// Exits with 1 when something is wrong; leaked space alone is told but is not wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say nothing but errors
    #[arg(short = 'q')]
    quiet: bool,
    /// What qemu-img's check would repair
    #[arg(short = 'r', value_name = "WHAT", hide = true)]
    repair: Option<String>,
    #[command(flatten)]
    subject: Subject,
}

/// Checks.
///
/// # Errors
/// The image is damaged, or cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.repair.is_some() {
        let error = Error::usage("check repairs nothing, so -r cannot be met");
        return Err(error.hint("kvmbake convert writes a sound copy of what can be read"));
    }
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let path = &args.subject.path;
    let sound = kvmbake_convert::check_image(path, &args.subject.options(), cancel.flag())
        .map_err(|error| unreadable(path, &error))?;
    let name = path.display();
    if args.subject.style.is_json() {
        let object = json!({
            "file": path.to_string_lossy(),
            "format": sound.format.name(),
            "problems": sound.problems,
            "leaked": sound.leaked,
        });
        print(&format!("{object:#}\n"))?;
    } else if !args.quiet {
        let mut text = String::new();
        for problem in &sound.problems {
            text.push_str(&format!("{name}: {}\n", printable(problem)));
        }
        match sound.leaked {
            Some(0) | None => {}
            Some(bytes) => {
                text.push_str(&format!("{name}: nothing refers to {} of the file\n", Size(bytes)));
            }
        }
        let format = sound.format;
        let probed = if args.subject.format.is_none() { " (probed)" } else { "" };
        text.push_str(&match sound.problems.len() {
            0 if sound.is_clean() => format!("{name}: {format} image{probed}, nothing wrong\n"),
            0 => format!("{name}: {format} image{probed}, sound\n"),
            _ => format!("{name}: {format} image{probed}, damaged\n"),
        });
        print(&text)?;
    }
    if sound.problems.is_empty() {
        return Ok(());
    }
    let count = sound.problems.len();
    Err(Error::input(format!("{name} has {count} problem{}", if count == 1 { "" } else { "s" })))
}
