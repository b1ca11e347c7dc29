//! How large an image would be, without writing it: the encoder runs over the source's extents
//! and writes to nowhere. Extents may hold zeroes, so the result is an upper bound.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use kvmbake_disk::Block;

use crate::chunk::{CHUNK, Chunk, UNIT, next_extent};
use crate::encode::{DiskInfo, Identity, plan};
use crate::error::Error;
use crate::export::{Target, survey};
use crate::fingerprint::Fingerprint;
use crate::format::Format;
use crate::join::JoinedDisk;
use crate::options::Encoding;
use crate::output::{Cancel, Output, Parts};
use crate::vmdk::{Subformat, VmdkOptions};

/// The sizes of an image that would be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// The virtual size that it would state.
    pub virtual_size: u64,
    /// The length of its files, at most.
    pub required: u64,
    /// Their length if the whole disk held data.
    pub fully_allocated: u64,
}

/// Measures as [`measure`] does, for a disk of `size` bytes without data.
///
/// # Errors
/// The format cannot hold such a disk.
pub fn measure_empty(size: u64, encoding: &Encoding) -> Result<Measure, Error> {
    measure(&JoinedDisk::new(PathBuf::new(), vec![(size, None)]), encoding)
}

/// Measures the image that `encoding` would make of the disk. For compressed ones that is what
/// they could not exceed by much: the size without compression.
///
/// # Errors
/// The format cannot hold the disk, or reading the disk's extents failed.
pub fn measure(source: &dyn Block, encoding: &Encoding) -> Result<Measure, Error> {
    let never = AtomicBool::new(false);
    let cancel = Cancel { wish: &never, failed: &never };
    let plain = match encoding {
        Encoding::Qcow2(options) => {
            let mut options = options.clone();
            options.compressed = false;
            Encoding::Qcow2(options)
        }
        Encoding::Raw(_) => Encoding::from(Format::Raw),
        Encoding::Ova(_) => Encoding::Vmdk(VmdkOptions::default()),
        Encoding::Vmdk(options) if options.kind() == Subformat::StreamOptimized => {
            let subformat = Some(Subformat::MonolithicSparse);
            Encoding::Vmdk(VmdkOptions { subformat, ..options.clone() })
        }
        other => other.clone(),
    };
    let target = Target::new(plain, format!("measured.{}", encoding.format().extension()));
    // What cannot be written as asked is refused, compressed or not.
    let asked = Target { encoding: encoding.clone(), ..target.clone() };
    let disk = survey(source, cancel)?;
    plan(&asked, &disk)?;
    let (virtual_size, required) = run(source, &target, &disk, cancel, false)?;
    let full = DiskInfo { data_units: disk.virtual_size.div_ceil(UNIT as u64), ..disk };
    let (_, fully_allocated) = run(source, &target, &full, cancel, true)?;
    Ok(Measure { virtual_size, required, fully_allocated })
}

/// Checks that the target's format and options can hold a disk of this size, as far as that does
/// not depend on its content. Nothing is created.
///
/// # Errors
/// [`Error::Refused`]; that of opening the backing file of a qcow2 target.
pub fn check_fit(target: &Target, virtual_size: u64) -> Result<(), Error> {
    plan(target, &DiskInfo { virtual_size, data_units: 0 }).map(|_| ())
}

/// Feeds an encoder; returns the virtual size and the length of the files.
fn run(
    source: &dyn Block,
    target: &Target,
    disk: &DiskInfo,
    cancel: Cancel<'_>,
    full: bool,
) -> Result<(u64, u64), Error> {
    let mut encoder = plan(target, disk)?;
    let output = Output::nowhere(encoder.extent().is_some())?;
    let size = disk.virtual_size;
    let (mut chunk, mut parts) = (Chunk::ones(), Parts::default());
    let mut next = 0;
    while next < size {
        let base;
        if full {
            base = next;
            chunk.mark(base, size, 0..CHUNK);
        } else {
            let Some(first) = next_extent(source, next, size)? else { break };
            base = first.offset - first.offset % CHUNK as u64;
            chunk.mark(base, size, 0..0);
            let end = (base + CHUNK as u64).min(size);
            let mut extent = Some(first);
            while let Some(here) = extent {
                let stop = here.end().min(end);
                chunk.mark_more((here.offset - base) as usize..(stop - base) as usize);
                extent = next_extent(source, stop, end)?;
            }
        }
        encoder.write(&chunk, &output, &mut parts)?;
        parts.write(&chunk, &output, source)?;
        next = base + CHUNK as u64;
    }
    let identity = Identity::new(Fingerprint::default(), target);
    encoder.finish(&identity, &output, cancel)?;
    Ok((encoder.virtual_size(), output.reached()))
}
