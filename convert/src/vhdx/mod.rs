//! Microsoft's VHDX, dynamic ("[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format", version 8.0).
//!
//! The first mebibyte holds the file type identifier, two headers and two copies of the region
//! table; then come, each aligned to a mebibyte, the log (empty here), the metadata region, the
//! block allocation table (BAT) and the blocks. All fields are little-endian.

mod crc32c;
mod encode;
mod log;
mod options;
mod read;

use crc32c::crc32c;

pub(crate) use encode::VhdxEncoder;
pub use options::VhdxOptions;
pub(crate) use read::open;

/// The first eight bytes (section 2.2.1).
pub(crate) const MAGIC: [u8; 8] = *b"vhdxfile";

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Where the two headers are (2.2.2), and their length.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_LEN: usize = 4096;
/// Where the two region tables are (2.2.3), and their length.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_LEN: usize = 64 << 10;
const REQUIRED_REGION: u32 = 1;
/// The largest disk (2.1).
const MAX_SIZE: u64 = 64 << 40;

const BAT_REGION: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const VIRTUAL_DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const VIRTUAL_DISK_ID: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// Flags of metadata items (2.6.1.2).
const ITEM_IS_VIRTUAL_DISK: u32 = 2;
const ITEM_IS_REQUIRED: u32 = 4;
/// Flags of the file parameters (2.6.2.1).
const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// States of a block (2.5.1.1) that have data; the others read as zeroes.
const FULLY_PRESENT: u32 = 6;
const PARTIALLY_PRESENT: u32 = 7;

/// Returns a GUID's bytes as this format stores them: the first three fields little-endian.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let first = first.to_le_bytes();
    let second = second.to_le_bytes();
    let third = third.to_le_bytes();
    let rest = rest.to_be_bytes();
    let mut index = 0;
    while index < 16 {
        bytes[index] = match index {
            0..4 => first[index],
            4..6 => second[index - 4],
            6..8 => third[index - 6],
            _ => rest[index - 8],
        };
        index += 1;
    }
    bytes
}

/// Returns how many blocks one sector bitmap block covers (2.5.1).
fn chunk_ratio(sector: u64, block: u64) -> u64 {
    (sector << 23) / block
}

/// Returns the entry of a block in the BAT, behind the bitmap entries before it.
fn entry_of(block: u64, ratio: u64) -> u64 {
    block + block / ratio
}

/// Returns `bytes` with the CRC-32C at byte 4 that they have with zeroes there.
fn sealed<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let sum = crc32c(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Returns whether the CRC-32C at byte 4 is right.
fn is_sealed(bytes: &[u8]) -> bool {
    let mut cleared = bytes.to_vec();
    cleared[4..8].fill(0);
    crc32c(&cleared).to_le_bytes() == bytes[4..8]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
