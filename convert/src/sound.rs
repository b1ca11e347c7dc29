//! Whether an image is sound: everything that opening it checks, and what opening leaves out
//! because reading does not depend on it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use kvmbake_disk::qcow2::check_refcounts;

use crate::digest::digest;
use crate::error::Error;
use crate::format::Format;
use crate::image::{OpenOptions, open_image};
use crate::mapped::ImageFile;
use crate::output::Cancel;
use crate::ova;

/// What is wrong with an image that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soundness {
    /// The image's format, as given or probed.
    pub format: Format,
    /// What contradicts itself; reading is not affected.
    pub problems: Vec<String>,
    /// Bytes of the file that nothing refers to; `None` where that is not known.
    pub leaked: Option<u64>,
}

impl Soundness {
    /// Returns whether nothing is wrong and nothing is leaked.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.leaked.unwrap_or(0) == 0
    }
}

/// Checks an image: its structure as [`open`](crate::open) does; the refcounts of qcow2; the
/// checksums of an OVA's manifest; that compressed data unpack; and how much of the file nothing
/// refers to.
///
/// # Errors
/// Those of [`open`](crate::open): the image is damaged, not only untidy.
pub fn check_image(
    path: &Path,
    options: &OpenOptions,
    cancel: &AtomicBool,
) -> Result<Soundness, Error> {
    let never = AtomicBool::new(false);
    let cancel = Cancel { wish: cancel, failed: &never };
    let (format, opened) = open_image(path, options)?;
    let mut soundness =
        Soundness { format, problems: opened.problems.clone(), leaked: opened.unused };
    match format {
        Format::Qcow2 => {
            // Low refcounts were refused at opening, but for those of a dirty image.
            let report = check_refcounts(path)?;
            if report.dirty {
                soundness.problems.push(format!(
                    "it is marked as dirty, its last user did not close it: {} clusters are used more \
                     often than their refcounts say",
                    report.too_low
                ));
            }
            soundness.leaked = report.leaked.map(|clusters| clusters * report.cluster_size);
        }
        Format::Ova => soundness.problems.extend(ova::check(&ImageFile::open(path)?, cancel)?),
        _ => {}
    }
    if matches!(format, Format::Qcow2 | Format::Vmdk | Format::Ova) {
        cancel.check()?;
        digest(&*opened.disk)?;
    }
    Ok(soundness)
}
