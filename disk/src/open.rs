//! Opening any disk, and deciding which other files an image may pull in.
//!
//! Contract: no file that an image names is opened unless the caller allowed the directory it
//! lies in, symbolic links resolved; names that are no plain paths (`json:`, `nbd:`, URLs) are
//! never followed; the format of a backing file must be written down, it is not guessed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::Block;
use crate::error::{Error, ErrorKind};
use crate::format::{Format, probe};
use crate::qcow2;
use crate::raw::RawBlock;

/// How many backing files may follow each other; also what ends a chain that bites its tail.
const MAX_CHAIN: usize = 32;

/// How to open a disk. The default reads, probes the format, and allows no other file.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Open for writing, which needs the file for oneself. Backing files are only ever read.
    pub writable: bool,
    /// The format, where it is known. `None` probes: only for files that no guest has written.
    pub format: Option<Format>,
    /// Directories below which an image may name backing files and data files.
    pub allow_backing: Vec<PathBuf>,
    /// Read also qcow2 images that are marked as dirty: their last user did not close them, so that
    /// their refcounts are worth nothing. Never for writing.
    pub accept_dirty: bool,
}

/// Opens the disk image at `path` and locks it: shared for reading, alone for writing.
///
/// # Errors
/// [`ErrorKind::Locked`] when somebody else uses it, [`ErrorKind::NamesOtherFile`] when it needs
/// a file that `options` do not allow, [`ErrorKind::Truncated`], [`ErrorKind::Corrupt`] and
/// [`ErrorKind::Unsupported`] by what the image is; otherwise what the host reported.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Block>, Error> {
    open_at_depth(path, options, 0)
}

fn open_at_depth(
    path: &Path,
    options: &OpenOptions,
    depth: usize,
) -> Result<Arc<dyn Block>, Error> {
    let format = match options.format {
        Some(format) => format,
        None => probe(path)?,
    };
    Ok(match format {
        Format::Raw => Arc::new(RawBlock::open(path, options.writable)?),
        Format::Qcow2 => qcow2::open(path, options, depth)?,
    })
}

/// Returns the paths of all files that [`open`] would open for the image at `path`, itself first.
///
/// # Errors
/// As [`open`].
pub fn files(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, Error> {
    let mut files = vec![path.to_owned()];
    let (mut image, mut format) = (path.to_owned(), options.format);
    for _ in 0..=MAX_CHAIN {
        let kind = match format {
            Some(format) => format,
            None => probe(&image)?,
        };
        let names = match kind {
            Format::Raw => break,
            Format::Qcow2 => qcow2::names(&image)?,
        };
        if let Some(name) = names.data_file {
            files.push(options.resolve(&image, "data file", &name)?);
        }
        let Some((name, backing_format)) = names.backing else { break };
        image = options.resolve(&image, "backing file", &name)?;
        files.push(image.clone());
        // A name that is no format of ours has been refused by `open`.
        format = backing_format.and_then(|format| match format.as_str() {
            "file" => Some(Format::Raw),
            other => other.parse().ok(),
        });
    }
    Ok(files)
}

/// Opens the backing file that the image at `path` names.
pub(crate) fn open_backing(
    path: &Path,
    name: &str,
    format: Option<&str>,
    options: &OpenOptions,
    depth: usize,
) -> Result<Arc<dyn Block>, Error> {
    let resolved = options.resolve(path, "backing file", name)?;
    if depth >= MAX_CHAIN {
        return Err(Error::new(ErrorKind::Unsupported, "open")
            .on(path)
            .because(format!("more than {MAX_CHAIN} backing files follow each other")));
    }
    let refused = |detail: String| {
        Error::new(ErrorKind::Unsupported, "open").on(path).because(detail).with_hint(format!(
            "Write the format into it: qemu-img rebase -u -F qcow2 -b {name} {}",
            path.display()
        ))
    };
    let format = match format {
        Some("file") => Format::Raw,
        Some(format) => {
            format.parse().map_err(|error| refused(format!("backing file \"{name}\": {error}")))?
        }
        None => {
            return Err(refused(format!(
                "it names the backing file \"{name}\" without its format, which is not guessed"
            )));
        }
    };
    let options = OpenOptions {
        writable: false,
        format: Some(format),
        allow_backing: options.allow_backing.clone(),
        accept_dirty: options.accept_dirty,
    };
    open_at_depth(&resolved, &options, depth + 1)
}

impl OpenOptions {
    /// Returns the real path of the file that the image at `image` calls `name`, if it may be
    /// opened.
    pub(crate) fn resolve(&self, image: &Path, role: &str, name: &str) -> Result<PathBuf, Error> {
        let refused = |detail: String| {
            Error::new(ErrorKind::NamesOtherFile, "open").on(image).because(detail).with_hint(
                format!(
                    "Allow the directory of the {role}, or put everything into one file: \
                     qemu-img convert -O qcow2 {} flat.qcow2",
                    image.display()
                ),
            )
        };
        // As QEMU reads it: a colon before any slash makes it something else than a path.
        let is_protocol =
            name.find(':').is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash));
        if name.is_empty() || is_protocol || name.contains('\0') {
            return Err(refused(format!(
                "its {role} \"{}\" is not a plain path",
                name.escape_debug()
            )));
        }
        let path = image.parent().unwrap_or(Path::new("")).join(name);
        if self.allow_backing.is_empty() {
            return Err(refused(format!(
                "it names the {role} \"{}\", and no other file is allowed",
                name.escape_debug()
            )));
        }
        let real = path.canonicalize().map_err(|error| {
            Error::io("open", error)
                .on(&path)
                .with_hint(format!("{} names it as its {role}", image.display()))
        })?;
        let allowed = self
            .allow_backing
            .iter()
            .filter_map(|directory| directory.canonicalize().ok())
            .any(|directory| real.starts_with(directory));
        if !allowed {
            return Err(refused(format!(
                "it names the {role} \"{}\", which is {} and lies in no allowed directory",
                name.escape_debug(),
                real.display()
            )));
        }
        Ok(real)
    }
}
