//! Walks the tables of a qcow2 file before anybody relies on them.
//!
//! Contract: afterwards every L2 table, data cluster and compressed cluster of the disk lies
//! inside the file, is aligned, and sets no reserved bit; no L2 table is used twice. A file that
//! lost its end is found here, at opening, not in the middle of a build. Time is bounded by what
//! the file really stores (holes are skipped), memory by the L1 table's 32 MiB and one cluster.
//!
//! Left out: whether refcounts agree with the references, which reading does not depend on and
//! `qemu-img check` tells.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, section "Cluster mapping".

use super::header::{Header, be64, corrupt, truncated};
use crate::error::Error;
use crate::host_file::HostFile;

pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
pub(super) const L2_ZERO: u64 = 1;
const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
const REFCOUNT_RESERVED: u64 = 0x1ff;

/// How much of a table is read at once.
const CHUNK: usize = 64 * 1024;

/// Checks the tables of `file`; `data_len` is the length of the file that holds the guest's data.
///
/// Returns the guest offset of a compressed cluster of which the file may have lost some bytes:
/// its length is only known in sectors, and the file's last sector is not whole. Reading it tells.
pub(super) fn check(file: &HostFile, header: &Header, data_len: u64) -> Result<Option<u64>, Error> {
    let walk = Walk { file, header, data_len };
    let mut doubtful = None;
    walk.check_refcount_table()?;
    let mut tables = walk.l2_tables()?;
    tables.sort_unstable_by_key(|table| table.offset);
    for pair in tables.windows(2) {
        if pair[0].offset == pair[1].offset {
            return Err(corrupt(
                file,
                pair[0].offset,
                format!(
                    "the L2 table there serves both L1 entry {} and {}",
                    pair[0].l1_index, pair[1].l1_index
                ),
            ));
        }
    }
    let mut buf = vec![0; CHUNK.min(header.cluster_size() as usize)];
    for table in &tables {
        walk.check_l2_table(table, &mut buf, &mut doubtful)?;
    }
    Ok(doubtful)
}

struct L2Table {
    l1_index: u32,
    offset: u64,
}

struct Walk<'a> {
    file: &'a HostFile,
    header: &'a Header,
    data_len: u64,
}

impl Walk<'_> {
    fn check_refcount_table(&self) -> Result<(), Error> {
        let cluster_size = self.header.cluster_size();
        let len = u64::from(self.header.refcount_table_clusters) * cluster_size;
        self.for_each_entry(self.header.refcount_table_offset, len, |index, entry| {
            if entry == 0 {
                return Ok(());
            }
            let offset = entry & !REFCOUNT_RESERVED;
            if entry & REFCOUNT_RESERVED != 0 || !offset.is_multiple_of(cluster_size) {
                return Err(self.bad_entry("refcount table", index, entry));
            }
            self.check_table_inside(offset, "a refcount block")
        })
    }

    /// Returns the L2 tables; not more than fit into the file, whatever the L1 table says.
    fn l2_tables(&self) -> Result<Vec<L2Table>, Error> {
        let mut tables = Vec::new();
        let cluster_size = self.header.cluster_size();
        let len = u64::from(self.header.l1_entries) * 8;
        self.for_each_entry(self.header.l1_offset, len, |index, entry| {
            let offset = entry & OFFSET_MASK;
            if entry & L1_RESERVED != 0 || !offset.is_multiple_of(cluster_size) {
                return Err(self.bad_entry("L1 table", index, entry));
            }
            if offset == 0 {
                return Ok(());
            }
            self.check_table_inside(offset, "an L2 table")?;
            if tables.len() as u64 >= self.file.len() / cluster_size {
                return Err(corrupt(
                    self.file,
                    self.header.l1_offset,
                    "the L1 table names more L2 tables than fit into the file".into(),
                ));
            }
            tables.push(L2Table {
                // The L1 table has at most 2^22 entries.
                l1_index: index as u32,
                offset,
            });
            Ok(())
        })?;
        Ok(tables)
    }

    fn check_l2_table(
        &self,
        table: &L2Table,
        buf: &mut [u8],
        doubtful: &mut Option<u64>,
    ) -> Result<(), Error> {
        let per_table = self.header.l2_entries();
        let first_cluster = u64::from(table.l1_index) * per_table;
        let size = self.header.l2_entry_size();
        let entries_per_chunk = buf.len() as u64 / size;
        let mut entry = 0;
        while entry < per_table {
            let at = table.offset + entry * size;
            let stored = self
                .file
                .next_stored(at, table.offset + per_table * size)
                .map_err(|error| Error::io("read", error).on(self.file.path()).at(at))?;
            let Some(stored) = stored else {
                return Ok(());
            };
            entry += (stored.offset - at) / size;
            let count = entries_per_chunk.min(per_table - entry);
            let chunk = &mut buf[..(count * size) as usize];
            self.file.read_exact_at(chunk, table.offset + entry * size)?;
            for (index, bytes) in (entry..).zip(chunk.chunks_exact(size as usize)) {
                let value = be64(bytes, 0);
                let bitmap = if self.header.extended_l2 { be64(bytes, 8) } else { !0 >> 32 };
                self.check_subclusters(index, value, bitmap)?;
                let guest_offset = (first_cluster + index) << self.header.cluster_bits;
                if value != 0 && !self.check_l2_entry(index, value, bitmap, guest_offset)? {
                    *doubtful = Some(guest_offset);
                }
            }
            entry += count;
        }
        Ok(())
    }

    /// Checks the bitmap of an extended entry: the low half says what is allocated, the high half
    /// what is zero, and nothing is both.
    fn check_subclusters(&self, index: u64, entry: u64, bitmap: u64) -> Result<(), Error> {
        if entry & COMPRESSED != 0 || !self.header.extended_l2 {
            return Ok(());
        }
        let allocated = bitmap & u64::from(u32::MAX);
        let lost = allocated != 0 && entry & OFFSET_MASK == 0 && self.header.data_file.is_none();
        if entry & L2_ZERO != 0 || allocated & bitmap >> 32 != 0 || lost {
            return Err(self.bad_entry("L2 table", index, bitmap));
        }
        Ok(())
    }

    /// Returns whether the cluster is certainly whole.
    fn check_l2_entry(
        &self,
        index: u64,
        entry: u64,
        bitmap: u64,
        guest_offset: u64,
    ) -> Result<bool, Error> {
        let bad = || self.bad_entry("L2 table", index, entry);
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 || self.header.data_file.is_some() {
                return Err(bad());
            }
            let (offset, end) = compressed_extent(self.header, entry);
            if end > self.data_len.next_multiple_of(512) {
                return Err(truncated(self.file, offset, "a compressed cluster"));
            }
            return Ok(end <= self.data_len || guest_offset >= self.header.size);
        }
        let offset = entry & OFFSET_MASK;
        if entry & L2_RESERVED != 0
            || !offset.is_multiple_of(self.header.cluster_size())
            || (entry & L2_ZERO != 0 && self.header.version < 3)
            || (entry & COPIED != 0 && offset == 0 && self.header.data_file.is_none())
        {
            return Err(bad());
        }
        if entry & L2_ZERO != 0 || (offset == 0 && entry & COPIED == 0) {
            return Ok(true);
        }
        // What lies behind the disk's end, or behind the last subcluster, need not be in the file.
        let subclusters = u64::from(u32::BITS - (bitmap as u32).leading_zeros());
        let used = self
            .header
            .size
            .saturating_sub(guest_offset)
            .min(subclusters * (self.header.cluster_size() / 32));
        if used > 0 && offset + used > self.data_len {
            return Err(truncated(self.file, offset, "a data cluster"));
        }
        Ok(true)
    }

    fn check_table_inside(&self, offset: u64, what: &str) -> Result<(), Error> {
        if offset.checked_add(self.header.cluster_size()).is_none_or(|end| end > self.file.len()) {
            return Err(truncated(self.file, offset, what));
        }
        Ok(())
    }

    fn for_each_entry(
        &self,
        offset: u64,
        len: u64,
        mut visit: impl FnMut(u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut buf = vec![0; CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let chunk = &mut buf[..(len - done).min(CHUNK as u64) as usize];
            self.file.read_exact_at(chunk, offset + done)?;
            for (index, bytes) in (done / 8..).zip(chunk.chunks_exact(8)) {
                visit(index, be64(bytes, 0))?;
            }
            done += chunk.len() as u64;
        }
        Ok(())
    }

    fn bad_entry(&self, table: &str, index: u64, entry: u64) -> Error {
        Error::new(crate::ErrorKind::Corrupt, "open")
            .on(self.file.path())
            .because(format!("entry {index} of the {table} is {entry:#018x}"))
            .with_hint(format!(
                "See what is left with: qemu-img check {}",
                self.file.path().display()
            ))
    }
}

/// Returns where the compressed data of an L2 entry starts, and the end of its last sector.
pub(super) fn compressed_extent(header: &Header, entry: u64) -> (u64, u64) {
    let offset_bits = 62 - (header.cluster_bits - 8);
    let descriptor = entry & !(COPIED | COMPRESSED);
    let offset = descriptor & ((1 << offset_bits) - 1) & 0x00ff_ffff_ffff_ffff;
    let further_sectors = descriptor >> offset_bits;
    (offset, (offset / 512 + 1 + further_sectors) * 512)
}
