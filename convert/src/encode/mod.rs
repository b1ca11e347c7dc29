//! What every encoder is: planned before anything is written, fed in order, finished once.

use crate::chunk::Chunk;
use crate::digest::DiskDigest;
use crate::error::Error;
use crate::export::Target;
use crate::format::Format;
use crate::output::Output;
use crate::{qcow2, raw, vdi, vhd, vmdk};

/// What an encoder may know of the disk before it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskInfo {
    /// Virtual size in bytes.
    pub(crate) virtual_size: u64,
    /// Upper bound of the 64 KiB units that hold data.
    pub(crate) data_units: u64,
}

/// Writes one image.
///
/// Planning (each encoder's constructor) refuses what the format cannot hold before a file is
/// created. The chunks then come in ascending order, none of them all zeroes; `finish` writes
/// what is known only at the end and leaves the file with its final length.
pub(crate) trait Encoder: Send {
    /// Returns the virtual size that the image will have: the disk's, rounded up where the
    /// format counts in larger units, never down.
    fn virtual_size(&self) -> u64;

    /// Stores a chunk.
    fn write(&mut self, chunk: &Chunk, output: &Output) -> Result<(), Error>;

    /// Completes the image.
    fn finish(&mut self, identity: &Identity, output: &Output) -> Result<(), Error>;

    /// Returns whether [`Encoder::finish`] uses its identity.
    fn needs_identity(&self) -> bool {
        false
    }
}

/// Returns the encoder for the target, or why the format cannot hold the disk.
pub(crate) fn plan(target: &Target, disk: &DiskInfo) -> Result<Box<dyn Encoder>, Error> {
    let planned: Result<Box<dyn Encoder>, String> = match target.format {
        Format::Qcow2 => qcow2::Qcow2Encoder::plan(disk).map(|encoder| Box::new(encoder) as _),
        Format::Raw => Ok(Box::new(raw::RawEncoder::plan(disk))),
        Format::Vdi => vdi::VdiEncoder::plan(disk).map(|encoder| Box::new(encoder) as _),
        Format::Vhd => vhd::VhdEncoder::plan(disk).map(|encoder| Box::new(encoder) as _),
        Format::Vmdk => {
            vmdk::VmdkEncoder::plan(disk, &target.name).map(|encoder| Box::new(encoder) as _)
        }
    };
    planned.map_err(|reason| Error::Refused {
        path: target.path.clone(),
        format: target.format,
        reason,
    })
}

/// Where an image's identifiers come from: the content, so that equal disks give equal bytes.
pub(crate) struct Identity(DiskDigest);

impl Identity {
    pub(crate) fn of(digest: DiskDigest) -> Identity {
        Identity(digest)
    }

    /// Returns a version 8 UUID (RFC 9562, section 5.8) for the given use.
    pub(crate) fn uuid(&self, purpose: &str) -> [u8; 16] {
        let mut uuid = self.bytes(purpose);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    /// Returns 16 bytes for the given use.
    pub(crate) fn bytes<const N: usize>(&self, purpose: &str) -> [u8; N] {
        let mut hasher = blake3::Hasher::new_keyed(self.0.as_bytes());
        hasher.update(purpose.as_bytes());
        let mut bytes = [0; N];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }
}

/// Rounds up to a multiple of `unit`, for sizes far from overflow.
pub(crate) fn round_up(value: u64, unit: u64) -> u64 {
    value.div_ceil(unit) * unit
}
