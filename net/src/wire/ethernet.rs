//! Ethernet II headers (IEEE 802.3, clause 3.2.6).

use crate::link::DropReason;

use super::be16;

pub(crate) const HEADER_LEN: usize = 14;
pub(crate) const TYPE_IPV4: u16 = 0x0800;
pub(crate) const TYPE_ARP: u16 = 0x0806;
pub(crate) const TYPE_IPV6: u16 = 0x86dd;
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// The header of a received frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) dst: Mac,
    pub(crate) src: Mac,
    pub(crate) ether_type: u16,
}

/// Reads a frame's header; the source is checked to be a station's.
pub(crate) fn read(frame: &[u8]) -> Result<Header, DropReason> {
    let (Some(dst), Some(src)) = (frame.first_chunk::<6>(), frame.get(6..12)) else {
        return Err(DropReason::Truncated);
    };
    if frame.len() < HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    let mut source = [0; 6];
    source.copy_from_slice(src);
    if is_group(&source) || source == [0; 6] {
        return Err(DropReason::BadMac);
    }
    Ok(Header { dst: *dst, src: source, ether_type: be16(frame, 12) })
}

/// Writes a header to the front of `frame`.
///
/// # Panics
/// Panics when `frame` is shorter than [`HEADER_LEN`].
pub(crate) fn write(frame: &mut [u8], dst: &Mac, src: &Mac, ether_type: u16) {
    frame[..6].copy_from_slice(dst);
    frame[6..12].copy_from_slice(src);
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
}

/// Whether the address is a multicast or the broadcast address.
pub(crate) fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}
