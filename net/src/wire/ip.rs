//! What IPv4 and IPv6 packets have in common, so that the protocols above need not tell them apart.

use std::net::IpAddr;

use crate::link::DropReason;

use super::checksum::Sum;
use super::{ethernet, ipv4, ipv6};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A received packet whose header has been checked; never a fragment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) src: IpAddr,
    /// Of the same family as `src`.
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// The whole packet, without what padding the frame had.
    pub(crate) bytes: &'a [u8],
    /// Length in bytes of the header with its options.
    pub(crate) header_len: usize,
}

impl<'a> Packet<'a> {
    /// Reads the packet at the front of `bytes`, whose version is in its first four bits.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Packet<'a>, DropReason> {
        match bytes.first().map(|first| first >> 4) {
            Some(6) => ipv6::read(bytes),
            _ => ipv4::read(bytes),
        }
    }

    /// Returns what follows the header.
    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    /// Returns how many hops the packet may still go.
    pub(crate) fn hops(&self) -> u8 {
        match self.src {
            IpAddr::V4(_) => self.bytes[8],
            IpAddr::V6(_) => self.bytes[7],
        }
    }

    /// Whether no router may cut the packet up.
    pub(crate) fn forbids_fragments(&self) -> bool {
        match self.src {
            IpAddr::V4(_) => self.bytes[6] & 0x40 != 0,
            IpAddr::V6(_) => true,
        }
    }

    /// Whether the payload's checksum is right, its protocol's pseudo-header included.
    pub(crate) fn has_valid_transport_checksum(&self) -> bool {
        let payload = self.payload();
        Sum::pseudo_header(self.src, self.dst, self.protocol, payload.len()).add(payload).is_valid()
    }
}

/// Returns the length in bytes of the header that [`write`] writes for a family.
pub(crate) fn header_len(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    }
}

/// Returns the EtherType of a family.
pub(crate) fn ether_type(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => ethernet::TYPE_IPV4,
        IpAddr::V6(_) => ethernet::TYPE_IPV6,
    }
}

/// Returns the two addresses of a packet that [`write`] or the state machine of TCP has written.
///
/// # Panics
/// Panics when `packet` is shorter than its header.
pub(crate) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    match packet[0] >> 4 {
        6 => (ipv6::address(packet, 8).into(), ipv6::address(packet, 24).into()),
        _ => (ipv4::address(packet, 12).into(), ipv4::address(packet, 16).into()),
    }
}

/// Writes a header without options to the front of `packet`, which is as long as the packet.
///
/// # Panics
/// Panics when `packet` is shorter than its header or longer than 65,535 bytes, or when the
/// addresses are of two families.
pub(crate) fn write(packet: &mut [u8], src: IpAddr, dst: IpAddr, protocol: u8) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4::write(packet, src, dst, protocol),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6::write(packet, src, dst, protocol),
        _ => unreachable!("a packet has addresses of one family"),
    }
}
