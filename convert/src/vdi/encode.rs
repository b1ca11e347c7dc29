//! The VDI encoder: 1 MiB blocks, data aligned to 1 MiB. In a dynamic image blocks of zeroes are
//! unallocated; in a fixed one every block has its place, and those of zeroes are holes of the file.

use super::{BLOCK, DYNAMIC, FIXED, FREE, HEADER_LEN, Header, MAX_BLOCKS, VdiOptions};
use crate::chunk::{CHUNK, Chunk};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};
use crate::table::{Order, TableWriter};

// A chunk is a block.
const _: () = assert!(BLOCK == CHUNK as u64);

/// Writes a VDI image.
pub(crate) struct VdiEncoder {
    size: u64,
    blocks: u64,
    data: u64,
    allocated: u64,
    fixed: bool,
    map: TableWriter,
}

impl VdiEncoder {
    pub(crate) fn plan(disk: &DiskInfo, options: &VdiOptions) -> Result<VdiEncoder, String> {
        let size = round_up(disk.virtual_size, 512);
        let blocks = size.div_ceil(BLOCK);
        if blocks == 0 || blocks > MAX_BLOCKS {
            return Err(format!("{size} bytes are not between 1 and {} bytes", MAX_BLOCKS * BLOCK));
        }
        Ok(VdiEncoder {
            size,
            blocks,
            data: round_up(HEADER_LEN as u64 + blocks * 4, BLOCK),
            allocated: 0,
            fixed: options.fixed,
            map: TableWriter::new(&[HEADER_LEN as u64], blocks, FREE, Order::Little),
        })
    }
}

impl VdiEncoder {
    /// Gives every block before `end` the place that is its number.
    fn place_up_to(&mut self, end: u64, output: &Output) -> Result<(), Error> {
        while self.allocated < end {
            self.map.set(self.allocated, self.allocated as u32, output)?;
            self.allocated += 1;
        }
        Ok(())
    }
}

impl Encoder for VdiEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
        let block = chunk.offset() / BLOCK;
        if self.fixed {
            self.place_up_to(block + 1, output)?;
        } else {
            self.map.set(block, self.allocated as u32, output)?;
            self.allocated += 1;
        }
        let index = if self.fixed { block } else { self.allocated - 1 };
        let place = self.data + index * BLOCK;
        for run in chunk.runs() {
            parts.put(run.clone(), place + run.start as u64);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        if self.fixed {
            self.place_up_to(self.blocks, output)?;
        }
        self.map.finish(output)?;
        let header = Header {
            kind: if self.fixed { FIXED } else { DYNAMIC },
            map_offset: HEADER_LEN as u32,
            data_offset: self.data as u32,
            disk_size: self.size,
            block_size: BLOCK as u32,
            block_extra: 0,
            blocks: self.blocks as u32,
            allocated: self.allocated as u32,
            uuid: identity.image_uuid("vdi image"),
            modification_uuid: identity.uuid("vdi modification"),
            link_uuid: [0; 16],
            parent_uuid: [0; 16],
        };
        output.write_at(&header.encode(), 0)?;
        output.set_len(self.data + self.allocated * BLOCK)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
