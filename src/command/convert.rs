//! `kvmbake convert`

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kvmbake_convert::{Encoding, Export, Format, OpenOptions, Options, Target};

use super::image::{self, Allowed, unreadable};
use crate::build::Cancel;
use crate::build::export::{Told, explain, file_name};
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::{Event, Report, Stage};

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
    /// Show progress; a terminal always does
    #[arg(short = 'p')]
    progress: bool,
    /// Read the outputs back and compare them with the input before they appear
    #[arg(long)]
    verify: bool,
    /// Wait until the outputs are on the disk, so that they outlive a crash of the machine
    #[arg(long)]
    sync: bool,
    /// qemu-img's count of coroutines; as many threads as there are processors run here
    #[arg(short = 'm', value_name = "COUNT", hide = true)]
    coroutines: Option<u32>,
    /// qemu-img's out-of-order writes; here the order is the format's
    #[arg(short = 'W', hide = true)]
    unordered: bool,
    /// The images' identifier; derived from the content when absent
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    uuid: Option<[u8; 16]>,
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
    let encodings = encodings(args)?;
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
            ..Target::new(encoding, output.temporary.join(file_name(path)))
        });
        outputs.push(output);
    }
    if open.format.is_none() {
        let format =
            kvmbake_convert::probe(&args.input).map_err(|error| unreadable(&args.input, &error))?;
        let text = format!("{} is taken for {format}; -f says otherwise", args.input.display());
        report.event(Event::Note { stage: Stage::Export, text: &text });
    }
    refuse_collisions(args, &open, &targets)?;
    let source = image::open(&args.input, &open)?;
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    for (output, target) in outputs.iter().zip(&mut targets) {
        output.create()?;
        link_backing(output, target);
    }
    let progress = Told::new(Arc::clone(&report));
    let Args { verify, sync, .. } = *args;
    let options = Options { verify, digest: false, checksums: false, sync };
    let export =
        kvmbake_convert::export_with(source.as_ref(), &targets, &options, &progress, cancel.flag())
            .map_err(|error| unwritten(args, &error))?;
    for output in &outputs {
        output.keep()?;
    }
    let detail = describe(args, &export, source.len(), &*report);
    report.event(Event::Finished {
        stage: Stage::Export,
        step: None,
        detail: &detail,
        took: begun.elapsed(),
    });
    Ok(())
}

/// Returns how to write each output.
fn encodings(args: &Args) -> Result<Vec<Encoding>, Error> {
    let formats: Vec<Format> = match args.output_formats.as_slice() {
        [] => args.outputs.iter().map(|path| by_extension(path)).collect::<Result<_, _>>()?,
        [one] => vec![*one; args.outputs.len()],
        each if each.len() == args.outputs.len() => each.to_vec(),
        each => {
            return Err(Error::input(format!(
                "There are {} output formats for {} outputs",
                each.len(),
                args.outputs.len()
            ))
            .hint("Give -O once for all outputs, or once for each"));
        }
    };
    let mut encodings: Vec<_> = formats.into_iter().map(Encoding::from).collect();
    for option in &args.options {
        set(&mut encodings, option)?;
    }
    if args.compress {
        apply(&mut encodings, Encoding::compress)?;
    }
    Ok(encodings)
}

fn by_extension(path: &Path) -> Result<Format, Error> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.and_then(Format::from_extension).ok_or_else(|| {
        Error::input(format!("Cannot tell the format of {} from its name", path.display()))
            .hint("Name it with -O, e.g. -O qcow2")
    })
}

/// Sets an option in every output that has it; `FORMAT:` before it names the format.
fn set(encodings: &mut [Encoding], option: &str) -> Result<(), Error> {
    let (key, value) = option.split_once('=').ok_or_else(|| {
        Error::input(format!("The option {option:?} is not of the form key=value"))
    })?;
    let (format, key) = match key.split_once(':') {
        Some((format, key)) => {
            let format: Format =
                format.parse().map_err(|error| Error::input("Wrong option").because(&error))?;
            (Some(format), key)
        }
        None => (None, key),
    };
    let mut chosen: Vec<_> = encodings
        .iter_mut()
        .filter(|encoding| format.is_none_or(|format| encoding.format() == format))
        .collect();
    if chosen.is_empty() {
        return Err(Error::input(format!("No output is of the format that {option:?} names")));
    }
    apply(chosen.iter_mut().map(|encoding| &mut **encoding), |encoding| encoding.set(key, value))
}

/// Changes every encoding that can be changed so; a value that one of them does not take is an
/// error, and so is a change that none of them knows.
fn apply<'a>(
    encodings: impl IntoIterator<Item = &'a mut Encoding>,
    change: impl Fn(&mut Encoding) -> Result<(), kvmbake_convert::OptionError>,
) -> Result<(), Error> {
    let mut unknown = None;
    let mut is_known = false;
    for encoding in encodings {
        match change(encoding) {
            Ok(()) => is_known = true,
            Err(error) if error.is_unknown() => unknown = Some(error),
            Err(error) => return Err(Error::input(error.to_string())),
        }
    }
    match unknown {
        Some(error) if !is_known => Err(Error::input(error.to_string())),
        _ => Ok(()),
    }
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

/// Returns the time that the environment asks to write into the images
/// (reproducible-builds.org/specs/source-date-epoch).
fn source_date_epoch() -> Result<Option<u64>, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| {
        Error::input(format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds"))
    })
}

/// Refuses outputs that are each other, or a file that reading the input needs.
fn refuse_collisions(args: &Args, open: &OpenOptions, targets: &[Target]) -> Result<(), Error> {
    let input = &args.input;
    let read = kvmbake_convert::files(input, open).map_err(|error| unreadable(input, &error))?;
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let mut written = BTreeSet::new();
    for (path, target) in args.outputs.iter().zip(targets) {
        let extent = target.extent_path().map(|extent| path.with_file_name(file_name(&extent)));
        for path in std::iter::once(path.clone()).chain(extent) {
            let there = identity(&path);
            let needed = read.iter().find(|read| there.is_some() && identity(read) == there);
            if let Some(needed) = needed {
                let what = if needed == input { "the input" } else { "a file of the input" };
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

/// Returns the folder that a file is in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Lets a relative backing file be found from the temporary folder, which is one level down.
fn link_backing(output: &Output, target: &Target) {
    if let Encoding::Qcow2(options) = &target.encoding
        && let Some(name) = options.backing_file.as_deref().filter(|name| !name.starts_with('/'))
        && let Ok(real) = folder(&output.path).join(name).canonicalize()
    {
        let link = output.temporary.join(name);
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
        let folder = Output::temporary(path);
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
            let text = format!(
                "{}: {size} bytes are rounded up to {}, which {} can express",
                path.display(),
                artifact.virtual_size,
                artifact.format
            );
            report.event(Event::Note { stage: Stage::Export, text: &text });
        }
        let len = artifact.file_size + artifact.extent.as_ref().map_or(0, |file| file.file_size);
        lines.push(format!("{}  {}, {}", path.display(), artifact.format, Size(len)));
    }
    lines.join("; ")
}

/// An output and the folder beside it where it is made; the folder goes with this.
struct Output {
    path: PathBuf,
    temporary: PathBuf,
}

impl Output {
    fn plan(path: &Path) -> Result<Output, Error> {
        if let Ok(there) = fs::metadata(path)
            && !there.is_file()
        {
            let message = format!("{} is there and is not a regular file", path.display());
            return Err(Error::input(message));
        }
        if path.file_name().is_none() {
            return Err(Error::input(format!("{} is no file name", path.display())));
        }
        Ok(Output { path: path.to_owned(), temporary: Output::temporary(path) })
    }

    fn temporary(path: &Path) -> PathBuf {
        path.with_file_name(format!(".{}.{}.part", file_name(path), std::process::id()))
    }

    fn create(&self) -> Result<(), Error> {
        fs::create_dir(&self.temporary).map_err(|error| {
            Error::input(format!("Cannot create {}: {error}", self.path.display()))
        })
    }

    /// Gives the output's files their names, its own last.
    fn keep(&self) -> Result<(), Error> {
        let failed = |error: std::io::Error| {
            Error::input(format!("Cannot create {}: {error}", self.path.display()))
        };
        let own = file_name(&self.path);
        let mut names: Vec<_> = fs::read_dir(&self.temporary)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(failed)?
            .into_iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.file_name())
            .collect();
        names.sort_by_key(|name| *name == *own);
        for name in names {
            fs::rename(self.temporary.join(&name), self.path.with_file_name(&name))
                .map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.temporary);
    }
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
