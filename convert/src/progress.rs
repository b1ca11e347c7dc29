//! How a long export tells where it stands.

use std::fmt;

/// A part of an export with its own total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Reading the source and writing the images; the total is the source's data, not its holes.
    Write,
    /// Re-reading the images: comparing them with the disk and taking their checksums.
    Verify,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Write => "write",
            Stage::Verify => "verify",
        })
    }
}

/// Receives progress, from several threads at once; must return quickly.
pub trait Progress: Send + Sync {
    /// A stage begins; `total_bytes` is an upper bound of what [`Progress::advanced`] will add up to.
    fn started(&self, stage: Stage, total_bytes: u64);
    /// `bytes` more of the running stage are done.
    fn advanced(&self, bytes: u64);
    /// The stage is done. Not called when it fails.
    fn finished(&self, stage: Stage) {
        let _ = stage;
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _stage: Stage, _total_bytes: u64) {}
    fn advanced(&self, _bytes: u64) {}
}
