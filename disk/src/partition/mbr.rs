//! The master boot record and its chain of logical partitions.
//!
//! Numbers as Linux gives them: primary partitions keep their slot (1 to 4), logical ones count
//! from 5 in the order of the chain. The extended partition itself is not reported.

use super::{Partition, PartitionTable, PartitionType, Scheme, corrupt};
use crate::block::Block;
use crate::error::Error;

const SECTOR: u64 = 512;
/// Linux stops at 256 minor numbers.
const MAX_LOGICAL: u32 = 252;

/// A sector with the 0x55aa signature, not yet known to hold a table.
pub(super) struct BootRecord {
    signature: u32,
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

impl BootRecord {
    pub(super) fn parse(sector: &[u8; 512]) -> Option<BootRecord> {
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let u32_at = |at: usize| {
            u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
        };
        let entries = [446, 462, 478, 494].map(|at| Entry {
            flag: sector[at],
            kind: sector[at + 4],
            start: u32_at(at + 8),
            sectors: u32_at(at + 12),
        });
        Some(BootRecord { signature: u32_at(440), entries })
    }

    /// Returns whether the record only guards a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == 0xee)
    }

    /// Returns whether the sector is rather a file system's own boot sector: the same signature,
    /// a BIOS parameter block, or entries that no table has.
    pub(super) fn is_file_system(&self, sector: &[u8; 512]) -> bool {
        let named = &sector[54..59] == b"FAT12"
            || &sector[54..59] == b"FAT16"
            || &sector[82..87] == b"FAT32"
            || &sector[3..7] == b"NTFS"
            || &sector[3..8] == b"EXFAT";
        let possible = |entry: &Entry| {
            matches!(entry.flag, 0 | 0x80) && (entry.kind != 0 || entry.sectors == 0)
        };
        let empty = self.entries.iter().all(|entry| !entry.is_used());
        named || empty || !self.entries.iter().all(possible)
    }
}

pub(super) fn read(disk: &dyn Block, record: &BootRecord) -> Result<PartitionTable, Error> {
    let mut partitions = Vec::new();
    let mut extended = Vec::new();
    for (number, entry) in (1..).zip(record.entries) {
        if entry.is_used() && entry.is_extended() {
            extended.push(entry);
        } else if entry.is_used() {
            partitions.push(partition(disk, record.signature, number, 0, entry)?);
        }
    }
    let mut number = 5;
    for entry in extended {
        read_logical(disk, record.signature, entry, &mut number, &mut partitions)?;
    }
    Ok(PartitionTable {
        scheme: Scheme::Mbr,
        disk_id: Some(format!("{:08x}", record.signature)),
        sector_size: SECTOR as u32,
        from_backup: false,
        partitions,
    })
}

/// Follows the chain of extended boot records: each holds one partition, relative to itself, and
/// a link, relative to the extended partition.
fn read_logical(
    disk: &dyn Block,
    signature: u32,
    extended: Entry,
    number: &mut u32,
    partitions: &mut Vec<Partition>,
) -> Result<(), Error> {
    let base = u64::from(extended.start);
    let end = base + u64::from(extended.sectors);
    let mut at = base;
    let mut visited = Vec::new();
    loop {
        if visited.contains(&at) || visited.len() as u32 >= MAX_LOGICAL {
            return Err(corrupt("the chain of logical partitions does not end").at(at * SECTOR));
        }
        visited.push(at);
        if at >= end || (at + 1) * SECTOR > disk.len() {
            return Err(corrupt(format!(
                "a logical partition's record is at sector {at}, outside the extended partition"
            )));
        }
        let mut sector = [0; 512];
        disk.read_at(&mut sector, at * SECTOR)?;
        let Some(record) = BootRecord::parse(&sector) else {
            // An extended partition without any logical one needs no record.
            return Ok(());
        };
        let mut next = None;
        for entry in record.entries.iter().filter(|entry| entry.is_used()) {
            if entry.is_extended() {
                next = next.or(Some(base + u64::from(entry.start)));
            } else {
                partitions.push(partition(disk, signature, *number, at, *entry)?);
                *number += 1;
            }
        }
        match next {
            Some(next) => at = next,
            None => return Ok(()),
        }
    }
}

fn partition(
    disk: &dyn Block,
    signature: u32,
    number: u32,
    base: u64,
    entry: Entry,
) -> Result<Partition, Error> {
    let start = base + u64::from(entry.start);
    let end = start + u64::from(entry.sectors);
    if start == 0 || end * SECTOR > disk.len() {
        return Err(corrupt(format!(
            "partition {number} has sectors {start} to {}, the disk has {}",
            end - 1,
            disk.len() / SECTOR
        )));
    }
    Ok(Partition {
        number,
        offset: start * SECTOR,
        len: u64::from(entry.sectors) * SECTOR,
        kind: PartitionType::Mbr(entry.kind),
        uuid: Some(format!("{signature:08x}-{number:02x}")),
        name: None,
        attributes: u64::from(entry.flag >> 7),
    })
}
