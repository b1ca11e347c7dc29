//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use crate::link::DropReason;

use super::checksum::Sum;
use super::ip::Packet;
use super::{be16, be32, put16};

pub(crate) const HEADER_LEN: usize = 20;
pub(crate) const ICMP: u8 = 1;

/// Reads the packet at the front of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Packet<'_>, DropReason> {
    if bytes.len() < HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    let header_len = usize::from(bytes[0] & 0x0f) * 4;
    let total_len = usize::from(be16(bytes, 2));
    if bytes[0] >> 4 != 4 || header_len < HEADER_LEN || total_len < header_len {
        return Err(DropReason::BadIpv4);
    }
    if bytes.len() < total_len {
        return Err(DropReason::Truncated);
    }
    if !Sum::default().add(&bytes[..header_len]).is_valid() {
        return Err(DropReason::BadIpv4);
    }
    if be16(bytes, 6) & 0x3fff != 0 {
        return Err(DropReason::Fragment);
    }
    Ok(Packet {
        src: address(bytes, 12).into(),
        dst: address(bytes, 16).into(),
        protocol: bytes[9],
        bytes: &bytes[..total_len],
        header_len,
    })
}

/// Reads the address at `offset`.
///
/// # Panics
/// Panics when the address is not inside `bytes`; callers have checked the header's length.
pub(crate) fn address(bytes: &[u8], offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(be32(bytes, offset))
}

/// Writes a header without options to the front of `packet`, which is as long as the packet.
///
/// # Panics
/// Panics when `packet` is shorter than [`HEADER_LEN`] or longer than 65,535 bytes.
pub(crate) fn write(packet: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) {
    let total_len = u16::try_from(packet.len()).expect("an IPv4 packet fits 16 bits");
    let header = &mut packet[..HEADER_LEN];
    header.fill(0);
    header[0] = 0x45;
    put16(header, 2, total_len);
    put16(header, 6, 0x4000);
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = Sum::default().add(header).complement();
    header[10..12].copy_from_slice(&sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::UDP;

    const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const DST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn packet() -> Vec<u8> {
        let mut packet = vec![7; 24];
        write(&mut packet, SRC, DST, UDP);
        packet
    }

    #[test]
    fn a_written_packet_reads_back_without_its_padding() {
        let mut bytes = packet();
        bytes.extend([0xee; 6]);
        let packet = read(&bytes).unwrap();
        assert_eq!((packet.src, packet.dst, packet.protocol), (SRC.into(), DST.into(), UDP));
        assert_eq!(packet.payload(), [7; 4]);
    }

    #[test]
    fn damaged_headers_are_refused_by_name() {
        let mut bytes = packet();
        bytes[15] ^= 1;
        assert_eq!(read(&bytes).unwrap_err(), DropReason::BadIpv4);
        assert_eq!(read(&packet()[..23]).unwrap_err(), DropReason::Truncated);
        assert_eq!(read(&packet()[..9]).unwrap_err(), DropReason::Truncated);
        let mut bytes = packet();
        bytes[0] = 0x44;
        assert_eq!(read(&bytes).unwrap_err(), DropReason::BadIpv4);
    }

    #[test]
    fn a_fragment_is_refused_as_one() {
        for field in [[0x20, 0x00], [0x00, 0x10]] {
            let mut bytes = packet();
            bytes[6..8].copy_from_slice(&field);
            bytes[10..12].fill(0);
            let sum = Sum::default().add(&bytes[..20]).complement();
            bytes[10..12].copy_from_slice(&sum);
            assert_eq!(read(&bytes).unwrap_err(), DropReason::Fragment);
        }
    }
}
