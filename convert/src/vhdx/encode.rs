//! The VHDX encoder: dynamic, 512-byte logical and 4096-byte physical sectors, an empty log,
//! blocks of zeroes unallocated and zero pages within a block holes of the file.

use super::{
    BAT_REGION, FILE_PARAMETERS, FULLY_PRESENT, HEADER_LEN, HEADERS, ITEM_IS_REQUIRED,
    ITEM_IS_VIRTUAL_DISK, LOGICAL_SECTOR, MAGIC, MAX_SIZE, METADATA_REGION, MIB, PHYSICAL_SECTOR,
    REGION_TABLE_LEN, REGION_TABLES, REQUIRED_REGION, SECTOR, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
    VhdxOptions, chunk_ratio, entry_of, sealed,
};
use crate::chunk::Chunk;
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};
use crate::table::{Order, TableWriter};

/// Where the regions lie: one mebibyte for the log and for the metadata, then the BAT.
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;
/// Where the metadata items begin in their region.
const ITEMS: usize = 64 << 10;
/// Up to this disk size blocks are as short as can be.
const SHORT_BLOCKS: u64 = 1 << 40;

/// Writes a VHDX image.
pub(crate) struct VhdxEncoder {
    size: u64,
    block: u64,
    ratio: u64,
    bat_len: u64,
    /// The BAT as pairs of 32-bit words.
    bat: TableWriter,
    /// Where the next block goes, and the block being filled with its place.
    next: u64,
    current: Option<(u64, u64)>,
}

impl VhdxEncoder {
    pub(crate) fn plan(disk: &DiskInfo, options: &VhdxOptions) -> Result<VhdxEncoder, String> {
        let size = round_up(disk.virtual_size, SECTOR);
        if size == 0 || size > MAX_SIZE {
            return Err(format!("{size} bytes are not between 1 byte and 64 TiB"));
        }
        let block = options.block_size.unwrap_or_else(|| {
            (size.div_ceil(SHORT_BLOCKS).next_power_of_two() * MIB).min(256 * MIB)
        });
        let ratio = chunk_ratio(SECTOR, block);
        let entries = entry_of(size.div_ceil(block) - 1, ratio) + 1;
        let bat_len = round_up(entries * 8, MIB);
        Ok(VhdxEncoder {
            size,
            block,
            ratio,
            bat_len,
            bat: TableWriter::new(&[BAT], entries * 2, 0, Order::Little),
            next: BAT + bat_len,
            current: None,
        })
    }

    fn region_table(&self) -> [u8; REGION_TABLE_LEN] {
        let mut bytes = [0; REGION_TABLE_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"regi");
        put(8, &2u32.to_le_bytes());
        let regions = [(BAT_REGION, BAT, self.bat_len), (METADATA_REGION, METADATA, MIB)];
        for (index, (guid, offset, len)) in regions.into_iter().enumerate() {
            let at = 16 + index * 32;
            put(at, &guid);
            put(at + 16, &offset.to_le_bytes());
            put(at + 24, &(len as u32).to_le_bytes());
            put(at + 28, &REQUIRED_REGION.to_le_bytes());
        }
        sealed(bytes)
    }

    fn metadata(&self, identity: &Identity) -> Vec<u8> {
        let parameters = (self.block as u32).to_le_bytes().into_iter().chain([0; 4]).collect();
        let disk = ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
        let items: [([u8; 16], u32, Vec<u8>); 5] = [
            (FILE_PARAMETERS, ITEM_IS_REQUIRED, parameters),
            (VIRTUAL_DISK_SIZE, disk, self.size.to_le_bytes().to_vec()),
            (VIRTUAL_DISK_ID, disk, identity.image_uuid("vhdx disk").to_vec()),
            (LOGICAL_SECTOR, disk, (SECTOR as u32).to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, disk, 4096u32.to_le_bytes().to_vec()),
        ];
        let mut bytes = vec![0; ITEMS];
        bytes[..8].copy_from_slice(b"metadata");
        bytes[10..12].copy_from_slice(&(items.len() as u16).to_le_bytes());
        for (index, (guid, flags, value)) in items.iter().enumerate() {
            let entry = &mut bytes[32 + index * 32..64 + index * 32];
            entry[..16].copy_from_slice(guid);
            let (offset, len) = (ITEMS as u32 + index as u32 * 64, value.len() as u32);
            entry[16..20].copy_from_slice(&offset.to_le_bytes());
            entry[20..24].copy_from_slice(&len.to_le_bytes());
            entry[24..28].copy_from_slice(&flags.to_le_bytes());
        }
        for (_, _, value) in &items {
            let end = bytes.len() + 64;
            bytes.extend_from_slice(value);
            bytes.resize(end, 0);
        }
        bytes
    }
}

fn header(sequence: u64, identity: &Identity) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"head");
    put(8, &sequence.to_le_bytes());
    put(16, &identity.uuid("vhdx file write"));
    put(32, &identity.uuid("vhdx data write"));
    // The log's identifier at 48 stays 0: there is nothing to replay. So does its version.
    put(66, &1u16.to_le_bytes());
    put(68, &(MIB as u32).to_le_bytes());
    put(72, &LOG.to_le_bytes());
    sealed(bytes)
}

impl Encoder for VhdxEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
        let block = chunk.offset() / self.block;
        let place = match self.current {
            Some((current, place)) if current == block => place,
            _ => {
                let place = self.next;
                let entry = (place / MIB) << 20 | u64::from(FULLY_PRESENT);
                let index = entry_of(block, self.ratio) * 2;
                self.bat.set(index, entry as u32, output)?;
                self.bat.set(index + 1, (entry >> 32) as u32, output)?;
                self.next += self.block;
                self.current = Some((block, place));
                place
            }
        };
        let within = chunk.offset() % self.block;
        for run in chunk.runs() {
            parts.put(run.clone(), place + within + run.start as u64);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        self.bat.finish(output)?;
        let creator: Vec<u8> = "kvmbake".encode_utf16().flat_map(u16::to_le_bytes).collect();
        output.write_at(&[&MAGIC[..], &creator].concat(), 0)?;
        for (sequence, at) in (0..).zip(HEADERS) {
            output.write_at(&header(sequence, identity), at)?;
        }
        for at in REGION_TABLES {
            output.write_at(&self.region_table(), at)?;
        }
        output.write_at(&self.metadata(identity), METADATA)?;
        output.set_len(self.next)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
