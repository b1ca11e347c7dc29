//! Tells file systems by their magic numbers, as `blkid` does.

use std::fmt;

use crate::block::Block;
use crate::error::Error;

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// ext2: no journal.
    Ext2,
    /// ext3: a journal, none of ext4's features.
    Ext3,
    /// ext4.
    Ext4,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    ExFat,
    /// NTFS.
    Ntfs,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// ISO 9660.
    Iso9660,
    /// SquashFS.
    Squashfs,
    /// EROFS.
    Erofs,
    /// An LVM physical volume.
    Lvm,
    /// A LUKS-encrypted volume.
    Luks,
    /// A member of a Linux software RAID.
    Raid,
    /// Swap space.
    Swap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Fat => "FAT",
            Kind::ExFat => "exFAT",
            Kind::Ntfs => "NTFS",
            Kind::Xfs => "XFS",
            Kind::Btrfs => "btrfs",
            Kind::F2fs => "F2FS",
            Kind::Iso9660 => "ISO 9660",
            Kind::Squashfs => "SquashFS",
            Kind::Erofs => "EROFS",
            Kind::Lvm => "an LVM physical volume",
            Kind::Luks => "a LUKS volume",
            Kind::Raid => "a RAID member",
            Kind::Swap => "swap space",
        })
    }
}

/// Magic numbers with their offsets, in the order they are tried. FAT comes last: its boot sector
/// has room for others' superblocks, not the other way round.
const MAGIC: [(usize, &[u8], Kind); 17] = [
    (0, b"LUKS\xba\xbe", Kind::Luks),
    (0x218, b"LVM2 001", Kind::Lvm),
    (0, b"XFSB", Kind::Xfs),
    (0x10040, b"_BHRfS_M", Kind::Btrfs),
    (0x438, b"\x53\xef", Kind::Ext4),
    (0x400, b"\x10\x20\xf5\xf2", Kind::F2fs),
    (0x400, b"\xe2\xe1\xf5\xe0", Kind::Erofs),
    (0x8001, b"CD001", Kind::Iso9660),
    (0, b"hsqs", Kind::Squashfs),
    (0x1000, b"\xfc\x4e\x2b\xa9", Kind::Raid),
    (0xff6, b"SWAPSPACE2", Kind::Swap),
    (0xfff6, b"SWAPSPACE2", Kind::Swap),
    (3, b"NTFS    ", Kind::Ntfs),
    (3, b"EXFAT   ", Kind::ExFat),
    (54, b"FAT", Kind::Fat),
    (82, b"FAT32", Kind::Fat),
    (54, b"MSDOS", Kind::Fat),
];

/// Tells what fills `disk`; `None` when it is nothing known.
///
/// # Errors
/// What reading the disk met.
pub fn probe(disk: &dyn Block) -> Result<Option<Kind>, Error> {
    let mut head = vec![0; disk.len().min(0x10048) as usize];
    disk.read_at(&mut head, 0)?;
    let found = |&&(offset, magic, _): &&(usize, &[u8], Kind)| {
        head.get(offset..offset + magic.len()) == Some(magic)
    };
    let Some((_, _, kind)) = MAGIC.iter().find(found) else { return Ok(None) };
    if *kind != Kind::Ext4 {
        return Ok(Some(*kind));
    }
    let u32_at = |at: usize| match head.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    let (journal, incompatible, read_only) = (u32_at(0x45c) & 4 != 0, u32_at(0x460), u32_at(0x464));
    // extents, 64bit, flex_bg; huge_file, dir_nlink, extra_isize, metadata_csum.
    let modern = incompatible & 0x2c0 != 0 || read_only & 0x468 != 0;
    Ok(Some(match (modern, journal) {
        (true, _) => Kind::Ext4,
        (false, true) => Kind::Ext3,
        (false, false) => Kind::Ext2,
    }))
}
