//! The qcow2 encoder: version 3, 64 KiB clusters, 16-bit refcounts, no feature bits.
//!
//! Layout, front to back: the header's cluster; data clusters in the disk's order, each L2 table
//! right behind the data that it maps; the L1 table; the refcount table; the refcount blocks.
//! Every cluster up to the end of the file is used exactly once, so the refcounts are known
//! without counting. Clusters of zeroes are left unallocated; zero pages within a cluster are
//! holes of the file.

use crate::chunk::{Chunk, UNIT, UNITS};
use crate::encode::{DiskInfo, Encoder, Identity, round_up};
use crate::error::Error;
use crate::output::Output;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const L2_ENTRIES: u64 = CLUSTER / 8;
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER / 2;
const TABLE_ENTRIES_PER_CLUSTER: u64 = CLUSTER / 8;
/// "Refcount is exactly one" in L1 and L2 entries.
const COPIED: u64 = 1 << 63;
/// QEMU's limit for the L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
const HEADER_LEN: usize = 104;

// Clusters are the scan's units: a unit with data is a cluster, and runs of pages map to it.
const _: () = assert!(CLUSTER == UNIT as u64);

/// Writes a qcow2 image.
pub(crate) struct Qcow2Encoder {
    size: u64,
    /// The first cluster never used.
    next: u64,
    l1: Vec<u64>,
    l2: Vec<u8>,
    /// The L1 index that `l2` belongs to, once it holds an entry.
    current: Option<usize>,
}

impl Qcow2Encoder {
    pub(crate) fn plan(disk: &DiskInfo) -> Result<Qcow2Encoder, String> {
        let size = round_up(disk.virtual_size, 512);
        let l1_entries = size.div_ceil(CLUSTER * L2_ENTRIES);
        if l1_entries * 8 > MAX_L1_BYTES {
            return Err(format!(
                "{size} bytes need an L1 table of {} bytes, readers take {MAX_L1_BYTES}",
                l1_entries * 8
            ));
        }
        Ok(Qcow2Encoder {
            size,
            next: 1,
            l1: vec![0; l1_entries as usize],
            l2: vec![0; CLUSTER as usize],
            current: None,
        })
    }

    fn allocate(&mut self, clusters: u64) -> u64 {
        let offset = self.next * CLUSTER;
        self.next += clusters;
        offset
    }

    /// Writes the L2 table and begins an empty one.
    fn flush_l2(&mut self, output: &Output) -> Result<(), Error> {
        if let Some(index) = self.current.take() {
            let offset = self.allocate(1);
            output.write_at(&self.l2, offset)?;
            self.l1[index] = offset | COPIED;
            self.l2.fill(0);
        }
        Ok(())
    }

    /// Writes refcount blocks of ones for all clusters, and the table that lists them.
    /// Returns the table's offset and its clusters.
    fn write_refcounts(&mut self, output: &Output) -> Result<(u64, u64), Error> {
        let (mut blocks, mut table) = (0, 0);
        let total = loop {
            let total = self.next + table + blocks;
            let fit =
                (total.div_ceil(REFCOUNTS_PER_BLOCK), blocks.div_ceil(TABLE_ENTRIES_PER_CLUSTER));
            if (blocks, table) == fit {
                break total;
            }
            (blocks, table) = fit;
        };
        let table_offset = self.allocate(table);
        let first_block = self.allocate(blocks);
        let entries: Vec<u8> =
            (0..blocks).flat_map(|block| (first_block + block * CLUSTER).to_be_bytes()).collect();
        output.write_at(&entries, table_offset)?;
        let ones = 1u16.to_be_bytes().repeat(REFCOUNTS_PER_BLOCK as usize);
        for block in 0..blocks {
            let used = (total - block * REFCOUNTS_PER_BLOCK).min(REFCOUNTS_PER_BLOCK);
            output.write_at(&ones[..used as usize * 2], first_block + block * CLUSTER)?;
        }
        Ok((table_offset, table))
    }

    fn header(&self, l1: u64, refcounts: (u64, u64)) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &super::MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(self.l1.len() as u32).to_be_bytes());
        put(40, &l1.to_be_bytes());
        put(48, &refcounts.0.to_be_bytes());
        put(56, &(refcounts.1 as u32).to_be_bytes());
        put(96, &4u32.to_be_bytes()); // refcount_order: 16 bits
        put(100, &(HEADER_LEN as u32).to_be_bytes());
        header
    }
}

impl Encoder for Qcow2Encoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, output: &Output) -> Result<(), Error> {
        let first = chunk.offset() / CLUSTER;
        let index = (first / L2_ENTRIES) as usize;
        if self.current != Some(index) {
            self.flush_l2(output)?;
            self.current = Some(index);
        }
        let mut places = [0; UNITS];
        for unit in chunk.units() {
            places[unit] = self.allocate(1);
            let entry = (places[unit] | COPIED).to_be_bytes();
            let at = ((first + unit as u64) % L2_ENTRIES * 8) as usize;
            self.l2[at..at + 8].copy_from_slice(&entry);
        }
        // Clusters with data that touch in the chunk touch in the file, so a run stays whole.
        for run in chunk.runs() {
            let at = places[run.start / UNIT] + (run.start % UNIT) as u64;
            output.write_at(chunk.bytes(run), at)?;
        }
        Ok(())
    }

    fn finish(&mut self, _identity: &Identity, output: &Output) -> Result<(), Error> {
        self.flush_l2(output)?;
        let l1: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // An empty disk still gets a table of one cluster: readers want a valid offset.
        let l1_offset = self.allocate((l1.len() as u64).div_ceil(CLUSTER).max(1));
        if self.l1.iter().any(|entry| *entry != 0) {
            output.write_at(&l1, l1_offset)?;
        }
        let refcounts = self.write_refcounts(output)?;
        output.write_at(&self.header(l1_offset, refcounts), 0)?;
        output.set_len(self.next * CLUSTER)
    }
}
