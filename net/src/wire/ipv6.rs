//! IPv6 headers (RFC 8200).
//!
//! Of the extension headers only hop-by-hop options are read over, as multicast listener reports
//! carry them; what a router would have to interpret is refused.

use std::net::Ipv6Addr;

use crate::link::DropReason;

use super::ip::Packet;
use super::{be16, put16};

pub(crate) const HEADER_LEN: usize = 40;
/// The least MTU of a link that carries IPv6.
pub(crate) const MIN_MTU: u16 = 1280;
pub(crate) const ICMP: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// Reads the packet at the front of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Packet<'_>, DropReason> {
    if bytes.len() < HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    if bytes[0] >> 4 != 6 {
        return Err(DropReason::BadIpv6);
    }
    let bytes =
        bytes.get(..HEADER_LEN + usize::from(be16(bytes, 4))).ok_or(DropReason::Truncated)?;
    let mut header_len = HEADER_LEN;
    let mut protocol = bytes[6];
    if protocol == HOP_BY_HOP {
        let Some(&[next, units]) = bytes.get(header_len..header_len + 2) else {
            return Err(DropReason::BadIpv6);
        };
        header_len += 8 + 8 * usize::from(units);
        protocol = next;
        // The state machine of TCP is given whole packets, and options mean nothing to it.
        if header_len > bytes.len() || protocol != ICMP {
            return Err(DropReason::BadIpv6);
        }
    }
    if protocol == FRAGMENT {
        return Err(DropReason::Fragment);
    }
    Ok(Packet {
        src: address(bytes, 8).into(),
        dst: address(bytes, 24).into(),
        protocol,
        bytes,
        header_len,
    })
}

/// Reads the address at `offset`.
///
/// # Panics
/// Panics when the address is not inside `bytes`; callers have checked the header's length.
pub(crate) fn address(bytes: &[u8], offset: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[offset..offset + 16]);
    Ipv6Addr::from(octets)
}

/// Writes a header to the front of `packet`, which is as long as the packet. ICMP has the hop limit
/// that neighbour discovery demands (RFC 4861, section 6.1).
///
/// # Panics
/// Panics when `packet` is shorter than [`HEADER_LEN`] or longer than 65,535 bytes.
pub(crate) fn write(packet: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr, protocol: u8) {
    let payload_len = packet.len() - HEADER_LEN;
    let payload_len = u16::try_from(payload_len).expect("an IPv6 payload fits 16 bits");
    let header = &mut packet[..HEADER_LEN];
    header.fill(0);
    header[0] = 0x60;
    put16(header, 4, payload_len);
    header[6] = protocol;
    header[7] = if protocol == ICMP { 255 } else { 64 };
    header[8..24].copy_from_slice(&src.octets());
    header[24..40].copy_from_slice(&dst.octets());
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn packet() -> Vec<u8> {
        let mut packet = vec![7; 44];
        write(&mut packet, "fd00::15".parse().unwrap(), "2001:db8::1".parse().unwrap(), 17);
        packet
    }

    #[test]
    fn a_written_packet_reads_back_without_its_padding() {
        let mut bytes = packet();
        bytes.extend([0xee; 6]);
        let read = read(&bytes).unwrap();
        assert_eq!(read.src, "fd00::15".parse::<IpAddr>().unwrap());
        assert_eq!(read.dst, "2001:db8::1".parse::<IpAddr>().unwrap());
        assert_eq!((read.protocol, read.payload()), (17, &[7; 4][..]));
    }

    #[test]
    fn what_is_not_carried_is_refused_by_name() {
        let with = |at: usize, value: u8| {
            let mut bytes = packet();
            bytes[at] = value;
            read(&bytes).unwrap_err()
        };
        assert_eq!(read(&packet()[..39]).unwrap_err(), DropReason::Truncated);
        assert_eq!(read(&packet()[..43]).unwrap_err(), DropReason::Truncated);
        assert_eq!(with(0, 0x45), DropReason::BadIpv6);
        assert_eq!(with(6, FRAGMENT), DropReason::Fragment);
        // Options that announce more than the packet has, and options before TCP.
        assert_eq!(with(6, HOP_BY_HOP), DropReason::BadIpv6);
        let mut options = packet();
        options.extend([0; 4]);
        options[5] = 8;
        options[6] = HOP_BY_HOP;
        options[40..48].copy_from_slice(&[6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(read(&options).unwrap_err(), DropReason::BadIpv6);
        options[40] = ICMP;
        assert_eq!(read(&options).unwrap().header_len, 48);
    }
}
