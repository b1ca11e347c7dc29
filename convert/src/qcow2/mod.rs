//! qcow2 version 3 (QEMU's `docs/interop/qcow2.rst`). Reading is `kvmbake_disk`'s.

mod base;
mod bitmaps;
mod compressed;
mod encode;
mod layout;
mod options;

use std::path::Path;

use kvmbake_disk::Error;

use crate::detail::Details;
use crate::encode::{DiskInfo, Encoder};
use crate::error::corrupt;
use crate::export::Target;
use crate::format::Format;
use crate::image::{self, OpenOptions};
use crate::mapped::ImageFile;

pub use options::{Compression, Qcow2Options};

/// The first four bytes.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;
const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
const AUTOCLEAR_BITMAPS: u64 = 1;

/// The longest name that the format allows for a backing file.
const MAX_BACKING_NAME: u32 = 1023;

/// Returns the encoder that the options ask for.
pub(crate) fn plan(
    disk: &DiskInfo,
    target: &Target,
    options: &Qcow2Options,
) -> Result<Box<dyn Encoder>, crate::Error> {
    let refused =
        |reason| crate::Error::Refused { path: target.path.clone(), format: Format::Qcow2, reason };
    let base = match (&options.backing_file, options.backing_format) {
        (Some(name), Some(format)) => {
            let folder = target.path.parent().unwrap_or(Path::new(""));
            let allow_backing = target.allow_backing.clone();
            let open = OpenOptions { format: Some(format), allow_backing, scratch: None };
            Some(base::Base::new(image::open(&folder.join(name), &open)?, options.cluster_size))
        }
        _ => None,
    };
    if options.compressed {
        let encoder = compressed::CompressedEncoder::plan(disk, options, base).map_err(refused)?;
        return Ok(Box::new(encoder));
    }
    let encoder = encode::Qcow2Encoder::plan(disk, options, base).map_err(refused)?;
    Ok(Box::new(encoder))
}

/// The files that an image names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The backing file and its format.
    pub(crate) backing: Option<(String, Option<String>)>,
    pub(crate) data_file: Option<String>,
    /// The persistent bitmaps, which no other image takes over.
    bitmaps: Option<bitmaps::Extension>,
}

/// The header of an image that `kvmbake_disk` has opened, as far as there is something to tell.
struct Header {
    bytes: Vec<u8>,
}

impl Header {
    fn read(image: &ImageFile) -> Result<Header, Error> {
        let mut bytes = vec![0; 112];
        let len = image.len.min(112) as usize;
        image.read(&mut bytes[..len], 0)?;
        if bytes[..4] != MAGIC {
            return Err(corrupt(&image.path, "it has no qcow2 magic number"));
        }
        let header = Header { bytes };
        // The extensions and the backing file's name follow in the first cluster.
        let cluster = 1u64.checked_shl(header.word(20)).unwrap_or(0).clamp(512, 2 << 20);
        let mut bytes = vec![0; cluster.min(image.len).max(112) as usize];
        let len = image.len.min(bytes.len() as u64) as usize;
        image.read(&mut bytes[..len], 0)?;
        Ok(Header { bytes })
    }

    fn word(&self, at: usize) -> u32 {
        self.bytes
            .get(at..at + 4)
            .map_or(0, |word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }

    fn names(&self) -> Names {
        let text = |at: usize, len: usize| {
            let bytes = self.bytes.get(at..at.checked_add(len)?)?;
            String::from_utf8(bytes.to_vec()).ok()
        };
        let mut names = Names::default();
        let (mut format, mut at) = (None, 72);
        if self.word(4) >= 3 {
            at = self.word(100) as usize;
        }
        while at.saturating_add(8) <= self.bytes.len() {
            let (kind, len) = (self.word(at), self.word(at + 4) as usize);
            match kind {
                0 => break,
                BACKING_FORMAT => format = text(at + 8, len),
                DATA_FILE => names.data_file = text(at + 8, len),
                BITMAPS => {
                    names.bitmaps = Some(bitmaps::Extension {
                        count: self.word(at + 8),
                        directory_len: self.long(at + 16),
                        directory: self.long(at + 24),
                        is_current: self.long(88) & AUTOCLEAR_BITMAPS != 0,
                    });
                }
                _ => {}
            }
            at = at.saturating_add(8).saturating_add(len.next_multiple_of(8));
        }
        if self.word(4) < 3 || self.long(72) & INCOMPATIBLE_DATA_FILE == 0 {
            names.data_file = None;
        }
        let (at, len) = (self.long(8), self.word(16));
        if at != 0 && len <= MAX_BACKING_NAME {
            let name = usize::try_from(at).ok().and_then(|at| text(at, len as usize));
            names.backing = name.map(|name| (name, format));
        }
        names
    }
}

/// Returns the files that an image names.
pub(crate) fn names(image: &ImageFile) -> Result<Names, Error> {
    Ok(Header::read(image)?.names())
}

/// Returns whether a file is an image that is marked as dirty.
pub(crate) fn is_dirty(image: &ImageFile) -> Result<bool, Error> {
    let mut start = [0; 80];
    if image.len < start.len() as u64 {
        return Ok(false);
    }
    image.read(&mut start, 0)?;
    let header = Header { bytes: start.to_vec() };
    Ok(start[..4] == MAGIC && header.word(4) >= 3 && header.long(72) & INCOMPATIBLE_DIRTY != 0)
}

/// Returns what the header of an image tells that `kvmbake_disk` has opened.
pub(crate) fn details(image: &ImageFile) -> Result<Details, Error> {
    let header = Header::read(image)?;
    let version = header.word(4);
    let mut details = vec![
        ("version", version.into()),
        ("cluster size", 1u64.checked_shl(header.word(20)).unwrap_or(0).into()),
        ("internal snapshots", header.word(60).into()),
    ];
    if version >= 3 {
        let bits = 1u64.checked_shl(header.word(96)).unwrap_or(0);
        details.push(("refcount bits", bits.into()));
        let zstd = header.word(100) > 104 && header.bytes[104] == 1;
        details.push(("compression", if zstd { "zstd" } else { "zlib" }.into()));
        details.push(("lazy refcounts", (header.long(80) & 1 != 0).into()));
        details.push(("extended L2", (header.long(72) & EXTENDED_L2 != 0).into()));
    }
    let names = header.names();
    if let Some(bitmaps) = names.bitmaps.filter(|bitmaps| bitmaps.count > 0) {
        details.push(("bitmaps", bitmaps::list(image, &bitmaps).into()));
    }
    if let Some((name, format)) = names.backing {
        details.push(("backing file", name.into()));
        details.push(("backing format", format.unwrap_or_default().into()));
    }
    if let Some(name) = names.data_file {
        details.push(("data file", name.into()));
    }
    Ok(details)
}
