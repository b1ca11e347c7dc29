//! VMware's VMDK ("Virtual Disk Format 5.0").
//!
//! monolithicSparse is one file: a sparse extent header of one sector, an embedded text
//! descriptor, the redundant and the primary grain directory each followed by its grain tables,
//! and the grains. streamOptimized has its grains compressed and its tables behind them.
//! monolithicFlat and the split kinds are a descriptor that names other files. All fields are
//! little-endian, all places are sector numbers.

mod descriptor;
mod flat;
mod options;
mod read;
mod sparse;
mod split;
mod stream;
mod tables;

use crate::encode::{DiskInfo, Encoder};
use crate::export::Target;

pub(crate) use options::DEFAULT_LEVEL;
pub use options::{Adapter, Subformat, VmdkOptions};
pub(crate) use read::open;
pub(crate) use split::named_extents;
pub(crate) use stream::StreamEncoder;

/// Returns the encoder that the options ask for.
pub(crate) fn plan(
    disk: &DiskInfo,
    target: &Target,
    options: &VmdkOptions,
) -> Result<Box<dyn Encoder>, String> {
    Ok(match options.kind() {
        Subformat::MonolithicSparse => {
            Box::new(sparse::SparseEncoder::plan(disk, &target.name, options)?)
        }
        Subformat::StreamOptimized => {
            Box::new(StreamEncoder::plan(disk, &target.name, options, 0)?)
        }
        Subformat::MonolithicFlat => Box::new(flat::FlatEncoder::plan(disk, target, options)?),
    })
}

/// Returns the name of the second file of an image that has one.
pub(crate) fn extent_name(name: &str, options: &VmdkOptions) -> Option<String> {
    let stem = name.strip_suffix(".vmdk").unwrap_or(name);
    (options.kind() == Subformat::MonolithicFlat).then(|| format!("{stem}-flat.vmdk"))
}

/// Returns the disk's sectors, if the format can hold them.
fn capacity(disk: &DiskInfo) -> Result<u64, String> {
    let sectors = disk.virtual_size.div_ceil(SECTOR);
    if sectors == 0 || sectors > MAX_SECTORS {
        return Err(format!(
            "{} bytes are not between 1 byte and {} TiB",
            disk.virtual_size,
            MAX_SECTORS >> 31
        ));
    }
    Ok(sectors)
}

/// The first four bytes of a sparse extent.
pub(crate) const MAGIC: [u8; 4] = *b"KDMV";
/// The first bytes of a descriptor, embedded or a file of its own.
pub(crate) const DESCRIPTOR_MAGIC: &[u8] = b"# Disk DescriptorFile";

const SECTOR: u64 = 512;
const GRAIN: u64 = 64 << 10;
const GRAIN_SECTORS: u64 = GRAIN / SECTOR;
/// Where an embedded descriptor is, and how long.
const DESCRIPTOR: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// As far as the readers checked here go.
const MAX_SECTORS: u64 = 1 << 36;
/// Entries of a grain table.
const TABLE_ENTRIES: u64 = 512;
const TABLE_SECTORS: u64 = TABLE_ENTRIES * 4 / SECTOR;
/// The header's line-end bytes, which a transfer as text would damage.
const LINE_ENDS: [u8; 4] = *b"\n \r\n";
const FLAG_LINE_ENDS: u32 = 1;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

/// The sparse extent header; sizes and places in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor: u64,
    descriptor_len: u64,
    table_entries: u32,
    redundant_directory: u64,
    directory: u64,
    overhead: u64,
    compression: u16,
}

impl Header {
    fn encode(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(4, &self.version.to_le_bytes());
        put(8, &self.flags.to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(20, &self.grain.to_le_bytes());
        put(28, &self.descriptor.to_le_bytes());
        put(36, &self.descriptor_len.to_le_bytes());
        put(44, &self.table_entries.to_le_bytes());
        put(48, &self.redundant_directory.to_le_bytes());
        put(56, &self.directory.to_le_bytes());
        put(64, &self.overhead.to_le_bytes());
        put(73, &LINE_ENDS);
        put(77, &self.compression.to_le_bytes());
        bytes
    }

    /// Returns the header, or what is wrong with it.
    fn decode(bytes: &[u8; SECTOR as usize]) -> Result<Header, String> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..4] != MAGIC {
            return Err("the sparse extent header is missing".to_owned());
        }
        let flags = word(8);
        if flags & FLAG_LINE_ENDS != 0 && bytes[73..77] != LINE_ENDS {
            return Err("its line ends were changed, as by a transfer in text mode".to_owned());
        }
        Ok(Header {
            version: word(4),
            flags,
            capacity: long(12),
            grain: long(20),
            descriptor: long(28),
            descriptor_len: long(36),
            table_entries: word(44),
            redundant_directory: long(48),
            directory: long(56),
            overhead: long(64),
            compression: u16::from_le_bytes([bytes[77], bytes[78]]),
        })
    }
}
