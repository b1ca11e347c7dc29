//! Microsoft's VHD, dynamic and fixed ("Virtual Hard Disk Image Format Specification",
//! version 1.0, 2006).
//!
//! A footer of 512 bytes closes the file; a dynamic image begins with a copy of it, then has a
//! header of 1024 bytes, the block allocation table (BAT) of big-endian sector numbers, and
//! blocks, each a sector bitmap followed by its data. All fields are big-endian.
//!
//! # Which size readers believe
//! Hyper-V, Azure, VirtualBox and 7-Zip take the footer's current size. Virtual PC takes the
//! cylinder/head/sector geometry, which cannot express most sizes; QEMU decides by the creator
//! application: `vpc ` and `qemu` mean geometry, everything else (older releases: a list with
//! `win `, `qem2`, `d2v `) current size, and the largest geometry always means current size. We
//! write creator `win `, and the specification's geometry where it expresses the size exactly,
//! else the largest one, so no reader sees another size than the exact one.

mod encode;
mod fixed;
mod options;
mod read;

use crate::encode::{DiskInfo, Encoder, Identity};

pub use options::{Subformat, VhdOptions};
pub(crate) use read::open;

/// Begins the footer and its copy.
pub(crate) const COOKIE: [u8; 8] = *b"conectix";
/// Bytes of the footer.
pub(crate) const FOOTER_LEN: usize = 512;

const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
const HEADER_LEN: usize = 1024;
const SECTOR: u64 = 512;
const BLOCK: u64 = 2 << 20;
const BITMAP: u64 = BLOCK / SECTOR / 8;
const FREE: u32 = u32::MAX;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
/// The largest disk: sector numbers have 32 bits, and Hyper-V stops here.
const MAX_SIZE: u64 = 2040 << 30;
/// The geometry that means "see the current size".
const LARGEST_GEOMETRY: (u16, u8, u8) = (65535, 16, 255);

/// Seconds from 1970 to 2000, where the time stamps of this format begin.
const YEAR_2000: u64 = 946_684_800;

/// Returns the encoder that the options ask for.
pub(crate) fn plan(disk: &DiskInfo, options: &VhdOptions) -> Result<Box<dyn Encoder>, String> {
    Ok(match options.subformat {
        Subformat::Dynamic => Box::new(encode::VhdEncoder::plan(disk)?),
        Subformat::Fixed => Box::new(fixed::FixedEncoder::plan(disk)?),
    })
}

/// Returns the time stamp: 0 (2000-01-01) unless the caller stated one.
fn time(identity: &Identity) -> u32 {
    let time = identity.time().unwrap_or(YEAR_2000).saturating_sub(YEAR_2000);
    u32::try_from(time).unwrap_or(u32::MAX)
}

/// The fields of the footer that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Footer {
    data_offset: u64,
    time: u32,
    creator: [u8; 4],
    size: u64,
    geometry: (u16, u8, u8),
    kind: u32,
    uuid: [u8; 16],
}

impl Footer {
    fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &COOKIE);
        put(8, &2u32.to_be_bytes()); // features: the reserved bit that is always set
        put(12, &0x0001_0000u32.to_be_bytes());
        put(16, &self.data_offset.to_be_bytes());
        put(24, &self.time.to_be_bytes());
        put(28, &self.creator);
        put(32, &0x000a_0000u32.to_be_bytes());
        put(36, b"Wi2k");
        put(40, &self.size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        put(56, &self.geometry.0.to_be_bytes());
        put(58, &[self.geometry.1, self.geometry.2]);
        put(60, &self.kind.to_be_bytes());
        put(68, &self.uuid);
        let sum = checksum(&bytes);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Returns the footer, or what is wrong with it.
    fn decode(bytes: &[u8; FOOTER_LEN]) -> Result<Footer, String> {
        if bytes[..8] != COOKIE {
            return Err("there is no footer".to_owned());
        }
        let (stated, sum) = stated_checksum(bytes, 64);
        if stated != sum {
            return Err(format!("the footer's checksum is {stated:#x}, its bytes give {sum:#x}"));
        }
        if word(bytes, 12) >> 16 != 1 {
            return Err(format!("the file format version is {:#x}, not 1.0", word(bytes, 12)));
        }
        Ok(Footer {
            data_offset: long(bytes, 16),
            time: word(bytes, 24),
            creator: std::array::from_fn(|index| bytes[28 + index]),
            size: long(bytes, 48),
            geometry: (u16::from_be_bytes([bytes[56], bytes[57]]), bytes[58], bytes[59]),
            kind: word(bytes, 60),
            uuid: std::array::from_fn(|index| bytes[68 + index]),
        })
    }

    /// Returns the virtual size as QEMU and Hyper-V see it.
    fn virtual_size(&self) -> u64 {
        let (cylinders, heads, sectors) = self.geometry;
        let by_geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * SECTOR;
        let believes_geometry = [*b"vpc ", *b"qemu"].contains(&self.creator);
        if believes_geometry && self.geometry != LARGEST_GEOMETRY { by_geometry } else { self.size }
    }
}

/// The fields of the dynamic header that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DynamicHeader {
    table_offset: u64,
    entries: u32,
    block_size: u32,
}

impl DynamicHeader {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &HEADER_COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.table_offset.to_be_bytes());
        put(24, &0x0001_0000u32.to_be_bytes());
        put(28, &self.entries.to_be_bytes());
        put(32, &self.block_size.to_be_bytes());
        let sum = checksum(&bytes);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<DynamicHeader, String> {
        if bytes[..8] != HEADER_COOKIE {
            return Err("the dynamic header's cookie is missing".to_owned());
        }
        let (stated, sum) = stated_checksum(bytes, 36);
        if stated != sum {
            return Err(format!(
                "the dynamic header's checksum is {stated:#x}, its bytes give {sum:#x}"
            ));
        }
        Ok(DynamicHeader {
            table_offset: long(bytes, 16),
            entries: word(bytes, 28),
            block_size: word(bytes, 32),
        })
    }
}

/// Returns the specification's checksum: the ones' complement of the sum of all bytes.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Returns the checksum stored at `at` and the one that the bytes without it have.
fn stated_checksum<const N: usize>(bytes: &[u8; N], at: usize) -> (u32, u32) {
    let mut cleared = *bytes;
    cleared[at..at + 4].fill(0);
    (word(bytes, at), checksum(&cleared))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// Returns the geometry by the specification's appendix "CHS Calculation" where it gives exactly
/// `sectors`, else the largest.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let cylinder_heads_of = |per_track: u64| sectors / per_track;
    let (per_track, heads) = if sectors >= 65535 * 16 * 63 {
        (255, 16)
    } else {
        let heads = cylinder_heads_of(17).div_ceil(1024).max(4);
        if cylinder_heads_of(17) < heads * 1024 && heads <= 16 {
            (17, heads)
        } else if cylinder_heads_of(31) < 16 * 1024 {
            (31, 16)
        } else {
            (63, 16)
        }
    };
    let cylinders = sectors / per_track / heads;
    if cylinders < 65536 && cylinders * heads * per_track == sectors {
        (cylinders as u16, heads as u8, per_track as u8)
    } else {
        LARGEST_GEOMETRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_exact_or_the_largest() {
        // 1000 cylinders of 4 heads and 17 sectors; 65535 of 16 and 255 (about 127 GiB).
        assert_eq!(geometry(1000 * 4 * 17), (1000, 4, 17));
        assert_eq!(geometry(65535 * 16 * 255), LARGEST_GEOMETRY);
        for sectors in [1, 2048, 16 << 21, 4 << 30, MAX_SIZE / SECTOR] {
            let (cylinders, heads, per_track) = geometry(sectors);
            let product = u64::from(cylinders) * u64::from(heads) * u64::from(per_track);
            assert!(product == sectors || (cylinders, heads, per_track) == LARGEST_GEOMETRY);
        }
    }

    #[test]
    fn footer_and_header_round_trip_and_notice_damage() {
        let footer = Footer {
            data_offset: 512,
            time: 77,
            creator: *b"win ",
            size: 0x1234_5600,
            geometry: (1, 2, 3),
            kind: DYNAMIC,
            uuid: [7; 16],
        };
        let mut bytes = footer.encode();
        assert_eq!(Footer::decode(&bytes), Ok(footer));
        bytes[50] ^= 1;
        assert!(Footer::decode(&bytes).unwrap_err().contains("checksum"));
        let header = DynamicHeader { table_offset: 1536, entries: 9, block_size: 2 << 20 };
        assert_eq!(DynamicHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn only_virtual_pc_and_old_qemu_files_go_by_geometry() {
        let mut footer = Footer {
            data_offset: 512,
            time: 77,
            creator: *b"qemu",
            size: 1 << 20,
            geometry: (10, 4, 17),
            kind: DYNAMIC,
            uuid: [0; 16],
        };
        assert_eq!(footer.virtual_size(), 680 * 512);
        footer.geometry = LARGEST_GEOMETRY;
        assert_eq!(footer.virtual_size(), 1 << 20);
        footer.geometry = (10, 4, 17);
        footer.creator = *b"wa\0\0";
        assert_eq!(footer.virtual_size(), 1 << 20);
    }
}
