//! `kvmbake measure`

use kvmbake_convert::{Encoding, Format};
use serde_json::json;

use super::image::{self, Subject, unreadable};
use super::{encodings, print};
use crate::error::Error;
use crate::profile::units::Size;
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
    #[command(flatten)]
    subject: Subject,
}

/// Measures.
///
/// # Errors
/// The image cannot be read, or the format cannot hold it.
pub fn run(args: &Args, report: &dyn Report) -> Result<(), Error> {
    let mut encodings = [Encoding::from(args.output_format)];
    encodings::apply(&mut encodings, &args.options, false)?;
    let Subject { path, json, .. } = &args.subject;
    let source = image::open(path, &args.subject.options(), report)?;
    let measured = kvmbake_convert::measure(&*source, &encodings[0]).map_err(|error| {
        let kvmbake_convert::Error::Refused { format, reason, .. } = &error else {
            return unreadable(path, &error);
        };
        Error::input(format!("{} does not fit {format}: {reason}", path.display()))
    })?;
    if *json {
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
