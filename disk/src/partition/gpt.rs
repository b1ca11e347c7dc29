//! The GUID partition table, UEFI specification 2.10, section 5.3.
//!
//! The primary header is tried with sectors of 512 and of 4096 bytes, then the backup in the
//! disk's last sector. A header counts only with both of its checksums right.

use super::{Guid, Partition, PartitionTable, PartitionType, Scheme, corrupt};
use crate::block::Block;
use crate::error::Error;

/// The specification asks for at least 128 entries; more than this no tool writes.
const MAX_ENTRIES: u32 = 1024;
const MAX_ENTRY_SIZE: u32 = 4096;

pub(super) fn read(disk: &dyn Block) -> Result<PartitionTable, Error> {
    let mut problems = Vec::new();
    for (from_backup, sector_size) in [(false, 512), (false, 4096), (true, 512), (true, 4096)] {
        let sectors = disk.len() / u64::from(sector_size);
        if sectors < 3 {
            continue;
        }
        let lba = if from_backup { sectors - 1 } else { 1 };
        match Header::read(disk, sector_size, lba)? {
            Ok(header) => match header.entries(disk)? {
                Ok(entries) => return header.table(disk, &entries, from_backup),
                Err(problem) => problems.push(problem),
            },
            Err(Some(problem)) => problems.push(problem),
            Err(None) => {}
        }
    }
    if problems.is_empty() {
        problems.push("no GPT header where the protective MBR promises one".into());
    }
    Err(corrupt(problems.join("; ")))
}

struct Header {
    sector_size: u32,
    lba: u64,
    first_usable: u64,
    last_usable: u64,
    disk_guid: Guid,
    entries_lba: u64,
    entry_count: u32,
    entry_size: u32,
    entries_crc: u32,
}

impl Header {
    /// Reads the header at `lba`; the inner error is what is wrong with it, `None` when there is
    /// no header at all.
    fn read(
        disk: &dyn Block,
        sector_size: u32,
        lba: u64,
    ) -> Result<Result<Header, Option<String>>, Error> {
        let mut sector = vec![0; sector_size as usize];
        disk.read_at(&mut sector, lba * u64::from(sector_size))?;
        if &sector[..8] != b"EFI PART" {
            return Ok(Err(None));
        }
        let problem = |what: String| Ok(Err(Some(format!("GPT header at sector {lba}: {what}"))));
        let size = u32_at(&sector, 12);
        if !(92..=sector_size).contains(&size) {
            return problem(format!("its size is {size}"));
        }
        let stored = u32_at(&sector, 16);
        sector[16..20].fill(0);
        let computed = crc32(&sector[..size as usize]);
        if stored != computed {
            return problem(format!("checksum is {stored:08x}, contents give {computed:08x}"));
        }
        let header = Header {
            sector_size,
            lba,
            first_usable: u64_at(&sector, 40),
            last_usable: u64_at(&sector, 48),
            disk_guid: guid_at(&sector, 56),
            entries_lba: u64_at(&sector, 72),
            entry_count: u32_at(&sector, 80),
            entry_size: u32_at(&sector, 84),
            entries_crc: u32_at(&sector, 88),
        };
        if u64_at(&sector, 24) != lba {
            return problem(format!("it says it is at sector {}", u64_at(&sector, 24)));
        }
        let sized = (128..=MAX_ENTRY_SIZE).contains(&header.entry_size);
        if !sized || !header.entry_size.is_power_of_two() || header.entry_count > MAX_ENTRIES {
            return problem(format!(
                "{} entries of {} bytes are not possible",
                header.entry_count, header.entry_size
            ));
        }
        Ok(Ok(header))
    }

    /// Reads the entry array and checks it against the header's checksum.
    fn entries(&self, disk: &dyn Block) -> Result<Result<Vec<u8>, String>, Error> {
        let len = u64::from(self.entry_count) * u64::from(self.entry_size);
        let start = self.entries_lba.checked_mul(u64::from(self.sector_size));
        let inside = start.and_then(|start| start.checked_add(len));
        let (Some(start), Some(end)) = (start, inside) else {
            return Ok(Err(self.problem("its entries lie beyond the disk")));
        };
        if end > disk.len() {
            return Ok(Err(self.problem("its entries lie beyond the disk")));
        }
        let mut entries = vec![0; len as usize];
        disk.read_at(&mut entries, start)?;
        if crc32(&entries) != self.entries_crc {
            return Ok(Err(self.problem("the checksum of its entries is wrong")));
        }
        Ok(Ok(entries))
    }

    fn problem(&self, what: &str) -> String {
        format!("GPT header at sector {}: {what}", self.lba)
    }

    fn table(
        &self,
        disk: &dyn Block,
        entries: &[u8],
        from_backup: bool,
    ) -> Result<PartitionTable, Error> {
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(entries.chunks_exact(self.entry_size as usize)) {
            let kind = guid_at(entry, 0);
            if kind == Guid::UNUSED {
                continue;
            }
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            if first > last || first < self.first_usable || last > self.last_usable {
                return Err(corrupt(format!(
                    "partition {number} has sectors {first} to {last}, usable are {} to {}",
                    self.first_usable, self.last_usable
                )));
            }
            let sector_size = u64::from(self.sector_size);
            let end = last.checked_add(1).and_then(|end| end.checked_mul(sector_size));
            if end.is_none_or(|end| end > disk.len()) {
                return Err(corrupt(format!(
                    "partition {number} ends at sector {last}, the disk has {}",
                    disk.len() / sector_size
                )));
            }
            partitions.push(Partition {
                number,
                offset: first * sector_size,
                len: (last - first + 1) * sector_size,
                kind: PartitionType::Gpt(kind),
                uuid: Some(guid_at(entry, 16).to_string()),
                name: name(&entry[56..128]),
                attributes: u64_at(entry, 48),
            });
        }
        Ok(PartitionTable {
            scheme: Scheme::Gpt,
            disk_id: Some(self.disk_guid.to_string()),
            sector_size: self.sector_size,
            from_backup,
            partitions,
        })
    }
}

/// A partition's name: UTF-16, ended by a NUL.
fn name(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
}

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    Guid(guid)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32 as in IEEE 802.3, reflected.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(!0, step)
}
