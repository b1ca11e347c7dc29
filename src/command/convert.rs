//! `kvmbake convert`

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kvmbake_convert::{Format, OpenOptions, Options, Target};

use crate::build::Cancel;
use crate::build::export::{Told, explain, file_name};
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::{Event, Report, Stage};

/// Converts a disk image to another format
///
/// The output appears complete, by rename, or not at all; it is read back and compared with the
/// input first. An output that exists is replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The input's format; probed when absent
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    input_format: Option<Format>,
    /// The output's format; by the output's extension when absent
    #[arg(short = 'O', long = "output-format", value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Folder below which the input may name a backing file; may be repeated
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
    /// The image to read
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// The image to write
    #[arg(value_name = "OUTPUT")]
    output: PathBuf,
}

/// Converts.
///
/// # Errors
/// The input or the output is at fault.
pub fn run(args: &Args, report: Arc<dyn Report>) -> Result<(), Error> {
    let begun = Instant::now();
    let format = output_format(args)?;
    refuse_same_file(&args.input, &args.output)?;
    let options =
        OpenOptions { format: args.input_format, allow_backing: args.allow_backing.clone() };
    let source = kvmbake_convert::open(&args.input, &options).map_err(|error| {
        let mut failed = explain(&error);
        failed.message = format!("Cannot read {}", args.input.display());
        failed
    })?;
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let temporary = Temporary::beside(&args.output);
    let target = Target::new(format, &temporary.0).named(file_name(&args.output));
    let progress = Told::new(Arc::clone(&report));
    let options = Options { checksums: false, ..Options::default() };
    let export = kvmbake_convert::export_with(
        source.as_ref(),
        &[target],
        &options,
        &progress,
        cancel.flag(),
    )
    .map_err(|error| explain(&error))?;
    fs::rename(&temporary.0, &args.output).map_err(|error| {
        Error::input(format!("Cannot create {}", args.output.display())).because(&error)
    })?;
    let detail = export.artifacts.first().map_or_else(String::new, |artifact| {
        format!("{}  {}, {}", args.output.display(), artifact.format, Size(artifact.file_size))
    });
    report.event(Event::Finished {
        stage: Stage::Export,
        step: None,
        detail: &detail,
        took: begun.elapsed(),
    });
    Ok(())
}

fn output_format(args: &Args) -> Result<Format, Error> {
    let by_extension = || {
        let extension = args.output.extension()?.to_str()?;
        Format::from_extension(extension)
    };
    args.output_format.or_else(by_extension).ok_or_else(|| {
        Error::input(format!("Cannot tell the format of {} from its name", args.output.display()))
            .hint("Name it with -O, e.g. -O qcow2")
    })
}

fn refuse_same_file(input: &Path, output: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let Ok(there) = fs::metadata(output) else { return Ok(()) };
    let same = fs::metadata(input)
        .is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()));
    if same {
        return Err(Error::input(format!("{} is the input and the output", input.display())));
    }
    if !there.is_file() {
        return Err(Error::input(format!(
            "{} is there and is not a regular file",
            output.display()
        )));
    }
    Ok(())
}

/// The output's name while it is being written; removed when it was not renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(output: &Path) -> Temporary {
        let name = format!(".{}.{}.part", file_name(output), std::process::id());
        Temporary(output.with_file_name(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
