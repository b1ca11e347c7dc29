//! qcow2 version 3 (QEMU's `docs/interop/qcow2.txt`). Reading is `kvmbake_disk`'s.

mod encode;

use kvmbake_disk::Error;

use crate::mapped::ImageFile;

pub(crate) use encode::Qcow2Encoder;

/// The first four bytes.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The longest name that the format allows for a backing file.
const MAX_BACKING_NAME: u32 = 1023;

/// Returns what the header of an image tells that `kvmbake_disk` has opened.
pub(crate) fn details(image: &ImageFile) -> Result<Vec<(&'static str, String)>, Error> {
    let mut header = [0; 112];
    let len = image.len.min(header.len() as u64) as usize;
    image.read(&mut header[..len], 0)?;
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let version = word(4);
    let mut details = vec![
        ("version", version.to_string()),
        ("cluster size", 1u64.checked_shl(word(20)).unwrap_or(0).to_string()),
        ("internal snapshots", word(60).to_string()),
    ];
    if version >= 3 {
        details.push(("refcount bits", 1u64.checked_shl(word(96)).unwrap_or(0).to_string()));
        let zstd = word(100) > 104 && header[104] == 1;
        details.push(("compression", if zstd { "zstd" } else { "zlib" }.to_owned()));
        details.push(("lazy refcounts", (long(80) & 1 != 0).to_string()));
    }
    let (at, len) = (long(8), word(16));
    if at != 0 && len <= MAX_BACKING_NAME {
        image.check_inside(at, u64::from(len), "the backing file's name")?;
        let mut name = vec![0; len as usize];
        image.read(&mut name, at)?;
        details.push(("backing file", String::from_utf8_lossy(&name).escape_debug().to_string()));
    }
    Ok(details)
}
