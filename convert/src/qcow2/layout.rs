//! Where things go in a qcow2 file that is written front to back: clusters are given out in
//! ascending order, L2 tables follow the data that they map, refcount blocks follow the clusters
//! that they count. Nothing but the L1 table, the refcount table and one window of each of the
//! others is kept in memory.

use super::Qcow2Options;
use super::options::Compression;
use crate::encode::{DiskInfo, round_up};
use crate::error::Error;
use crate::output::Output;

/// "Refcount is exactly one" in L1 and L2 entries.
pub(super) const COPIED: u64 = 1 << 63;
/// "Compressed" in L2 entries.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// "Reads as zeroes" in L2 entries.
pub(super) const ZERO: u64 = 1;
/// QEMU's limits for the L1 table and the refcount table.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const HEADER_LEN: usize = 112;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;

/// The tables of an image being written.
pub(super) struct Layout {
    bits: u32,
    size: u64,
    /// The first cluster never used.
    next: u64,
    l1: Vec<u64>,
    l2: Vec<u8>,
    /// The L1 index that `l2` belongs to, once it holds an entry.
    current: Option<usize>,
    /// How often each cluster from `counted` on is used.
    counts: Vec<u16>,
    counted: u64,
    /// The place of each finished refcount block.
    blocks: Vec<u64>,
    zstd: bool,
    backing: Option<(String, &'static str)>,
}

impl Layout {
    /// Returns the layout for a disk, or why the format cannot hold it.
    pub(super) fn plan(disk: &DiskInfo, options: &Qcow2Options) -> Result<Layout, String> {
        let cluster = options.cluster_size;
        let size = round_up(disk.virtual_size, 512);
        let l1_entries = size.div_ceil(cluster * (cluster / 8));
        if l1_entries * 8 > MAX_L1_BYTES {
            return Err(format!(
                "{size} bytes in clusters of {cluster} bytes need an L1 table of {} bytes, \
                 readers take {MAX_L1_BYTES}",
                l1_entries * 8
            ));
        }
        let data = disk.data_units.saturating_mul(crate::chunk::UNIT as u64).min(size);
        if data / cluster / (cluster / 2) * 8 > MAX_REFCOUNT_TABLE_BYTES {
            return Err(format!(
                "{data} bytes of data are too many for clusters of {cluster} bytes"
            ));
        }
        let backing = match (&options.backing_file, options.backing_format) {
            (Some(name), Some(format)) => {
                if name.len() > 1023 || (HEADER_LEN + 32 + name.len()) as u64 > cluster {
                    return Err(format!("the backing file's name {name:?} is too long"));
                }
                Some((name.clone(), format.name()))
            }
            _ => None,
        };
        Ok(Layout {
            bits: cluster.trailing_zeros(),
            size,
            next: 1,
            l1: vec![0; l1_entries as usize],
            l2: vec![0; cluster as usize],
            current: None,
            counts: vec![1],
            counted: 0,
            blocks: Vec::new(),
            zstd: options.compressed && options.compression == Compression::Zstd,
            backing,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.bits
    }

    pub(super) fn cluster_bits(&self) -> u32 {
        self.bits
    }

    fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    fn counts_per_block(&self) -> u64 {
        self.cluster() / 2
    }

    /// Gives out clusters that touch, each used once; returns the byte where they begin.
    pub(super) fn allocate(&mut self, clusters: u64) -> u64 {
        let offset = self.next << self.bits;
        self.next += clusters;
        self.counts.resize((self.next - self.counted) as usize, 1);
        offset
    }

    /// Counts one more use of a cluster that was given out since refcounts were written last.
    pub(super) fn share(&mut self, cluster: u64) {
        self.counts[(cluster - self.counted) as usize] += 1;
    }

    /// Returns whether mapping this cluster of the disk begins another L2 table.
    pub(super) fn begins_table(&self, cluster: u64) -> bool {
        self.current != Some((cluster / self.l2_entries()) as usize)
    }

    /// Returns whether finishing the L2 table may write refcounts.
    pub(super) fn fills_block(&self) -> bool {
        self.next + 1 - self.counted >= self.counts_per_block()
    }

    /// Writes the L2 table, if this cluster of the disk begins another one.
    pub(super) fn begin_table(&mut self, cluster: u64, output: &Output) -> Result<(), Error> {
        if self.begins_table(cluster) {
            self.finish_table(output)?;
            self.current = Some((cluster / self.l2_entries()) as usize);
        }
        Ok(())
    }

    /// Maps a cluster of the disk; they come in ascending order.
    pub(super) fn map(&mut self, cluster: u64, entry: u64, output: &Output) -> Result<(), Error> {
        self.begin_table(cluster, output)?;
        let at = (cluster % self.l2_entries() * 8) as usize;
        self.l2[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        Ok(())
    }

    /// Writes the L2 table and begins an empty one; writes the refcount blocks that are full.
    fn finish_table(&mut self, output: &Output) -> Result<(), Error> {
        if let Some(index) = self.current.take() {
            let offset = self.allocate(1);
            output.write_at(&self.l2, offset)?;
            self.l1[index] = offset | COPIED;
            self.l2.fill(0);
        }
        while self.next - self.counted >= self.counts_per_block() {
            let offset = self.allocate(1);
            self.write_block(offset, output)?;
        }
        Ok(())
    }

    /// Writes the refcounts of the next clusters as a block.
    fn write_block(&mut self, offset: u64, output: &Output) -> Result<(), Error> {
        let len = self.counts.len().min(self.counts_per_block() as usize);
        let bytes: Vec<u8> = self.counts.drain(..len).flat_map(u16::to_be_bytes).collect();
        output.write_at(&bytes, offset)?;
        self.counted += len as u64;
        self.blocks.push(offset);
        Ok(())
    }

    /// Writes what is left and the header. Nothing may be mapped afterwards.
    pub(super) fn finish(&mut self, output: &Output) -> Result<(), Error> {
        self.finish_table(output)?;
        let l1: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // An empty disk still gets a table of one cluster: readers want a valid offset.
        let l1_offset = self.allocate((l1.len() as u64).div_ceil(self.cluster()).max(1));
        if self.l1.iter().any(|entry| *entry != 0) {
            output.write_at(&l1, l1_offset)?;
        }
        let (table, clusters) = self.write_refcounts(output)?;
        output.write_at(&self.header(l1_offset, table, clusters), 0)?;
        output.set_len(self.next << self.bits)
    }

    /// Writes the last refcount blocks, which count themselves and the table of all of them, and
    /// that table. Returns the table's offset and its clusters.
    fn write_refcounts(&mut self, output: &Output) -> Result<(u64, u64), Error> {
        let done = self.blocks.len() as u64;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let uncounted = self.next - self.counted + table + blocks;
            let fit = (
                uncounted.div_ceil(self.counts_per_block()),
                (done + blocks).div_ceil(self.cluster() / 8),
            );
            if (blocks, table) == fit {
                break;
            }
            (blocks, table) = fit;
        }
        let table_offset = self.allocate(table);
        let first = self.allocate(blocks);
        for block in 0..blocks {
            self.write_block(first + (block << self.bits), output)?;
        }
        let entries: Vec<u8> = self.blocks.iter().flat_map(|at| at.to_be_bytes()).collect();
        output.write_at(&entries, table_offset)?;
        Ok((table_offset, table))
    }

    fn header(&self, l1: u64, refcounts: u64, refcount_clusters: u64) -> Vec<u8> {
        let mut header = vec![0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &super::MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &self.bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(self.l1.len() as u32).to_be_bytes());
        put(40, &l1.to_be_bytes());
        put(48, &refcounts.to_be_bytes());
        put(56, &(refcount_clusters as u32).to_be_bytes());
        put(72, &(if self.zstd { INCOMPATIBLE_COMPRESSION } else { 0 }).to_be_bytes());
        put(96, &4u32.to_be_bytes()); // refcount_order: 16 bits
        put(100, &(HEADER_LEN as u32).to_be_bytes());
        put(104, &[u8::from(self.zstd)]);
        let Some((name, format)) = &self.backing else {
            return header;
        };
        header.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        header.extend((format.len() as u32).to_be_bytes());
        header.extend(format.as_bytes());
        header.resize(header.len().next_multiple_of(8) + 8, 0);
        let at = header.len();
        header[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        header[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        header.extend(name.as_bytes());
        header
    }
}
