//! `kvmbake info`

use std::fmt::Write;
use std::path::PathBuf;

use kvmbake_convert::{Format, ImageInfo};
use serde_json::{Map, Value, json};

use super::image::{Allowed, unreadable};
use super::print;
use crate::error::Error;
use crate::profile::units::Size;

/// Says what a disk image is: format, sizes, what it is based on, and the format's own details
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

/// Prints what the image is.
///
/// # Errors
/// It cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    let options = args.allowed.options(args.format);
    let info = kvmbake_convert::info(&args.image, &options)
        .map_err(|error| unreadable(&args.image, &error))?;
    print(&if args.json { as_json(&info) } else { as_text(&info, args.format.is_none()) })
}

fn as_text(info: &ImageInfo, probed: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    let size = |bytes| format!("{} ({bytes} bytes)", Size(bytes));
    line("image", info.path.display().to_string());
    line("format", format!("{}{}", info.format, if probed { " (probed)" } else { "" }));
    line("virtual size", size(info.virtual_size));
    line("data", size(info.data));
    line("file size", size(info.file_size));
    line("on disk", size(info.allocated));
    for (name, value) in &info.details {
        line(name, value.clone());
    }
    for base in &info.chain {
        let about = format!("{}, {}", base.format, size(base.virtual_size));
        line("based on", format!("{}  {about}", base.path.display()));
    }
    text
}

fn as_json(info: &ImageInfo) -> String {
    let details: Map<String, Value> = info
        .details
        .iter()
        .map(|(name, value)| (name.replace(' ', "_"), Value::from(value.as_str())))
        .collect();
    let chain: Vec<Value> = info
        .chain
        .iter()
        .map(|base| {
            json!({
                "file": base.path.to_string_lossy(),
                "format": base.format.name(),
                "virtual_size": base.virtual_size,
            })
        })
        .collect();
    let object = json!({
        "file": info.path.to_string_lossy(),
        "format": info.format.name(),
        "virtual_size": info.virtual_size,
        "data": info.data,
        "file_size": info.file_size,
        "allocated": info.allocated,
        "details": details,
        "chain": chain,
    });
    format!("{object:#}\n")
}
