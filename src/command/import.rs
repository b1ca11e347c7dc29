//! `kvmbake import`

use std::path::{Path, PathBuf};

use super::print;
use super::starter::write_new;
use crate::error::Error;
use crate::import;
use crate::profile::read_bounded;
use crate::report::printable;

/// Turns a Packer template with a QEMU builder into a profile
///
/// Templates in JSON and HCL2 are understood. What has no counterpart is listed on standard error and in
/// the profile's first lines. Nothing of the template is run or evaluated.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The template: *.json, or *.pkr.hcl
    #[arg(value_name = "TEMPLATE")]
    template: PathBuf,
    /// File for the profile instead of standard output; one that exists is not replaced
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Reads the template and writes the profile.
///
/// # Errors
/// The template is none, or the profile cannot be written.
pub fn run(args: &Args) -> Result<(), Error> {
    let path: &Path = &args.template;
    let shown = path.display();
    let text = read_bounded(path)
        .map_err(|error| Error::input(format!("Cannot read {shown}")).because(&error))?;
    let imported = import::import(path, &text).map_err(|message| {
        let mut error = Error::input(format!("Cannot import {shown}"));
        error.causes.push(message);
        error
    })?;
    match &args.output {
        Some(file) => write_new(file, &imported.profile)?,
        None => print(&imported.profile)?,
    }
    if !imported.notes.is_empty() {
        eprintln!("{shown}: without a counterpart in the profile:");
        imported.notes.iter().for_each(|note| eprintln!("- {}", printable(note)));
    }
    Ok(())
}
