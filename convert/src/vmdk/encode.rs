//! The VMDK encoder: monolithicSparse, 64 KiB grains, both grain directories.
//!
//! All grain tables are present from the start, as VMware makes them, one behind the other, so
//! together they are one flat table; tables of unallocated grains are holes of the file.

use super::{
    FLAG_LINE_ENDS, FLAG_REDUNDANT, GRAIN, Header, SECTOR, TABLE_ENTRIES, TABLE_SECTORS, descriptor,
};
use crate::chunk::{Chunk, UNIT, UNITS};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::Output;
use crate::table::{Order, TableWriter};

const DESCRIPTOR: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
const GRAIN_SECTORS: u64 = GRAIN / SECTOR;
/// As far as the readers checked here go.
const MAX_SECTORS: u64 = 1 << 36;

// A unit with data is a grain.
const _: () = assert!(GRAIN == UNIT as u64);

/// Writes a VMDK image.
pub(crate) struct VmdkEncoder {
    name: String,
    header: Header,
    tables: u64,
    table: TableWriter,
    /// The sector where the next grain goes.
    next: u64,
}

impl VmdkEncoder {
    /// `name` is the file's final name, which the descriptor states.
    pub(crate) fn plan(disk: &DiskInfo, name: &str) -> Result<VmdkEncoder, String> {
        if name.is_empty() || name.len() > 255 || name.chars().any(|c| c == '"' || c.is_control()) {
            return Err(format!("the descriptor cannot express the file name {name:?}"));
        }
        let sectors = disk.virtual_size.div_ceil(SECTOR);
        if sectors == 0 || sectors > MAX_SECTORS {
            return Err(format!(
                "{} bytes are not between 1 byte and {} TiB",
                disk.virtual_size,
                MAX_SECTORS >> 31
            ));
        }
        let grains = sectors.div_ceil(GRAIN_SECTORS);
        let tables = grains.div_ceil(TABLE_ENTRIES);
        let directory_sectors = (tables * 4).div_ceil(SECTOR);
        let redundant = DESCRIPTOR + DESCRIPTOR_SECTORS;
        let directory = redundant + directory_sectors + tables * TABLE_SECTORS;
        let overhead =
            round_up(directory + directory_sectors + tables * TABLE_SECTORS, GRAIN_SECTORS);
        if overhead + disk.data_units * GRAIN_SECTORS > u64::from(u32::MAX) {
            return Err(format!(
                "{} bytes of data do not fit the 2 TiB that its grain tables can address",
                disk.data_units * GRAIN
            ));
        }
        let places = [redundant, directory].map(|start| (start + directory_sectors) * SECTOR);
        Ok(VmdkEncoder {
            name: name.to_owned(),
            header: Header {
                version: 1,
                flags: FLAG_LINE_ENDS | FLAG_REDUNDANT,
                capacity: sectors,
                grain: GRAIN_SECTORS,
                descriptor: DESCRIPTOR,
                descriptor_len: DESCRIPTOR_SECTORS,
                table_entries: TABLE_ENTRIES as u32,
                redundant_directory: redundant,
                directory,
                overhead,
                compression: 0,
            },
            tables,
            table: TableWriter::new(&places, tables * TABLE_ENTRIES, 0, Order::Little),
            next: overhead,
        })
    }

    fn write_directory(&self, start: u64, output: &Output) -> Result<(), Error> {
        let first = start + (self.tables * 4).div_ceil(SECTOR);
        let mut directory = TableWriter::new(&[start * SECTOR], self.tables, 0, Order::Little);
        for table in 0..self.tables {
            directory.set(table, (first + table * TABLE_SECTORS) as u32, output)?;
        }
        directory.finish(output)
    }
}

impl Encoder for VmdkEncoder {
    fn virtual_size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn write(&mut self, chunk: &Chunk, output: &Output) -> Result<(), Error> {
        let first = chunk.offset() / GRAIN;
        let mut places = [0; UNITS];
        for unit in chunk.units() {
            self.table.set(first + unit as u64, self.next as u32, output)?;
            places[unit] = self.next * SECTOR;
            self.next += GRAIN_SECTORS;
        }
        // Grains with data that touch in the chunk touch in the file, so a run stays whole.
        for run in chunk.runs() {
            let at = places[run.start / UNIT] + (run.start % UNIT) as u64;
            output.write_at(chunk.bytes(run), at)?;
        }
        Ok(())
    }

    fn finish(&mut self, identity: &Identity, output: &Output) -> Result<(), Error> {
        self.table.finish(output)?;
        self.write_directory(self.header.redundant_directory, output)?;
        self.write_directory(self.header.directory, output)?;
        let descriptor = descriptor::encode(&self.name, self.header.capacity, identity);
        output.write_at(descriptor.as_bytes(), DESCRIPTOR * SECTOR)?;
        output.write_at(&self.header.encode(), 0)?;
        output.set_len(self.next * SECTOR)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
