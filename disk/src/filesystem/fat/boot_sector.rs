//! The boot sector: where FAT, root directory and clusters lie.

use crate::block::Block;
use crate::error::{Error, ErrorKind};

/// The width of a FAT entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// A volume's layout in bytes, checked against the disk.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub width: Width,
    pub fat_offset: u64,
    pub fat_len: u64,
    /// The root directory of FAT12 and FAT16.
    pub root_offset: u64,
    pub root_len: u64,
    /// The root directory of FAT32.
    pub root_cluster: u32,
    pub data_offset: u64,
    pub cluster_size: u64,
    /// How many clusters there are; they are numbered from 2.
    pub clusters: u32,
    pub serial: u32,
    pub label: Option<String>,
}

impl Geometry {
    pub(super) fn read(disk: &dyn Block) -> Result<Geometry, Error> {
        let fail = |kind, reason: String| {
            Err(Error::new(kind, "open the FAT file system").because(reason))
        };
        if disk.len() < 512 {
            return fail(ErrorKind::Truncated, format!("the disk has {} bytes", disk.len()));
        }
        let mut sector = [0; 512];
        disk.read_at(&mut sector, 0)?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        let bytes_per_sector = u16_at(11);
        let per_cluster = u64::from(sector[13]);
        let (reserved, fats) = (u16_at(14), u64::from(sector[16]));
        if !matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
            || !per_cluster.is_power_of_two()
            || reserved == 0
            || !(1..=4).contains(&fats)
        {
            return fail(
                ErrorKind::Corrupt,
                format!(
                    "{bytes_per_sector} bytes a sector, {per_cluster} sectors a cluster, \
                     {reserved} reserved sectors and {fats} FATs are not possible"
                ),
            );
        }
        let or = |short: u64, long: u64| if short != 0 { short } else { long };
        let is_fat32 = u16_at(22) == 0;
        let fat_sectors = or(u16_at(22), u32_at(36));
        let total = or(u16_at(19), u32_at(32));
        if total * bytes_per_sector > disk.len() {
            return fail(
                ErrorKind::Truncated,
                format!(
                    "it has {total} sectors of {bytes_per_sector} bytes, the disk {} bytes",
                    disk.len()
                ),
            );
        }
        let root_len = u16_at(17) * 32;
        let root_sector = reserved + fats * fat_sectors;
        let data_sector = root_sector + root_len.div_ceil(bytes_per_sector);
        let fat_len = fat_sectors * bytes_per_sector;
        let Some(data) = total.checked_sub(data_sector).filter(|_| fat_len >= 4) else {
            return fail(
                ErrorKind::Corrupt,
                format!("clusters start at sector {data_sector} of {total}"),
            );
        };
        let clusters = data / per_cluster;
        let width = match (is_fat32, clusters < 4085) {
            (true, _) => Width::Bits32,
            (false, true) => Width::Bits12,
            (false, false) => Width::Bits16,
        };
        // No more clusters than the FAT has entries for, and than the entry's width can name.
        let (entries, most) = match width {
            Width::Bits12 => (fat_len * 2 / 3, 0xff5),
            Width::Bits16 => (fat_len / 2, 0xfff5),
            Width::Bits32 => (fat_len / 4, 0x0fff_fff5),
        };
        let clusters = clusters.min(entries.saturating_sub(2)).min(most);
        // The extended boot signature tells whether serial number and label are there.
        let extended = if is_fat32 { 66 } else { 38 };
        let named = sector[extended] == 0x29;
        Ok(Geometry {
            width,
            fat_offset: reserved * bytes_per_sector,
            fat_len,
            root_offset: root_sector * bytes_per_sector,
            root_len,
            root_cluster: u32_at(44) as u32,
            data_offset: data_sector * bytes_per_sector,
            cluster_size: per_cluster * bytes_per_sector,
            clusters: clusters as u32,
            serial: if named || sector[extended] == 0x28 { u32_at(extended + 1) as u32 } else { 0 },
            label: named
                .then(|| super::directory::padded(&sector[extended + 5..extended + 16]))
                .flatten(),
        })
    }

    /// Returns where `cluster` starts; it is one of `2..clusters + 2`.
    pub(super) fn offset_of(&self, cluster: u32) -> u64 {
        self.data_offset + u64::from(cluster.saturating_sub(2)) * self.cluster_size
    }
}
