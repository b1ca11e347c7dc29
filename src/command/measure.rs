//! `kvmbake measure`

use std::path::{Path, PathBuf};

use kvmbake_convert::{Encoding, Format};
use serde_json::json;

use super::image::{self, Allowed, Style, unreadable};
use super::{encodings, print};
use crate::error::Error;
use crate::profile::units::{Size, parse_size};
use crate::report::Report;

/// Says how large an image would be in another format, without writing it
///
/// Only where the image has data is looked at, not at the data: the sizes are upper bounds, and
/// those of compressed images are without the compression.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The format to measure
    #[arg(short = 'O', long = "output-format", value_name = "FORMAT", default_value = "raw")]
    output_format: Format,
    /// Options of that format
    #[arg(short = 'o', value_name = "KEY=VALUE", value_delimiter = ',')]
    options: Vec<String>,
    /// The image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    format: Option<Format>,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    allowed: Allowed,
    /// Measure an empty disk of this size instead of an image
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// The image
    #[arg(value_name = "IMAGE", conflicts_with = "size", required_unless_present = "size")]
    path: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// The image cannot be read, or the format cannot hold it.
pub fn run(args: &Args, report: &dyn Report) -> Result<(), Error> {
    let mut encodings = [Encoding::from(args.output_format)];
    encodings::apply(&mut encodings, &args.options, false)?;
    let [encoding] = &encodings;
    let (measured, name) = match (&args.path, args.size) {
        (Some(path), _) => {
            let source = image::open(path, &args.allowed.options(args.format), report)?;
            (kvmbake_convert::measure(&*source, encoding), path.display().to_string())
        }
        (None, size) => {
            let size = size.unwrap_or_default();
            (kvmbake_convert::measure_empty(size, encoding), format!("A disk of {}", Size(size)))
        }
    };
    let measured = measured.map_err(|error| {
        let kvmbake_convert::Error::Refused { format, reason, .. } = &error else {
            return unreadable(Path::new(&name), &error);
        };
        Error::input(format!("{name} does not fit {format}: {reason}"))
    })?;
    if args.style.is_json() {
        let object = json!({
            "virtual_size": measured.virtual_size,
            "required": measured.required,
            "fully_allocated": measured.fully_allocated,
        });
        return print(&format!("{object:#}\n"));
    }
    let mut text = String::new();
    for (name, bytes) in [
        ("virtual size", measured.virtual_size),
        ("required size", measured.required),
        ("fully allocated", measured.fully_allocated),
    ] {
        text.push_str(&format!("{name:<16} {} ({bytes} bytes)\n", Size(bytes)));
    }
    print(&text)
}
