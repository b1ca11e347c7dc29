//! `kvmbake measure`

use std::path::PathBuf;

use kvmbake_convert::{Encoding, Format};
use serde_json::json;

use super::image::{self, Allowed};
use super::print;
use crate::build::export::explain;
use crate::error::Error;
use crate::profile::units::Size;

/// Says how large an image would be in another format, without writing it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    format: Option<Format>,
    /// The format to measure
    #[arg(short = 'O', long = "output-format", value_name = "FORMAT", default_value = "raw")]
    output_format: Format,
    /// Options of that format
    #[arg(short = 'o', value_name = "KEY=VALUE", value_delimiter = ',')]
    options: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    allowed: Allowed,
    /// The image
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
}

/// Measures.
///
/// # Errors
/// The image cannot be read, or the format cannot hold it.
pub fn run(args: &Args) -> Result<(), Error> {
    let mut encoding = Encoding::from(args.output_format);
    for option in &args.options {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            Error::input(format!("The option {option:?} is not of the form key=value"))
        })?;
        encoding.set(key, value).map_err(|error| Error::input(error.to_string()))?;
    }
    let source = image::open(&args.image, &args.allowed.options(args.format))?;
    let measured =
        kvmbake_convert::measure(&*source, &encoding).map_err(|error| explain(&error))?;
    if args.json {
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
