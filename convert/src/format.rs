//! The names of the image formats.

use std::fmt;
use std::str::FromStr;

/// An image format that this crate reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// QEMU's qcow2; written as version 3.
    Qcow2,
    /// The bytes of the disk, holes kept sparse.
    Raw,
    /// VirtualBox' VDI 1.1.
    Vdi,
    /// Microsoft's VHD (QEMU's "vpc").
    Vhd,
    /// Microsoft's VHDX.
    Vhdx,
    /// VMware's VMDK.
    Vmdk,
    /// A DMTF appliance: an OVF descriptor, a VMDK and a manifest in one archive.
    Ova,
}

impl Format {
    /// Every format, in the order in which messages list them.
    pub const ALL: [Format; 7] = [
        Format::Qcow2,
        Format::Raw,
        Format::Vdi,
        Format::Vhd,
        Format::Vhdx,
        Format::Vmdk,
        Format::Ova,
    ];

    /// Returns the name as profiles and command lines write it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
            Format::Vdi => "vdi",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Vmdk => "vmdk",
            Format::Ova => "ova",
        }
    }

    /// Returns the usual extension of file names, without the dot.
    pub fn extension(self) -> &'static str {
        self.name()
    }

    /// Returns the format that a file name's extension stands for.
    pub fn from_extension(extension: &str) -> Option<Format> {
        match extension.to_ascii_lowercase().as_str() {
            "img" | "dd" => Some(Format::Raw),
            "vpc" => Some(Format::Vhd),
            other => Format::ALL.into_iter().find(|format| format.extension() == other),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not one of [`Format::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown image format {0:?}; known are qcow2, raw, vdi, vhd (vpc), vhdx, vmdk, ova")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        match name {
            "vpc" => Ok(Format::Vhd),
            _ => Format::ALL
                .into_iter()
                .find(|format| format.name() == name)
                .ok_or_else(|| UnknownFormat(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_vpc_is_vhd() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(Format::from_extension(format.extension()), Some(format));
        }
        assert_eq!("vpc".parse(), Ok(Format::Vhd));
        assert_eq!(Format::from_extension("IMG"), Some(Format::Raw));
        assert!("qcow".parse::<Format>().unwrap_err().to_string().contains("qcow2"));
    }
}
