//! VirtualBox' VDI, version 1.1, dynamic and fixed.
//!
//! A 512-byte header, a map of little-endian 32-bit block numbers, the blocks. All fields are
//! little-endian. There is no public specification; the layout is that of VirtualBox'
//! `VDICore.h` and of QEMU's reader.

mod encode;
mod options;
mod read;

pub(crate) use encode::VdiEncoder;
pub use options::VdiOptions;
pub(crate) use read::open;

/// At byte 64 of the file.
pub(crate) const SIGNATURE: u32 = 0xbeda_107f;
/// Where the signature is.
pub(crate) const SIGNATURE_AT: usize = 64;

const TEXT: &[u8] = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
const VERSION: u32 = 0x0001_0001;
const HEADER_LEN: usize = 512;
/// The length of the versioned part, which the header itself states.
const BODY_LEN: u32 = 400;
const BLOCK: u64 = 1 << 20;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// Map entries of blocks that read as zeroes: never written, and written with zeroes.
const FREE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;
/// More blocks than VirtualBox and QEMU take.
const MAX_BLOCKS: u64 = 0x1fff_ff80;

/// The fields of the header that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: u32,
    map_offset: u32,
    data_offset: u32,
    disk_size: u64,
    block_size: u32,
    block_extra: u32,
    blocks: u32,
    allocated: u32,
    uuid: [u8; 16],
    modification_uuid: [u8; 16],
    link_uuid: [u8; 16],
    parent_uuid: [u8; 16],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, TEXT);
        put(SIGNATURE_AT, &SIGNATURE.to_le_bytes());
        put(68, &VERSION.to_le_bytes());
        put(72, &BODY_LEN.to_le_bytes());
        put(76, &self.kind.to_le_bytes());
        put(340, &self.map_offset.to_le_bytes());
        put(344, &self.data_offset.to_le_bytes());
        // Cylinders, heads and sectors at 348 stay 0: the reader derives them from the size.
        put(360, &512u32.to_le_bytes());
        put(368, &self.disk_size.to_le_bytes());
        put(376, &self.block_size.to_le_bytes());
        put(380, &self.block_extra.to_le_bytes());
        put(384, &self.blocks.to_le_bytes());
        put(388, &self.allocated.to_le_bytes());
        put(392, &self.uuid);
        put(408, &self.modification_uuid);
        put(424, &self.link_uuid);
        put(440, &self.parent_uuid);
        put(468, &512u32.to_le_bytes()); // the second geometry's sector size
        bytes
    }

    /// Returns the header, or what is wrong with it.
    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, String> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let uuid = |at: usize| std::array::from_fn(|index| bytes[at + index]);
        if word(SIGNATURE_AT) != SIGNATURE {
            return Err(format!("the signature is {:#x}, not {SIGNATURE:#x}", word(SIGNATURE_AT)));
        }
        if word(68) >> 16 != 1 || word(68) & 0xffff == 0 {
            return Err(format!(
                "the version is {}.{}, not 1.1",
                word(68) >> 16,
                word(68) & 0xffff
            ));
        }
        if word(360) != 512 {
            return Err(format!("the sector size is {}, not 512", word(360)));
        }
        Ok(Header {
            kind: word(76),
            map_offset: word(340),
            data_offset: word(344),
            disk_size: u64::from(word(368)) | u64::from(word(372)) << 32,
            block_size: word(376),
            block_extra: word(380),
            blocks: word(384),
            allocated: word(388),
            uuid: uuid(392),
            modification_uuid: uuid(408),
            link_uuid: uuid(424),
            parent_uuid: uuid(440),
        })
    }
}
