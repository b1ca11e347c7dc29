//! Compares the refcounts of a qcow2 file with what refers to its clusters.
//!
//! Contract: runs over a file that `header` and `structure` have checked. A cluster that is used
//! more often than it is counted is damage: the next writer would overwrite data. One that is
//! counted but not used is a leak, which harms nobody. Memory is bounded by one window of
//! counters; a file with more clusters is walked once for each window.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, sections "Host cluster management" and
//! "Snapshots".

use super::header::{Header, be32, be64, corrupt, truncated, unsupported};
use super::structure::{COMPRESSED, OFFSET_MASK, compressed_extent};
use crate::error::Error;
use crate::host_file::HostFile;

/// Clusters that are counted at once: 32 MiB of counters.
const WINDOW: u64 = 16 << 20;
/// The most clusters that are counted: a file of 16 TiB in clusters of 64 KiB.
const MAX_CLUSTERS: u64 = 16 * WINDOW;
/// The most L2 entries that are walked for snapshots.
const MAX_ENTRIES: u64 = 1 << 30;
/// How much of a table is read at once.
const CHUNK: usize = 64 * 1024;
const MAX_SNAPSHOTS: u32 = 65536;
/// QEMU's limit for the L1 table of a snapshot.
const MAX_L1_BYTES: u64 = 32 << 20;

/// What the refcounts of an image are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefcountReport {
    /// Clusters that are used more often than their refcount says.
    pub too_low: u64,
    /// The place of the first of them.
    pub first: Option<u64>,
    /// Clusters whose refcount is higher than their use; `None` where the image holds things
    /// (persistent bitmaps) whose clusters are not known here.
    pub leaked: Option<u64>,
    /// The place of the first cluster that the disk as it is now uses twice, though nothing but
    /// compressed data shares clusters.
    pub overlap: Option<u64>,
    /// Whether the image is marked as dirty: the counts may be behind, and its writer knew.
    pub dirty: bool,
    /// Bytes of a cluster.
    pub cluster_size: u64,
}

/// How far the references are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// The disk as it is now: enough to find what is counted too low in it.
    Current,
    /// Internal snapshots too.
    All,
}

/// Counts and compares.
pub(super) fn check(
    file: &HostFile,
    header: &Header,
    depth: Depth,
) -> Result<RefcountReport, Error> {
    let cluster_size = header.cluster_size();
    let clusters = file.len().div_ceil(cluster_size);
    if clusters > MAX_CLUSTERS {
        return Err(unsupported(
            file,
            format!("{clusters} clusters, more than the {MAX_CLUSTERS} that are counted,"),
        ));
    }
    let mut tables = read_tables(file, header)?;
    let is_complete = !header.has_extras
        && (header.snapshots == 0 || (depth == Depth::All && tables.snapshots_are_few(header)));
    if !is_complete {
        tables.l1.truncate(1);
    }
    let mut report = RefcountReport {
        leaked: is_complete.then_some(0),
        cluster_size,
        dirty: header.dirty,
        ..RefcountReport::default()
    };
    let has_snapshots = tables.l1.len() > 1;
    for first in (0..clusters).step_by(WINDOW as usize) {
        let len = (clusters - first).min(WINDOW) as usize;
        let mut count = Count { file, header, first, uses: vec![0; len], overlap: None };
        count.add_everything(&tables)?;
        if !has_snapshots {
            report.overlap = report.overlap.or(count.overlap);
        }
        count.compare(&tables.refcount_blocks, &mut report)?;
    }
    Ok(report)
}

/// The tables that refer to everything else.
struct Tables {
    refcount_blocks: Vec<u64>,
    /// The L1 tables, of the disk and of its snapshots: offset and entries.
    l1: Vec<(u64, u64)>,
    /// Bytes of the snapshot table.
    snapshots_len: u64,
}

impl Tables {
    /// Returns whether the snapshots can be walked in reasonable time, which their number and
    /// size alone do not tell: hostile ones refer to one table very often.
    fn snapshots_are_few(&self, header: &Header) -> bool {
        let entries: u64 = self.l1.iter().map(|l1| l1.1).sum();
        entries.saturating_mul(header.cluster_size() / 8) <= MAX_ENTRIES
    }
}

fn read_tables(file: &HostFile, header: &Header) -> Result<Tables, Error> {
    let len = u64::from(header.refcount_table_clusters) * header.cluster_size();
    let mut refcount_blocks = Vec::new();
    for_each_entry(file, header.refcount_table_offset, len / 8, |_, entry| {
        refcount_blocks.push(entry & !0x1ff);
        Ok(())
    })?;
    while refcount_blocks.last() == Some(&0) {
        refcount_blocks.pop();
    }
    let mut tables = Tables {
        refcount_blocks,
        l1: vec![(header.l1_offset, u64::from(header.l1_entries))],
        snapshots_len: 0,
    };
    if header.snapshots > MAX_SNAPSHOTS {
        return Err(corrupt(file, 60, format!("it has {} snapshots", header.snapshots)));
    }
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let mut entry = [0; 40];
        let inside = |offset: u64, len: u64, what: &str| match offset.checked_add(len) {
            Some(end) if end <= file.len() => Ok(()),
            _ => Err(truncated(file, offset, what)),
        };
        inside(at, 40, "the snapshot table")?;
        file.read_exact_at(&mut entry, at)?;
        let (offset, entries) = (be64(&entry, 0), u64::from(be32(&entry, 8)));
        if entries * 8 > MAX_L1_BYTES {
            return Err(corrupt(file, at, format!("a snapshot's L1 table has {entries} entries")));
        }
        inside(offset, entries * 8, "a snapshot's L1 table")?;
        tables.l1.push((offset, entries));
        let names = u64::from(be32(&entry, 12) >> 16) + u64::from(be32(&entry, 12) & 0xffff);
        at = (at + 40 + u64::from(be32(&entry, 36)) + names).next_multiple_of(8);
    }
    tables.snapshots_len = at - header.snapshots_offset;
    Ok(tables)
}

/// The uses of one window of the file's clusters.
struct Count<'a> {
    file: &'a HostFile,
    header: &'a Header,
    first: u64,
    /// How often each is used; the highest bit is set where something wants it for itself.
    uses: Vec<u16>,
    /// The place of the first that something wants for itself and that has another use.
    overlap: Option<u64>,
}

/// The highest bit of a count.
const ALONE: u16 = 1 << 15;

impl Count<'_> {
    /// Counts one use of every cluster that the bytes touch.
    fn add(&mut self, offset: u64, len: u64) {
        self.add_use(offset, len, ALONE);
    }

    fn add_use(&mut self, offset: u64, len: u64, alone: u16) {
        if len == 0 {
            return;
        }
        let bits = self.header.cluster_bits;
        let last = offset.saturating_add(len - 1) >> bits;
        let window = self.first..self.first + self.uses.len() as u64;
        for cluster in (offset >> bits).max(window.start)..(last + 1).min(window.end) {
            let uses = &mut self.uses[(cluster - self.first) as usize];
            if *uses != 0 && (*uses | alone) & ALONE != 0 {
                self.overlap.get_or_insert(cluster << bits);
            }
            *uses = (*uses & !ALONE).saturating_add(1).min(!ALONE) | (*uses | alone) & ALONE;
        }
    }

    fn add_everything(&mut self, tables: &Tables) -> Result<(), Error> {
        let cluster_size = self.header.cluster_size();
        let (file, header) = (self.file, self.header);
        self.add(0, 1);
        let refcounts = u64::from(header.refcount_table_clusters) * cluster_size;
        self.add(header.refcount_table_offset, refcounts);
        self.add(header.snapshots_offset, tables.snapshots_len);
        for block in tables.refcount_blocks.iter().filter(|block| **block != 0) {
            self.add(*block, cluster_size);
        }
        for (offset, entries) in &tables.l1 {
            self.add(*offset, entries * 8);
            for_each_entry(file, *offset, *entries, |_, entry| match entry & OFFSET_MASK {
                0 => Ok(()),
                table => self.add_l2(table),
            })?;
        }
        Ok(())
    }

    fn add_l2(&mut self, table: u64) -> Result<(), Error> {
        let cluster_size = self.header.cluster_size();
        if !table.is_multiple_of(cluster_size)
            || table.checked_add(cluster_size).is_none_or(|end| end > self.file.len())
        {
            return Err(truncated(self.file, table, "an L2 table"));
        }
        self.add(table, cluster_size);
        let step = self.header.l2_entry_size() / 8;
        let (file, header) = (self.file, self.header);
        for_each_entry(file, table, cluster_size / 8, |index, entry| {
            if !index.is_multiple_of(step) || entry == 0 {
                return Ok(());
            }
            if entry & COMPRESSED != 0 {
                let (start, end) = compressed_extent(header, entry);
                self.add_use(start, end - start, 0);
            } else if header.data_file.is_none() && entry & OFFSET_MASK != 0 {
                // Also a cluster that reads as zeroes may keep its place.
                self.add(entry & OFFSET_MASK, cluster_size);
            }
            Ok(())
        })
    }

    fn compare(&self, blocks: &[u64], report: &mut RefcountReport) -> Result<(), Error> {
        let bits = 1u64 << self.header.refcount_order;
        let per_block = self.header.cluster_size() * 8 / bits;
        let mut block = vec![0; self.header.cluster_size() as usize];
        let mut loaded = None;
        for (cluster, uses) in (self.first..).zip(&self.uses) {
            let uses = uses & !ALONE;
            let index = cluster / per_block;
            let place = blocks.get(index as usize).copied().unwrap_or(0);
            if loaded != Some(index) {
                match place {
                    0 => block.fill(0),
                    place => self.file.read_exact_at(&mut block, place)?,
                }
                loaded = Some(index);
            }
            let stored = refcount(&block, cluster % per_block, self.header.refcount_order);
            if stored < u64::from(uses) {
                report.too_low += 1;
                report.first.get_or_insert(cluster * self.header.cluster_size());
            } else if stored > u64::from(uses) && uses < !ALONE {
                report.leaked = report.leaked.map(|leaked| leaked + 1);
            }
        }
        Ok(())
    }
}

/// Returns an entry of a refcount block, of 2^`order` bits.
fn refcount(block: &[u8], index: u64, order: u32) -> u64 {
    let index = index as usize;
    match order {
        0..3 => {
            let per_byte = 8 >> order;
            let shift = (index % per_byte) << order;
            u64::from(block[index / per_byte] >> shift) & ((1 << (1 << order)) - 1)
        }
        _ => {
            let bytes = 1 << (order - 3);
            block[index * bytes..(index + 1) * bytes]
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

fn for_each_entry(
    file: &HostFile,
    offset: u64,
    entries: u64,
    mut visit: impl FnMut(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buf = vec![0; CHUNK.min((entries * 8) as usize)];
    let mut done = 0;
    while done < entries {
        let count = (entries - done).min(buf.len() as u64 / 8);
        let chunk = &mut buf[..count as usize * 8];
        file.read_exact_at(chunk, offset + done * 8)?;
        for (index, bytes) in (done..).zip(chunk.chunks_exact(8)) {
            visit(index, be64(bytes, 0))?;
        }
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_read() {
        // From the specification: the lowest entry is in the lowest bits, wide ones big-endian.
        assert_eq!(refcount(&[0b0000_0010], 1, 0), 1);
        assert_eq!(refcount(&[0b0000_1100], 1, 1), 3);
        assert_eq!(refcount(&[0xa5], 1, 2), 0xa);
        assert_eq!(refcount(&[1, 2], 1, 3), 2);
        assert_eq!(refcount(&[0, 1, 2, 3], 1, 4), 0x203);
        assert_eq!(refcount(&[0, 0, 0, 9], 0, 5), 9);
        assert_eq!(refcount(&[0, 0, 0, 0, 0, 0, 1, 0], 0, 6), 256);
    }
}
