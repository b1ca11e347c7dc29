//! `[[output]]`: the images to write, their names, formats and options.

use std::ops::Range;

use kvmbake_convert::{Encoding, Format, Target};

use super::reader::{At, Reader, nearest};
use super::{Context, Output};

/// What a build has in its folder besides images and downloads.
pub const TAKEN: [&str; 7] =
    ["manifest.json", "SHA512SUM.txt", "MD5SUM.txt", "serial.log", "net.jsonl", "lock", "overlays"];
/// Options that make an image depend on another file.
const NOT_ALONE: [&str; 2] = ["backing_file", "backing_fmt"];

impl Context<'_> {
    /// Reads all outputs; `name` is the image's.
    pub(super) fn outputs(&self, root: &Reader<'_, '_>, name: &str) -> Vec<Output> {
        let mut outputs: Vec<Output> = Vec::new();
        for reader in root.tables("output") {
            outputs.extend(self.output(reader, name, &outputs));
        }
        if root.value("output").is_none() {
            root.fault_with_hint(
                &(0..0),
                "The profile has no [[output]]",
                "Add one with format = \"qcow2\"",
            );
        }
        outputs
    }

    fn output(&self, reader: Reader<'_, '_>, name: &str, others: &[Output]) -> Option<Output> {
        let format = reader.required_string("format");
        let file = reader.string("name").and_then(|at| self.file_name(&reader, "name", at));
        let settings = reader.settings("options");
        let compress = reader.value("compress").map(|value| value.span());
        let compress = compress.filter(|_| reader.bool("compress") == Some(true));
        let span = format.as_ref().map_or(reader.span(), |at| at.span.clone());
        let output = format.and_then(|format| parse(&reader, &format)).map(|format| {
            let encoding = encoding(&reader, format, &settings, compress, &span);
            let file = file.unwrap_or_else(|| format!("{name}.{}", encoding.extension()));
            Output { encoding, file, place: self.source.place(&span) }
        });
        if let Some(output) = &output {
            refuse_taken(&reader, &span, output, others);
        }
        reader.finish();
        output
    }
}

impl Output {
    /// Returns its format.
    pub fn format(&self) -> Format {
        self.encoding.format()
    }

    /// Returns the name of the second file that the image consists of, if it has one.
    pub fn extent(&self) -> Option<String> {
        let extent = Target::new(self.encoding.clone(), &self.file).extent_path()?;
        Some(extent.to_string_lossy().into_owned())
    }

    /// Returns the names of its files.
    pub fn files(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.file.clone()).chain(self.extent())
    }
}

fn parse(reader: &Reader<'_, '_>, format: &At<String>) -> Option<Format> {
    let parsed = format.value.parse().ok();
    if parsed.is_none() {
        let known = Format::ALL.map(Format::name);
        let hint = nearest(&format.value, known).map_or_else(
            || format!("Known are {}", known.join(", ")),
            |near| format!("Did you mean `{near}`?"),
        );
        let message = format!("`{}` is no output format", format.value);
        reader.fault_with_hint(&format.span, message, hint);
    }
    parsed
}

/// Returns how to write the image; `compress` is the place that asks for compression, `span` the
/// one to blame for options that do not go together.
fn encoding(
    reader: &Reader<'_, '_>,
    format: Format,
    settings: &[(At<String>, At<String>)],
    compress: Option<Range<usize>>,
    span: &Range<usize>,
) -> Encoding {
    let mut encoding = Encoding::from(format);
    let mut sound = true;
    for (key, value) in settings {
        if NOT_ALONE.contains(&key.value.as_str()) {
            let message = format!("`{}` is not for baked images", key.value);
            reader.fault_with_hint(
                &key.span,
                message,
                "Bake a whole image and let `kvmbake convert -o backing_file=…` take the difference",
            );
            sound = false;
        } else if let Err(error) = encoding.set(&key.value, &value.value) {
            sound = false;
            if error.is_unknown() {
                refuse_unknown(reader, format, key, error.known());
            } else {
                reader.fault(&value.span, error.to_string());
            }
        }
    }
    if let Some(span) = compress
        && let Err(error) = encoding.compress()
    {
        if error.is_unknown() {
            let hint = "qcow2, vmdk and ova do; raw has options.compression";
            reader.fault_with_hint(&span, format!("{format} images do not compress"), hint);
        } else {
            reader.fault(&span, error.to_string());
        }
    }
    if sound && let Err(error) = encoding.check() {
        reader.fault(span, error.to_string());
    }
    encoding
}

/// Refuses an option that the format does not have, with the nearest one that it has.
fn refuse_unknown(reader: &Reader<'_, '_>, format: Format, key: &At<String>, known: &[&str]) {
    let known: Vec<&str> = known.iter().copied().filter(|key| !NOT_ALONE.contains(key)).collect();
    let message = format!("The {format} format has no option `{}`", key.value);
    match nearest(&key.value, known.iter().copied()) {
        Some(near) => {
            reader.fault_with_hint(&key.span, message, format!("Did you mean `{near}`?"));
        }
        None if known.is_empty() => reader.fault(&key.span, message),
        None => {
            let hint = format!("Known are {}", known.join(", "));
            reader.fault_with_hint(&key.span, message, hint);
        }
    }
}

/// Refuses names that another output or the build itself uses.
fn refuse_taken(reader: &Reader<'_, '_>, span: &Range<usize>, output: &Output, others: &[Output]) {
    for file in output.files() {
        if others.iter().any(|other| other.files().any(|name| name == file)) {
            let message = format!("Two outputs are called `{file}`");
            reader.fault_with_hint(span, message, "Give one of them another `name`");
        } else if TAKEN.contains(&file.as_str()) {
            reader.fault(span, format!("Every build has a `{file}` of its own"));
        }
    }
}
