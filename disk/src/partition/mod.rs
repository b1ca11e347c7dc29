//! Partition tables: where each partition of a disk lies, and what the table says about it.
//!
//! GPT (UEFI specification 2.10, section 5), with the backup where the primary is damaged, and
//! MBR with its chain of logical partitions. A disk without a table is reported as one partition,
//! number 0, over the whole disk. Tables are hostile: every number is checked against the disk,
//! chains and counts are bounded, and partitions that overlap are refused.
//!
//! Left out: writing, BSD disk labels, Apple and Sun tables.

mod gpt;
mod guid;
mod mbr;
mod slice;

use std::fmt;

pub use guid::Guid;
pub use slice::Slice;

use crate::block::Block;
use crate::error::{Error, ErrorKind};

const OPERATION: &str = "read the partition table";

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table.
    Gpt,
    /// A master boot record.
    Mbr,
    /// No table: the whole disk is one file system, or empty.
    Whole,
}

/// What the table says a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionType {
    /// A GPT type GUID.
    Gpt(Guid),
    /// An MBR type byte.
    Mbr(u8),
    /// The whole disk.
    Whole,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The number as Linux and GRUB count it, from 1; logical partitions of an MBR from 5.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: PartitionType,
    /// `PARTUUID` as Linux writes it: the GPT's partition GUID, or disk signature and number.
    pub uuid: Option<String>,
    /// The GPT partition name (`PARTLABEL`).
    pub name: Option<String>,
    /// The GPT attribute bits; for MBR, bit 0 is the active flag.
    pub attributes: u64,
}

/// A disk's partition table; see [`partitions`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// How the disk is divided.
    pub scheme: Scheme,
    /// The disk's GUID, or the MBR's signature as eight hexadecimal digits.
    pub disk_id: Option<String>,
    /// The logical sector size that the table counts in.
    pub sector_size: u32,
    /// Whether the primary GPT is damaged and the backup was read.
    pub from_backup: bool,
    /// The partitions in the order of their numbers.
    pub partitions: Vec<Partition>,
}

impl PartitionType {
    /// Returns whether it is an EFI system partition.
    pub fn is_efi_system(&self) -> bool {
        match self {
            PartitionType::Gpt(guid) => *guid == Guid::EFI_SYSTEM,
            PartitionType::Mbr(kind) => *kind == 0xef,
            PartitionType::Whole => false,
        }
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionType::Gpt(guid) => guid.fmt(f),
            PartitionType::Mbr(kind) => write!(f, "{kind:#04x}"),
            PartitionType::Whole => f.write_str("whole disk"),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Gpt => "GPT",
            Scheme::Mbr => "MBR",
            Scheme::Whole => "no partition table",
        })
    }
}

/// Reads the disk's partition table.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when there is a table and it contradicts itself or the disk's size;
/// otherwise what reading the disk met.
pub fn partitions(disk: &dyn Block) -> Result<PartitionTable, Error> {
    if disk.len() < 512 {
        return Ok(whole(disk));
    }
    let mut sector = [0; 512];
    disk.read_at(&mut sector, 0)?;
    let Some(record) = mbr::BootRecord::parse(&sector) else {
        return Ok(whole(disk));
    };
    let table = if record.is_protective() {
        gpt::read(disk)?
    } else if record.is_file_system(&sector) {
        whole(disk)
    } else {
        mbr::read(disk, &record)?
    };
    check_overlaps(&table.partitions)?;
    Ok(table)
}

fn whole(disk: &dyn Block) -> PartitionTable {
    let partition = Partition {
        number: 0,
        offset: 0,
        len: disk.len(),
        kind: PartitionType::Whole,
        uuid: None,
        name: None,
        attributes: 0,
    };
    PartitionTable {
        scheme: Scheme::Whole,
        disk_id: None,
        sector_size: 512,
        from_backup: false,
        partitions: vec![partition],
    }
}

fn check_overlaps(partitions: &[Partition]) -> Result<(), Error> {
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.offset);
    for pair in sorted.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            return Err(corrupt(format!(
                "partitions {} and {} overlap",
                pair[0].number, pair[1].number
            ))
            .at(pair[1].offset));
        }
    }
    Ok(())
}

fn corrupt(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION).because(reason)
}

#[cfg(test)]
mod tests;
