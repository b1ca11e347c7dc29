//! The VHD encoder: dynamic, 2 MiB blocks, blocks of zeroes unallocated.
//!
//! Every bit of an allocated block's bitmap is set, as QEMU does, so that readers which look at
//! it and readers which do not see the same.

use super::{
    BITMAP, BLOCK, DYNAMIC, DynamicHeader, FOOTER_LEN, FREE, Footer, HEADER_LEN, MAX_SIZE, SECTOR,
    geometry,
};
use crate::chunk::{CHUNK, Chunk};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};
use crate::table::{Order, TableWriter};

const TABLE: u64 = (FOOTER_LEN + HEADER_LEN) as u64;

// A chunk lies in one block, and the bitmap of a block fills whole sectors.
const _: () = assert!(BLOCK.is_multiple_of(CHUNK as u64) && BITMAP.is_multiple_of(SECTOR));

/// Writes a VHD image.
pub(crate) struct VhdEncoder {
    size: u64,
    entries: u64,
    table: TableWriter,
    /// Where the next block goes, and the block being filled with where its data begins.
    next: u64,
    current: Option<(u64, u64)>,
}

impl VhdEncoder {
    pub(crate) fn plan(disk: &DiskInfo) -> Result<VhdEncoder, String> {
        let size = round_up(disk.virtual_size, SECTOR);
        if size == 0 || size > MAX_SIZE {
            return Err(format!("{size} bytes are not between 1 byte and 2040 GiB"));
        }
        let entries = size.div_ceil(BLOCK);
        // The table's last sector is filled up with free entries.
        let slots = round_up(entries * 4, SECTOR) / 4;
        Ok(VhdEncoder {
            size,
            entries,
            table: TableWriter::new(&[TABLE], slots, FREE, Order::Big),
            next: TABLE + slots * 4,
            current: None,
        })
    }
}

impl Encoder for VhdEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
        let block = chunk.offset() / BLOCK;
        let data = match self.current {
            Some((current, data)) if current == block => data,
            _ => {
                self.table.set(block, (self.next / SECTOR) as u32, output)?;
                output.write_at(&[0xff; BITMAP as usize], self.next)?;
                let data = self.next + BITMAP;
                self.next = data + BLOCK;
                self.current = Some((block, data));
                data
            }
        };
        let place = data + chunk.offset() % BLOCK;
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
        self.table.finish(output)?;
        let footer = Footer {
            data_offset: FOOTER_LEN as u64,
            time: super::time(identity),
            creator: *b"win ",
            size: self.size,
            geometry: geometry(self.size / SECTOR),
            kind: DYNAMIC,
            uuid: identity.image_uuid("vhd"),
        };
        let header = DynamicHeader {
            table_offset: TABLE,
            entries: self.entries as u32,
            block_size: BLOCK as u32,
        };
        output.write_at(&footer.encode(), 0)?;
        output.write_at(&header.encode(), FOOTER_LEN as u64)?;
        output.write_at(&footer.encode(), self.next)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
