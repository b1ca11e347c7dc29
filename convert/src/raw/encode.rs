//! The raw encoder.

use crate::chunk::Chunk;
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};

/// Writes a sparse file of exactly the disk's size.
pub(super) struct RawEncoder {
    size: u64,
}

impl RawEncoder {
    pub(super) fn plan(disk: &DiskInfo) -> RawEncoder {
        RawEncoder { size: disk.virtual_size }
    }
}

impl Encoder for RawEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, _output: &Output, parts: &mut Parts) -> Result<(), Error> {
        for run in chunk.runs() {
            let at = chunk.offset() + run.start as u64;
            parts.put(run.start..run.end.min(chunk.len()), at);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        _identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        output.set_len(self.size)
    }
}
