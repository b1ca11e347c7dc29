//! UDP headers (RFC 768).

use super::be16;

pub(crate) const HEADER_LEN: usize = 8;
/// Offset of the checksum field, as a virtio header names it.
pub(crate) const CHECKSUM_OFFSET: usize = 6;

/// A received UDP datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// Whether the sender left the checksum out.
    pub(crate) has_no_checksum: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads the datagram that fills `bytes`; `None` when its lengths do not agree.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Datagram<'a>> {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        let len = usize::from(be16(bytes, 4));
        let payload = bytes.get(HEADER_LEN..len)?;
        Some(Datagram {
            src_port: be16(bytes, 0),
            dst_port: be16(bytes, 2),
            has_no_checksum: be16(bytes, 6) == 0,
            payload,
        })
    }
}

/// Writes a header with an empty checksum to the front of `datagram`, which is as long as it.
///
/// # Panics
/// Panics when `datagram` is shorter than [`HEADER_LEN`] or longer than 65,535 bytes.
pub(crate) fn write(datagram: &mut [u8], src_port: u16, dst_port: u16) {
    let len = u16::try_from(datagram.len()).expect("a UDP datagram fits 16 bits");
    datagram[0..2].copy_from_slice(&src_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&dst_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    datagram[6..8].fill(0);
}
