//! What a caller may choose about a raw image.

use super::Packing;
use crate::options::{Fault, number};

const KEYS: &[&str] = &["compression", "level"];

/// How to write a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawOptions {
    /// How the file is compressed as a whole, if it is.
    pub packing: Option<Packing>,
    /// The level: 1 to 9, for Zstandard to 22; the usual one when absent. Nothing without packing.
    pub level: Option<u8>,
}

impl RawOptions {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "compression" => {
                self.packing = match value {
                    "none" => None,
                    "gzip" => Some(Packing::Gzip),
                    "xz" => Some(Packing::Xz),
                    "bzip2" => Some(Packing::Bzip2),
                    "zstd" => Some(Packing::Zstd),
                    _ => return Err(Fault::Expected("gzip, xz, bzip2, zstd or none")),
                }
            }
            "level" => self.level = Some(number(value, 1..=22, "1 to 9, with zstd up to 22")?),
            _ => return Err(Fault::Unknown(KEYS)),
        }
        Ok(())
    }

    /// Returns the option that does not go with the others, its value, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String, Fault)> {
        match (self.packing, self.level) {
            (Some(packing), Some(level @ 10..)) if packing != Packing::Zstd => {
                let fault = Fault::Expected("1 to 9, and more only with zstd");
                Err(("level", level.to_string(), fault))
            }
            _ => Ok(()),
        }
    }
}
