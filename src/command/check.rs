//! `kvmbake check`

use std::path::PathBuf;

use kvmbake_convert::Format;
use serde_json::json;

use super::image::{Allowed, unreadable};
use super::print;
use crate::build::Cancel;
use crate::error::Error;
use crate::profile::units::Size;

/// Checks an image's structure: tables, overlaps, refcounts, checksums, leaks
///
/// Exits with 1 when something is wrong; leaked space alone is told but is not wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    format: Option<Format>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    allowed: Allowed,
    /// The image
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
}

/// Checks.
///
/// # Errors
/// The image is damaged, or cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let options = args.allowed.options(args.format);
    let sound = kvmbake_convert::check_image(&args.image, &options, cancel.flag())
        .map_err(|error| unreadable(&args.image, &error))?;
    let name = args.image.display();
    if args.json {
        let object = json!({
            "file": args.image.to_string_lossy(),
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
        if sound.is_clean() {
            text.push_str(&format!("{name}: {} image, nothing wrong\n", sound.format));
        }
        print(&text)?;
    }
    if sound.problems.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("{name} has {} problems", sound.problems.len())))
}
