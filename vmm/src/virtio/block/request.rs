//! A block request as a plain value, parsed from a chain.
//!
//! The header is the first 16 readable bytes, the status the last writable byte, wherever the
//! driver has drawn the borders between descriptors (VIRTIO 1.2, 2.7.4.1 and 5.2.6). Whether a
//! range lies on the disk is the backend's to say.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Chain, Cursor, NotMemory, total};

const HEADER_LEN: u64 = 16;
const RANGE_LEN: u64 = 16;

/// How a request ended, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    /// Returns the status byte.
    pub fn byte(self) -> u8 {
        match self {
            Status::Ok => VIRTIO_BLK_S_OK as u8,
            Status::IoError => VIRTIO_BLK_S_IOERR as u8,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What the guest wants. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes from `offset`.
    Read { offset: u64, len: u64 },
    /// Write `len` bytes at `offset`.
    Write { offset: u64, len: u64 },
    /// Make what was written durable.
    Flush,
    /// Tell the serial number.
    GetId,
    /// Give up `count` ranges.
    Discard { count: u64 },
    /// Zero `count` ranges.
    WriteZeroes { count: u64 },
    /// A request that can only be answered so.
    Refused(Status),
}

/// A range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
}

/// A chain with no place for the status: it cannot be answered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Block request has no status byte")]
pub struct NoStatus;

/// A parsed request with the places of its data.
pub struct Parsed<'a> {
    pub request: Request,
    /// Behind the header.
    pub data_out: Cursor<'a>,
    /// Room for data, in front of the status byte.
    pub data_in_len: u64,
}

/// Parses `chain`.
pub fn parse<'a>(memory: &GuestMemory, chain: &'a Chain) -> Result<Parsed<'a>, NoStatus> {
    let data_in_len = total(&chain.writable).checked_sub(1).ok_or(NoStatus)?;
    let mut data_out = Cursor::new(&chain.readable);
    let request = match header(memory, &mut data_out) {
        Some((kind, sector)) => classify(kind, sector, data_out.remaining(), data_in_len),
        None => Request::Refused(Status::IoError),
    };
    Ok(Parsed { request, data_out, data_in_len })
}

fn header(memory: &GuestMemory, cursor: &mut Cursor<'_>) -> Option<(u32, u64)> {
    let mut bytes = [0; HEADER_LEN as usize];
    let got = cursor.read(memory, &mut bytes).ok()?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
    (got == bytes.len()).then(|| (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector)))
}

fn classify(kind: u32, sector: u64, out_len: u64, in_len: u64) -> Request {
    let io_error = Request::Refused(Status::IoError);
    let whole = |len: u64, unit: u64| len > 0 && len.is_multiple_of(unit);
    let offset = sector.checked_mul(SECTOR);
    match (kind, offset) {
        (VIRTIO_BLK_T_IN, Some(offset)) if whole(in_len, SECTOR) => {
            Request::Read { offset, len: in_len }
        }
        (VIRTIO_BLK_T_OUT, Some(offset)) if whole(out_len, SECTOR) => {
            Request::Write { offset, len: out_len }
        }
        (VIRTIO_BLK_T_FLUSH, _) => Request::Flush,
        (VIRTIO_BLK_T_GET_ID, _) => Request::GetId,
        (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES, _) => {
            let count = out_len / RANGE_LEN;
            if !whole(out_len, RANGE_LEN) || count > u64::from(MAX_RANGES) {
                io_error
            } else if kind == VIRTIO_BLK_T_DISCARD {
                Request::Discard { count }
            } else {
                Request::WriteZeroes { count }
            }
        }
        (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT, _) => io_error,
        _ => Request::Refused(Status::Unsupported),
    }
}

/// Takes the next range out of a request's data.
///
/// # Errors
/// The status to answer with: flags that do not exist, or a range that is too long.
pub fn next_range(
    memory: &GuestMemory,
    data: &mut Cursor<'_>,
    may_unmap: bool,
) -> Result<Range, Status> {
    let mut bytes = [0; RANGE_LEN as usize];
    match data.read(memory, &mut bytes) {
        Ok(len) if len == bytes.len() => {}
        Ok(_) | Err(NotMemory { .. }) => return Err(Status::IoError),
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let sectors = u32::from_le_bytes([i, j, k, l]);
    let allowed = if may_unmap { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
    if u32::from_le_bytes(flags) & !allowed != 0 {
        return Err(Status::Unsupported);
    }
    let offset = sector.checked_mul(SECTOR).filter(|_| sectors <= MAX_RANGE_SECTORS);
    Ok(Range { offset: offset.ok_or(Status::IoError)?, len: u64::from(sectors) * SECTOR })
}
