//! The encoder of monolithicSparse VMDKs: 64 KiB grains, both grain directories.
//!
//! All grain tables are present from the start, as VMware makes them, one behind the other, so
//! together they are one flat table; tables of unallocated grains are holes of the file.

use super::{
    DESCRIPTOR, DESCRIPTOR_SECTORS, FLAG_LINE_ENDS, FLAG_REDUNDANT, GRAIN, GRAIN_SECTORS, Header,
    SECTOR, TABLE_ENTRIES, TABLE_SECTORS, VmdkOptions, descriptor,
};
use crate::chunk::{Chunk, UNIT, UNITS};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};
use crate::table::{Order, TableWriter};

// A unit with data is a grain.
const _: () = assert!(GRAIN == UNIT as u64);

/// Writes a monolithicSparse VMDK.
pub(crate) struct SparseEncoder {
    name: String,
    options: VmdkOptions,
    header: Header,
    tables: u64,
    table: TableWriter,
    /// The sector where the next grain goes.
    next: u64,
}

impl SparseEncoder {
    /// `name` is the file's final name, which the descriptor states.
    pub(crate) fn plan(
        disk: &DiskInfo,
        name: &str,
        options: &VmdkOptions,
    ) -> Result<SparseEncoder, String> {
        descriptor::check_name(name)?;
        let sectors = super::capacity(disk)?;
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
        Ok(SparseEncoder {
            name: name.to_owned(),
            options: options.clone(),
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

impl Encoder for SparseEncoder {
    fn virtual_size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
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
            parts.put(run, at);
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
        self.write_directory(self.header.redundant_directory, output)?;
        self.write_directory(self.header.directory, output)?;
        let descriptor = descriptor::encode(
            &descriptor::Image {
                create_type: self.options.kind().name(),
                extent: format!("SPARSE \"{}\"", self.name),
                sectors: self.header.capacity,
                options: &self.options,
            },
            identity,
        );
        output.write_at(descriptor.as_bytes(), DESCRIPTOR * SECTOR)?;
        output.write_at(&self.header.encode(), 0)?;
        output.set_len(self.next * SECTOR)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
