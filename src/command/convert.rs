//! `kvmbake convert`

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kvmbake_convert::{Encoding, Export, Format, OpenOptions, Options, Target};

use super::encodings;
use super::habits::Habits;
use super::image::{self, Allowed, unreadable};
use super::output::{self, Output, folder};
use crate::build::Cancel;
use crate::build::export::{explain, file_name, rounded_up, source_date_epoch};
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::{Event, Quiet, Report, Stage};

/// Converts a disk image to one or more other formats in one pass
///
/// Each output appears complete, by rename, or not at all. An output that exists is replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The input's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    input_format: Option<Format>,
    /// The output's format; once for all outputs, or once for each; by extension when absent
    #[arg(short = 'O', long = "output-format", value_name = "FORMAT")]
    output_formats: Vec<Format>,
    /// Options of the output's format, e.g. subformat=fixed,… or vmdk:subformat=streamOptimized
    #[arg(short = 'o', value_name = "KEY=VALUE", value_delimiter = ',')]
    options: Vec<String>,
    /// Compress, where the output's format can
    #[arg(short = 'c')]
    compress: bool,
    /// Store only what differs from this image, as -o backing_file=FILE; relative to the output's folder
    #[arg(short = 'B', value_name = "FILE", requires = "backing_format")]
    backing_file: Option<String>,
    /// The format of the image that -B names, as -o backing_fmt=FORMAT: qcow2 or raw
    #[arg(short = 'F', value_name = "FORMAT", requires = "backing_file")]
    backing_format: Option<String>,
    /// Show progress; a terminal always does
    #[arg(short = 'p')]
    progress: bool,
    /// Say nothing but errors
    #[arg(short = 'q')]
    quiet: bool,
    /// Read the outputs back and compare them with the input before they appear
    #[arg(long)]
    verify: bool,
    /// Wait until the outputs are on the disk, so that they outlive a crash of the machine
    #[arg(long)]
    sync: bool,
    /// The images' identifier; derived from the content when absent
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    uuid: Option<[u8; 16]>,
    #[command(flatten)]
    habits: Habits,
    #[command(flatten)]
    allowed: Allowed,
    /// The image to read
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// The images to write
    #[arg(value_name = "OUTPUT", required = true)]
    outputs: Vec<PathBuf>,
}

/// Converts.
///
/// # Errors
/// The input or an output is at fault.
pub fn run(args: &Args, report: Arc<dyn Report>) -> Result<(), Error> {
    let begun = Instant::now();
    let report = if args.quiet { Arc::new(Quiet) } else { report };
    args.habits.check()?;
    let mut encodings = encodings::of(&args.outputs, &args.output_formats)?;
    let mut options = args.options.clone();
    for (key, value) in
        [("backing_file", &args.backing_file), ("backing_fmt", &args.backing_format)]
    {
        options.extend(value.as_ref().map(|value| format!("{key}={value}")));
    }
    encodings::apply(&mut encodings, &options, args.compress)?;
    let time = source_date_epoch()?;
    let mut open = args.allowed.options(args.input_format);
    open.scratch = args.outputs.first().map(|output| folder(output).to_owned());
    let mut outputs = Vec::new();
    let mut targets = Vec::new();
    for (path, encoding) in args.outputs.iter().zip(encodings) {
        let output = Output::plan(path)?;
        targets.push(Target {
            uuid: args.uuid,
            time,
            allow_backing: args.allowed.folders().to_vec(),
            ..Target::new(encoding, output.temporary().join(file_name(path)))
        });
        outputs.push(output);
    }
    refuse_collisions(args, &open, &targets)?;
    let source = image::open(&args.input, &open, &*report)?;
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    for (output, target) in outputs.iter_mut().zip(&mut targets) {
        output.create()?;
        link_backing(output, target);
    }
    let progress = image::progress(args.progress, &report, Stage::Convert);
    let sync = args.sync || args.habits.wants_sync();
    let options = Options { verify: args.verify, digest: false, checksums: false, sync };
    let export = kvmbake_convert::export_with(
        source.as_ref(),
        &targets,
        &options,
        &*progress,
        cancel.flag(),
    )
    .map_err(|error| unwritten(args, &error))?;
    for output in &outputs {
        output.keep()?;
    }
    let detail = describe(args, &export, source.len(), &*report);
    report.event(Event::Finished {
        stage: Stage::Convert,
        step: None,
        detail: &detail,
        took: begun.elapsed(),
    });
    Ok(())
}

fn uuid(text: &str) -> Result<[u8; 16], String> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = text.replace('-', "");
    let number = u128::from_str_radix(&digits, 16).ok().filter(|number| *number != 0);
    match number {
        Some(number) if groups == [8, 4, 4, 4, 12] && !digits.starts_with('+') => {
            Ok(number.to_be_bytes())
        }
        _ => Err("not a UUID such as 6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned()),
    }
}

/// Refuses outputs that are each other, or a file that reading the input needs.
fn refuse_collisions(args: &Args, open: &OpenOptions, targets: &[Target]) -> Result<(), Error> {
    let input = &args.input;
    let read = kvmbake_convert::files(input, open).map_err(|error| unreadable(input, &error))?;
    let backing = args.outputs.iter().zip(targets).filter_map(|(path, target)| {
        let Encoding::Qcow2(options) = &target.encoding else { return None };
        options.backing_file.as_ref().map(|name| folder(path).join(name))
    });
    let needed: Vec<(PathBuf, &str)> = read
        .into_iter()
        .map(
            |file| if file == *input { (file, "the input") } else { (file, "a file of the input") },
        )
        .chain(backing.map(|file| (file, "the backing file of an output")))
        .collect();
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let mut written = BTreeSet::new();
    for (path, target) in args.outputs.iter().zip(targets) {
        let extent = target.extent_path().map(|extent| path.with_file_name(file_name(&extent)));
        for path in std::iter::once(path.clone()).chain(extent) {
            let there = identity(&path);
            let needed = needed.iter().find(|(file, _)| there.is_some() && identity(file) == there);
            if let Some((_, what)) = needed {
                let message = format!("{} is {what} and the output", path.display());
                return Err(Error::input(message));
            }
            if !written
                .insert(folder(&path).canonicalize().ok().map(|at| at.join(file_name(&path))))
            {
                return Err(Error::input(format!("{} is two of the outputs", path.display())));
            }
        }
    }
    Ok(())
}

/// Lets a relative backing file be found from the temporary folder, which is one level down.
fn link_backing(output: &Output, target: &Target) {
    if let Encoding::Qcow2(options) = &target.encoding
        && let Some(name) = options.backing_file.as_deref().filter(|name| !name.starts_with('/'))
        && let Ok(real) = folder(output.path()).join(name).canonicalize()
    {
        let link = output.temporary().join(name);
        let _ = link.parent().map(fs::create_dir_all);
        // Where it cannot be made, opening the backing file says what is wrong.
        let _ = std::os::unix::fs::symlink(real, link);
    }
}

fn unwritten(args: &Args, error: &kvmbake_convert::Error) -> Error {
    let mut failed = explain(error);
    if failed.causes.is_empty() {
        return failed;
    }
    let mut message = std::mem::take(&mut failed.causes).join(": ");
    // The names that a person knows, not the temporary ones.
    for path in &args.outputs {
        let folder = output::temporary(path);
        for name in [folder.join(file_name(path)), folder] {
            message = message.replace(&name.display().to_string(), &path.display().to_string());
        }
    }
    failed.message = message;
    failed
}

/// Says what was written, and where a format could not hold the exact size.
fn describe(args: &Args, export: &Export, size: u64, report: &dyn Report) -> String {
    let mut lines = Vec::new();
    for (path, artifact) in args.outputs.iter().zip(&export.artifacts) {
        if artifact.virtual_size != size {
            let (file, format) = (path.display().to_string(), artifact.format.name());
            let text = rounded_up(&file, format, size, artifact.virtual_size);
            report.event(Event::Note { stage: Stage::Convert, text: &text });
        }
        let len = artifact.file_size + artifact.extent.as_ref().map_or(0, |file| file.file_size);
        lines.push(format!("{}  {}, {}", path.display(), artifact.format, Size(len)));
    }
    if let [line] = lines.as_slice() {
        return line.clone();
    }
    for text in &lines {
        report.event(Event::Note { stage: Stage::Convert, text });
    }
    format!("{} images", lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_in_their_usual_form_only() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(uuid(text).unwrap()[..3], [0, 0x11, 0x22]);
        for wrong in ["", "1", &text.replace('-', ""), &text[1..], &text.replace('f', "g")] {
            assert!(uuid(wrong).is_err(), "{wrong}");
        }
        assert!(uuid("00000000-0000-0000-0000-000000000000").is_err());
    }
}
