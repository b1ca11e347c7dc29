//! The encoder of monolithicFlat VMDKs: a descriptor of its own, and beside it the disk as it is,
//! zeroes as holes of the file.

use super::{SECTOR, VmdkOptions, descriptor};
use crate::chunk::Chunk;
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::{Error, invalid};
use crate::export::Target;
use crate::output::{Cancel, Output, Parts};
use std::path::PathBuf;

/// Writes a VMDK image in two files.
pub(crate) struct FlatEncoder {
    options: VmdkOptions,
    sectors: u64,
    /// The name of the second file, and its place.
    name: String,
    path: PathBuf,
}

impl FlatEncoder {
    pub(crate) fn plan(
        disk: &DiskInfo,
        target: &Target,
        options: &VmdkOptions,
    ) -> Result<FlatEncoder, String> {
        let name = super::extent_name(&target.name, options)
            .ok_or_else(|| "it is not in two files".to_owned())?;
        descriptor::check_name(&name)?;
        Ok(FlatEncoder {
            options: options.clone(),
            sectors: super::capacity(disk)?,
            path: target.path.with_file_name(&name),
            name,
        })
    }
}

impl Encoder for FlatEncoder {
    fn virtual_size(&self) -> u64 {
        self.sectors * SECTOR
    }

    fn extent(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn write(&mut self, chunk: &Chunk, _output: &Output, parts: &mut Parts) -> Result<(), Error> {
        for run in chunk.runs() {
            let end = run.end.min(chunk.len().next_multiple_of(SECTOR as usize));
            parts.put(run.start..end, chunk.offset() + run.start as u64);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        let extent = output.extent().ok_or_else(|| invalid(&self.path, "it was not created"))?;
        extent.set_len(self.virtual_size())?;
        let text = descriptor::encode(
            &descriptor::Image {
                create_type: self.options.kind().name(),
                extent: format!("FLAT \"{}\" 0", self.name),
                sectors: self.sectors,
                options: &self.options,
            },
            identity,
        );
        output.write_at(text.as_bytes(), 0)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
