//! The encoder of fixed VHDs: the disk as it is, zeroes as holes of the file, and a footer.
//!
//! Azure takes only whole mebibytes, so the size is rounded up to them.

use super::{FIXED, FOOTER_LEN, Footer, MAX_SIZE, SECTOR, geometry};
use crate::chunk::Chunk;
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};

const MIB: u64 = 1 << 20;

/// Writes a fixed VHD image.
pub(crate) struct FixedEncoder {
    size: u64,
}

impl FixedEncoder {
    pub(crate) fn plan(disk: &DiskInfo) -> Result<FixedEncoder, String> {
        let size = disk.virtual_size;
        if size == 0 || size > MAX_SIZE {
            return Err(format!("{size} bytes are not between 1 byte and 2040 GiB"));
        }
        Ok(FixedEncoder { size: round_up(size, MIB) })
    }
}

impl Encoder for FixedEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, _output: &Output, parts: &mut Parts) -> Result<(), Error> {
        for run in chunk.runs() {
            parts.put(run.clone(), chunk.offset() + run.start as u64);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        let footer = Footer {
            data_offset: u64::MAX,
            time: super::time(identity),
            creator: *b"win ",
            size: self.size,
            geometry: geometry(self.size / SECTOR),
            kind: FIXED,
            uuid: identity.image_uuid("vhd"),
        };
        output.write_at(&footer.encode(), self.size)?;
        output.set_len(self.size + FOOTER_LEN as u64)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
