//! What every encoder is: planned before anything is written, fed in order, finished once.

use std::path::PathBuf;

use crate::chunk::Chunk;
use crate::compress::{Packing, Packs};
use crate::error::Error;
use crate::export::Target;
use crate::fingerprint::Fingerprint;
use crate::options::Encoding;
use crate::output::{Cancel, Output, Parts};
use crate::{ova, qcow2, raw, vdi, vhd, vhdx, vmdk};

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

    /// Returns where a second file goes that the image needs beside its own, and names.
    fn extent(&self) -> Option<PathBuf> {
        None
    }

    /// Returns how the disk's units are to be packed before they come, for an encoder that
    /// compresses.
    fn packing(&self) -> Option<Packing> {
        None
    }

    /// Gives the chunk's data their places: writes what it must of the tables, and leaves the data
    /// to the caller as `parts`. Quick, for no other chunk can be placed meanwhile. Not called where
    /// there is a packing.
    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
        let _ = (chunk, output, parts);
        Ok(())
    }

    /// Stores packed units; called where there is a packing, in place of [`Encoder::write`].
    fn write_packed(&mut self, packs: &Packs, output: &Output) -> Result<(), Error> {
        let _ = (packs, output);
        Ok(())
    }

    /// Completes the image; looks at `cancel` where that takes long.
    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        cancel: Cancel<'_>,
    ) -> Result<(), Error>;

    /// Returns whether [`Encoder::finish`] uses its identity.
    fn needs_identity(&self) -> bool {
        false
    }
}

/// Returns the encoder for the target, or why the format cannot hold the disk.
pub(crate) fn plan(target: &Target, disk: &DiskInfo) -> Result<Box<dyn Encoder>, Error> {
    fn boxed(encoder: impl Encoder + 'static) -> Box<dyn Encoder> {
        Box::new(encoder)
    }
    let refused =
        |reason| Error::Refused { path: target.path.clone(), format: target.format(), reason };
    target.encoding.check().map_err(|error| refused(error.to_string()))?;
    match &target.encoding {
        Encoding::Qcow2(options) => return qcow2::plan(disk, target, options),
        Encoding::Raw(options) => raw::plan(disk, options),
        Encoding::Vdi(options) => vdi::VdiEncoder::plan(disk, options).map(boxed),
        Encoding::Vhd(options) => vhd::plan(disk, options),
        Encoding::Vhdx(options) => vhdx::VhdxEncoder::plan(disk, options).map(boxed),
        Encoding::Vmdk(options) => vmdk::plan(disk, target, options),
        Encoding::Ova(options) => ova::OvaEncoder::plan(disk, target, options).map(boxed),
    }
    .map_err(refused)
}

/// Where an image's identifiers and times come from: the content, so that equal disks give equal
/// bytes, unless the caller states them.
pub(crate) struct Identity {
    fingerprint: Fingerprint,
    uuid: Option<[u8; 16]>,
    /// Seconds since 1970.
    time: Option<u64>,
}

impl Identity {
    pub(crate) fn new(fingerprint: Fingerprint, target: &Target) -> Identity {
        Identity { fingerprint, uuid: target.uuid, time: target.time }
    }

    /// Returns the identifier of the image itself: the caller's or, for the given use, a derived
    /// one.
    pub(crate) fn image_uuid(&self, purpose: &str) -> [u8; 16] {
        self.uuid.unwrap_or_else(|| self.uuid(purpose))
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
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.fingerprint.as_bytes());
        hasher.update(purpose.as_bytes());
        let mut bytes = [0; N];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Returns the time that the image states, in seconds since 1970, where the caller gave one.
    pub(crate) fn time(&self) -> Option<u64> {
        self.time
    }
}

/// Returns a UUID in its usual form.
pub(crate) fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Rounds up to a multiple of `unit`, for sizes far from overflow.
pub(crate) fn round_up(value: u64, unit: u64) -> u64 {
    value.div_ceil(unit) * unit
}
