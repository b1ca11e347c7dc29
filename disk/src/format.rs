//! The image formats this crate reads, and telling them apart.
//!
//! Probing is done once, on a file that no guest has written yet, and its answer is then pinned:
//! a guest that owns a raw disk can write any magic number into its first sector.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// Returns the name used in profiles, on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no format known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown disk format \"{0}\", expected raw or qcow2")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

/// Tells the format of the file at `path` by its magic number; what has none is raw.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when the file is clearly of another format, so that it is not taken
/// for a raw disk; otherwise what opening and reading met.
pub fn probe(path: &Path) -> Result<Format, Error> {
    probe_file(&HostFile::open(path, false)?)
}

pub(crate) fn probe_file(file: &HostFile) -> Result<Format, Error> {
    let mut start = [0; 512];
    let start = file.read_prefix(&mut start)?;
    let starts_with = |magic: &[u8]| start.starts_with(magic);
    let foreign = if starts_with(b"QFI\xfb") {
        match start.get(4..8) {
            Some([0, 0, 0, 1]) => "qcow (version 1)",
            _ => return Ok(Format::Qcow2),
        }
    } else if starts_with(b"KDMV") || starts_with(b"COWD") || starts_with(b"# Disk DescriptorFile")
    {
        "vmdk"
    } else if starts_with(b"vhdxfile") {
        "vhdx"
    } else if starts_with(b"conectix") || ends_with_vhd_footer(file)? {
        "vhd"
    } else if start.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        "vdi"
    } else if starts_with(b"QED\0") {
        "qed"
    } else {
        return Ok(Format::Raw);
    };
    Err(Error::new(ErrorKind::Unsupported, "open")
        .on(file.path())
        .because(format!("it looks like a {foreign} image, and only raw and qcow2 are read here"))
        .with_hint(
            "Convert it to qcow2 first, or give format = \"raw\" if it is a raw disk after all",
        ))
}

/// A fixed-size VHD is a raw disk with a footer behind it.
fn ends_with_vhd_footer(file: &HostFile) -> Result<bool, Error> {
    let Some(footer) = file.len().checked_sub(512) else {
        return Ok(false);
    };
    let mut cookie = [0; 8];
    file.read_exact_at(&mut cookie, footer)?;
    Ok(&cookie == b"conectix")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe_bytes(bytes: &[u8]) -> Result<Format, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        probe(file.path())
    }

    #[test]
    fn formats_are_told_by_their_magic() {
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        let mut fixed_vhd = vec![0; 4096];
        fixed_vhd[4096 - 512..4096 - 504].copy_from_slice(b"conectix");
        let cases: [(&str, &[u8], Option<Format>); 9] = [
            ("empty", b"", Some(Format::Raw)),
            ("zeroes", &[0; 4096], Some(Format::Raw)),
            ("qcow2", b"QFI\xfb\0\0\0\x03", Some(Format::Qcow2)),
            ("qcow", b"QFI\xfb\0\0\0\x01", None),
            ("vmdk", b"KDMV\x01\0\0\0", None),
            ("vmdk text", b"# Disk DescriptorFile\n", None),
            ("vhdx", b"vhdxfile", None),
            ("vdi", &vdi, None),
            ("fixed vhd", &fixed_vhd, None),
        ];
        for (name, bytes, expected) in cases {
            match (probe_bytes(bytes), expected) {
                (Ok(format), Some(expected)) => assert_eq!(format, expected, "{name}"),
                (Err(error), None) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
                    assert!(error.hint().is_some(), "{name}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for format in [Format::Raw, Format::Qcow2] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!(
            "vdi".parse::<Format>().unwrap_err().to_string(),
            "Unknown disk format \"vdi\", expected raw or qcow2"
        );
    }
}
