//! `kvmbake info`

use std::fmt::Write;
use std::path::PathBuf;

use kvmbake_convert::{Format, OpenOptions};

use super::print;
use crate::build::export::explain;
use crate::error::Error;
use crate::profile::units::Size;

/// Says what a disk image is: format, sizes and the format's own details
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    format: Option<Format>,
    /// Folder below which the image may name a backing file; may be repeated
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
    /// The image
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
}

/// Prints what the image is.
///
/// # Errors
/// It cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    let options = OpenOptions { format: args.format, allow_backing: args.allow_backing.clone() };
    let info = kvmbake_convert::info(&args.image, &options).map_err(|error| {
        let mut failed = explain(&error);
        failed.message = format!("Cannot read {}", args.image.display());
        failed
    })?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    line("image", info.path.display().to_string());
    line("format", info.format.to_string());
    line("virtual size", format!("{} ({} bytes)", Size(info.virtual_size), info.virtual_size));
    line("file size", format!("{} ({} bytes)", Size(info.file_size), info.file_size));
    line("on disk", format!("{} ({} bytes)", Size(info.allocated), info.allocated));
    for (name, value) in &info.details {
        line(name, value.clone());
    }
    print(&text)
}
