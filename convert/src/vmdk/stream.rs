//! The encoder of streamOptimized VMDKs: compressed grains, each behind a marker with its sector
//! number; after the grains of a table the table; at the end the directory, a footer that is the
//! header with the directory's place, and the end-of-stream marker ("Virtual Disk Format 5.0",
//! "Stream-Optimized Compressed Sparse Extents").
//!
//! The file is written front to back but for the first grain's worth, which holds the header and
//! the descriptor: the latter's identifiers come from the content.

use super::{
    DESCRIPTOR, DESCRIPTOR_SECTORS, FLAG_COMPRESSED, FLAG_LINE_ENDS, FLAG_MARKERS, GRAIN,
    GRAIN_SECTORS, Header, MAX_SECTORS, SECTOR, TABLE_ENTRIES, TABLE_SECTORS, VmdkOptions,
    descriptor,
};
use crate::compress::{Codec, Packing, Packs};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::{Cancel, Output};

/// Bytes collected before they are written.
const FLUSH: usize = 1 << 20;
/// The most sectors that a grain can take: incompressible, with its marker.
const LARGEST_GRAIN: u64 = GRAIN_SECTORS + 2;
/// The largest file: places are 32-bit sector numbers.
const MAX_FILE_SECTORS: u64 = u32::MAX as u64;
/// "The directory is in the footer" in the header.
pub(super) const AT_END: u64 = u64::MAX;

/// The kinds of markers that are not grains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    EndOfStream = 0,
    Table = 1,
    Directory = 2,
    Footer = 3,
}

/// Writes a streamOptimized VMDK, from `base` in its file on.
pub(crate) struct StreamEncoder {
    name: String,
    options: VmdkOptions,
    header: Header,
    base: u64,
    /// Bytes not yet written; they belong at sector `place`.
    pending: Vec<u8>,
    place: u64,
    directory: Vec<u32>,
    table: Vec<u32>,
    /// The table being filled, once it has a grain.
    current: Option<usize>,
}

impl StreamEncoder {
    /// `name` is what the descriptor calls the file; `base` where in the output it begins.
    pub(crate) fn plan(
        disk: &DiskInfo,
        name: &str,
        options: &VmdkOptions,
        base: u64,
    ) -> Result<StreamEncoder, String> {
        descriptor::check_name(name)?;
        let sectors = super::capacity(disk)?;
        let overhead = round_up(DESCRIPTOR + DESCRIPTOR_SECTORS, GRAIN_SECTORS);
        let tables = sectors.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
        let largest = overhead
            + disk.data_units * LARGEST_GRAIN
            + tables * (TABLE_SECTORS + 1)
            + (tables * 4).div_ceil(SECTOR)
            + 8;
        if sectors > MAX_SECTORS || largest > MAX_FILE_SECTORS {
            return Err(format!(
                "{} bytes of data may not fit the 2 TiB that its grain tables can address",
                disk.data_units * GRAIN
            ));
        }
        Ok(StreamEncoder {
            name: name.to_owned(),
            options: options.clone(),
            header: Header {
                version: 3,
                flags: FLAG_LINE_ENDS | FLAG_COMPRESSED | FLAG_MARKERS,
                capacity: sectors,
                grain: GRAIN_SECTORS,
                descriptor: DESCRIPTOR,
                descriptor_len: DESCRIPTOR_SECTORS,
                table_entries: TABLE_ENTRIES as u32,
                redundant_directory: 0,
                directory: AT_END,
                overhead,
                compression: 1,
            },
            base,
            pending: Vec::with_capacity(FLUSH + CHUNK_SLACK),
            place: overhead,
            directory: vec![0; tables as usize],
            table: vec![0; TABLE_ENTRIES as usize],
            current: None,
        })
    }

    /// Returns the file's length in bytes; known once it is finished.
    pub(crate) fn len(&self) -> u64 {
        self.next() * SECTOR
    }

    /// Returns the sector where the next thing goes.
    fn next(&self) -> u64 {
        self.place + self.pending.len() as u64 / SECTOR
    }

    fn finish_table(&mut self) {
        let Some(current) = self.current.take() else { return };
        self.mark(Marker::Table, TABLE_SECTORS);
        self.directory[current] = self.next() as u32;
        self.pending.extend(self.table.iter().flat_map(|entry| entry.to_le_bytes()));
        self.table.fill(0);
    }

    fn mark(&mut self, marker: Marker, sectors: u64) {
        let start = self.pending.len();
        self.pending.extend(sectors.to_le_bytes());
        self.pending.extend(0u32.to_le_bytes());
        self.pending.extend((marker as u32).to_le_bytes());
        self.pending.resize(start + SECTOR as usize, 0);
    }

    fn pad(&mut self) {
        self.pending.resize(self.pending.len().next_multiple_of(SECTOR as usize), 0);
    }

    fn flush(&mut self, output: &Output) -> Result<(), Error> {
        output.write_at(&self.pending, self.base + self.place * SECTOR)?;
        self.place = self.next();
        self.pending.clear();
        Ok(())
    }
}

/// What one chunk's grains and a table add at most to the pending bytes.
const CHUNK_SLACK: usize = (1 << 20) + (64 << 10);

impl Encoder for StreamEncoder {
    fn virtual_size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn packing(&self) -> Option<Packing> {
        let codec = Codec::Zlib(self.options.level);
        Some(Packing { codec, unit: GRAIN as usize, keep_plain: false, base: None })
    }

    fn write_packed(&mut self, packs: &Packs, output: &Output) -> Result<(), Error> {
        for packed in packs.iter() {
            let table = (packed.unit / TABLE_ENTRIES) as usize;
            if self.current != Some(table) {
                self.finish_table();
                self.current = Some(table);
            }
            self.table[(packed.unit % TABLE_ENTRIES) as usize] = self.next() as u32;
            self.pending.extend((packed.unit * GRAIN_SECTORS).to_le_bytes());
            self.pending.extend((packed.bytes.len() as u32).to_le_bytes());
            self.pending.extend_from_slice(packed.bytes);
            self.pad();
        }
        if self.pending.len() >= FLUSH {
            self.flush(output)?;
        }
        Ok(())
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        self.finish_table();
        let sectors = (self.directory.len() as u64 * 4).div_ceil(SECTOR);
        self.mark(Marker::Directory, sectors);
        let directory = self.next();
        self.pending.extend(self.directory.iter().flat_map(|entry| entry.to_le_bytes()));
        self.pad();
        self.mark(Marker::Footer, 1);
        self.pending.extend(Header { directory, ..self.header }.encode());
        self.mark(Marker::EndOfStream, 0);
        self.flush(output)?;
        let text = descriptor::encode(
            &descriptor::Image {
                create_type: self.options.kind().name(),
                extent: format!("SPARSE \"{}\"", self.name),
                sectors: self.header.capacity,
                options: &self.options,
            },
            identity,
        );
        let mut start = self.header.encode().to_vec();
        start.extend_from_slice(text.as_bytes());
        start.resize((self.header.overhead * SECTOR) as usize, 0);
        output.write_at(&start, self.base)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
