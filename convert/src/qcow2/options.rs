//! What a caller may choose about a qcow2 image.

use crate::format::Format;
use crate::options::{Fault, number, power_of_two};

const KEYS: &[&str] =
    &["cluster_size", "compression_type", "level", "backing_file", "backing_fmt", "compat"];

/// How the clusters of a compressed image are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Deflate, which every reader knows.
    #[default]
    Zlib,
    /// Zstandard: faster and smaller, for QEMU 5.1 and later.
    Zstd,
}

/// How to write a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Whether the clusters are compressed.
    pub compressed: bool,
    /// How, if they are.
    pub compression: Compression,
    /// The level: 1 to 9 for zlib, 1 to 22 for Zstandard; its usual one when absent.
    pub level: Option<u8>,
    /// An image of which only the differences are stored: its name as it will stand in the
    /// image, relative to the image's folder.
    pub backing_file: Option<String>,
    /// The format of `backing_file`: qcow2 or raw.
    pub backing_format: Option<Format>,
}

impl Default for Qcow2Options {
    fn default() -> Qcow2Options {
        Qcow2Options {
            cluster_size: 64 << 10,
            compressed: false,
            compression: Compression::Zlib,
            level: None,
            backing_file: None,
            backing_format: None,
        }
    }
}

impl Qcow2Options {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "cluster_size" => {
                let what = "a power of two from 512 to 2M";
                self.cluster_size = power_of_two(value, 512..=2 << 20, what)?;
            }
            "compression_type" => {
                self.compression = match value {
                    "zlib" => Compression::Zlib,
                    "zstd" => Compression::Zstd,
                    _ => return Err(Fault::Expected("zlib or zstd")),
                }
            }
            "level" => self.level = Some(number(value, 1..=22, "1 to 9, with zstd up to 22")?),
            "backing_file" if !value.is_empty() => self.backing_file = Some(value.to_owned()),
            "backing_fmt" => {
                self.backing_format = match value {
                    "qcow2" => Some(Format::Qcow2),
                    "raw" => Some(Format::Raw),
                    _ => return Err(Fault::Expected("qcow2 or raw")),
                }
            }
            "compat" if ["1.1", "v3"].contains(&value) => {}
            "compat" => return Err(Fault::Expected("1.1")),
            _ => return Err(Fault::Unknown(KEYS)),
        }
        Ok(())
    }

    /// Returns the option that does not go with the others, its value, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String, Fault)> {
        if let (Compression::Zlib, Some(level @ 10..)) = (self.compression, self.level) {
            let fault = Fault::Expected("1 to 9 with zlib");
            return Err(("level", level.to_string(), fault));
        }
        match (&self.backing_file, self.backing_format) {
            (Some(_), None) => Err(("backing_file", String::new(), Fault::Needs("backing_fmt"))),
            (None, Some(_)) => Err(("backing_fmt", String::new(), Fault::Needs("backing_file"))),
            _ => Ok(()),
        }
    }
}
