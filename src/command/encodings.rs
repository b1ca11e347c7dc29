//! `-O`, `-o` and `-c` of the commands on images: what they make of the outputs' encodings.

use std::path::{Path, PathBuf};

use kvmbake_convert::{Encoding, Format, OptionError};

use crate::build::export::file_name;
use crate::error::Error;

/// Returns how to write each output: by the formats given, one for all or one for each, or else by
/// the names' extensions.
pub fn of(paths: &[PathBuf], formats: &[Format]) -> Result<Vec<Encoding>, Error> {
    match formats {
        [] => paths.iter().map(|path| by_name(path)).collect(),
        [one] => Ok(vec![Encoding::from(*one); paths.len()]),
        each if each.len() == paths.len() => Ok(each.iter().copied().map(Encoding::from).collect()),
        each => Err(Error::usage(format!(
            "There are {} output formats for {} outputs",
            each.len(),
            paths.len()
        ))
        .hint("Give -O once for all outputs, or once for each")),
    }
}

fn by_name(path: &Path) -> Result<Encoding, Error> {
    Encoding::from_file_name(&file_name(path)).ok_or_else(|| {
        Error::usage(format!("Cannot tell the format of {} from its name", path.display()))
            .hint("Name it with -O, e.g. -O qcow2")
    })
}

/// Applies options of the form `key=value` or `format:key=value`, and compression if it is asked
/// for; then checks that all go together.
pub fn apply(encodings: &mut [Encoding], options: &[String], compress: bool) -> Result<(), Error> {
    for option in options {
        set(encodings, option)?;
    }
    if compress {
        change(encodings.iter_mut(), Encoding::compress)?;
    }
    for encoding in encodings {
        encoding.check().map_err(|error| Error::usage(error.to_string()))?;
    }
    Ok(())
}

/// Sets an option in every output that has it; `FORMAT:` before it names the format.
fn set(encodings: &mut [Encoding], option: &str) -> Result<(), Error> {
    let (key, value) = option.split_once('=').ok_or_else(|| {
        Error::usage(format!("The option {option:?} is not of the form key=value"))
    })?;
    let (format, key) = match key.split_once(':') {
        Some((format, key)) => {
            let format: Format =
                format.parse().map_err(|error: kvmbake_convert::UnknownFormat| {
                    Error::usage(format!("The option {option:?}: {error}"))
                })?;
            (Some(format), key)
        }
        None => (None, key),
    };
    let mut chosen = encodings
        .iter_mut()
        .filter(|encoding| format.is_none_or(|format| encoding.format() == format))
        .peekable();
    if chosen.peek().is_none() {
        return Err(Error::usage(format!("No output is of the format that {option:?} names")));
    }
    change(chosen, |encoding| encoding.set(key, value))
}

/// Changes every encoding that can be changed so; a value that one of them does not take is an
/// error, and so is a change that none of them knows.
fn change<'a>(
    encodings: impl Iterator<Item = &'a mut Encoding>,
    change: impl Fn(&mut Encoding) -> Result<(), OptionError>,
) -> Result<(), Error> {
    let mut unknown = None;
    let mut is_known = false;
    for encoding in encodings {
        match change(encoding) {
            Ok(()) => is_known = true,
            Err(error) if error.is_unknown() => unknown = Some(error),
            Err(error) => return Err(Error::usage(error.to_string())),
        }
    }
    match unknown {
        Some(error) if !is_known => Err(Error::usage(error.to_string())),
        _ => Ok(()),
    }
}
