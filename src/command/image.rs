//! What the commands on images share: how an input is named, and its faults told in one line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_convert::{Format, OpenOptions};
use kvmbake_disk::Block;

use crate::build::export::explain;
use crate::error::Error;

/// Folders that images may name files in.
#[derive(Debug, Clone, clap::Args)]
pub struct Allowed {
    /// Folder below which an image may name other files (backing, data, extents); may be repeated
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
}

impl Allowed {
    /// Returns the folders.
    pub fn folders(&self) -> &[PathBuf] {
        &self.allow_backing
    }

    /// Returns the options to open an image with.
    pub fn options(&self, format: Option<Format>) -> OpenOptions {
        OpenOptions { format, allow_backing: self.allow_backing.clone(), scratch: None }
    }
}

/// Opens an image.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Block>, Error> {
    kvmbake_convert::open(path, options).map_err(|error| unreadable(path, &error))
}

/// The error of an image that cannot be read: one line with the file and the reason, and what to
/// do about it.
pub fn unreadable(path: &Path, error: &kvmbake_convert::Error) -> Error {
    let mut failed = explain(error);
    if matches!(error, kvmbake_convert::Error::Cancelled) {
        return failed;
    }
    let mut message = std::mem::take(&mut failed.causes).join(": ");
    let name = path.display().to_string();
    if !message.contains(&name) {
        message = format!("Cannot read {name}: {message}");
    }
    failed.message = message.replace('\n', " ");
    failed.hint = error.hint().map(|hint| match error {
        kvmbake_convert::Error::Ambiguous { .. } => "Name the format with -f".to_owned(),
        _ => hint,
    });
    failed
}
