//! `kvmbake check`

use serde_json::json;

use super::image::{Subject, unreadable};
use super::print;
use crate::build::Cancel;
use crate::error::Error;
use crate::profile::units::Size;

/// Checks an image's structure: tables, overlaps, refcounts, checksums, leaks
///
/// Exits with 1 when something is wrong; leaked space alone is told but is not wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
}

/// Checks.
///
/// # Errors
/// The image is damaged, or cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let Subject { path, json, .. } = &args.subject;
    let sound = kvmbake_convert::check_image(path, &args.subject.options(), cancel.flag())
        .map_err(|error| unreadable(path, &error))?;
    let name = path.display();
    if *json {
        let object = json!({
            "file": path.to_string_lossy(),
            "format": sound.format.name(),
            "problems": sound.problems,
            "leaked": sound.leaked,
        });
        print(&format!("{object:#}\n"))?;
    } else {
        let mut text = String::new();
        for problem in &sound.problems {
            text.push_str(&format!("{name}: {problem}\n"));
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
