//! `kvmbake info`

use std::collections::BTreeMap;
use std::fmt::Write;

use kvmbake_convert::{Detail, ImageInfo};
use serde_json::{Map, Value, json};

use super::image::{Subject, unreadable};
use super::print;
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::printable;

/// Says what a disk image is: format, sizes, what it is based on, and the format's own details
#[derive(Debug, clap::Args)]
pub struct Args {
    /// qemu-img's wish to see the chain, which is always shown
    #[arg(long, hide = true)]
    backing_chain: bool,
    #[command(flatten)]
    subject: Subject,
}

/// Prints what the image is.
///
/// # Errors
/// It cannot be read.
pub fn run(args: &Args) -> Result<(), Error> {
    let Subject { path, format, .. } = &args.subject;
    let info = kvmbake_convert::info(path, &args.subject.options())
        .map_err(|error| unreadable(path, &error))?;
    print(&if args.subject.style.is_json() {
        as_json(&info)
    } else {
        as_text(&info, format.is_none())
    })
}

fn as_text(info: &ImageInfo, probed: bool) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &'static str, value: String| lines.push((name, printable(&value)));
    let size = |bytes| format!("{} ({bytes} bytes)", Size(bytes));
    line("image", info.path.display().to_string());
    line("format", format!("{}{}", info.format, if probed { " (probed)" } else { "" }));
    line("virtual size", size(info.virtual_size));
    let rounded = rounded_up(info.virtual_size);
    if !rounded.is_empty() {
        let sizes = rounded.iter().map(|(what, _, bytes)| format!("{bytes} bytes in {what}"));
        line("rounded up to", sizes.collect::<Vec<_>>().join(", "));
    }
    line("data", size(info.data));
    line("file size", size(info.file_size));
    line("on disk", size(info.allocated));
    for (name, value) in &info.details {
        match value {
            Detail::List(texts) => texts.iter().for_each(|text| line(name, text.clone())),
            value => line(name, value.to_string()),
        }
    }
    for note in &info.notes {
        line("note", note.clone());
    }
    for base in &info.chain {
        let about = format!("{}, {}", base.format, size(base.virtual_size));
        line("based on", format!("{}  {about}", base.path.display()));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<width$}  {value}");
    }
    text
}

/// The sizes that a disk gets in formats that cannot express its own: which, for a person and for
/// programs, and the size.
fn rounded_up(size: u64) -> Vec<(&'static str, &'static str, u64)> {
    [("all formats but raw", "all_but_raw", 512), ("a fixed VHD", "fixed_vhd", 1 << 20)]
        .into_iter()
        .filter(|(.., unit)| !size.is_multiple_of(*unit))
        .map(|(what, key, unit)| (what, key, size.next_multiple_of(unit)))
        .collect()
}

fn as_json(info: &ImageInfo) -> String {
    let details: Map<String, Value> = info
        .details
        .iter()
        .map(|(name, value)| (name.replace(' ', "_").to_lowercase(), detail(value)))
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
        "rounded_up": rounded_up(info.virtual_size)
            .into_iter()
            .map(|(_, key, bytes)| (key, Value::from(bytes)))
            .collect::<BTreeMap<_, _>>(),
        "data": info.data,
        "file_size": info.file_size,
        "allocated": info.allocated,
        "details": details,
        "notes": info.notes,
        "chain": chain,
    });
    format!("{object:#}\n")
}

fn detail(value: &Detail) -> Value {
    match value {
        Detail::Number(number) => Value::from(*number),
        Detail::Flag(flag) => Value::from(*flag),
        Detail::List(texts) => Value::from(texts.as_slice()),
        Detail::Text(text) => Value::from(text.as_str()),
    }
}
