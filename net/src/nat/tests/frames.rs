//! Frames built by hand, and what came back.

use std::net::{IpAddr, Ipv4Addr};

use super::{GATEWAY_MAC, GUEST_MAC};
use crate::link::Offload;
use crate::wire::checksum::Sum;
use crate::wire::{be16, be32, ethernet, icmp, ip, udp};

/// A frame from the guest to the gateway.
pub(super) fn frame(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_LEN];
    ethernet::write(&mut frame, &GATEWAY_MAC, &GUEST_MAC, ether_type);
    frame.extend(payload);
    frame
}

/// A frame that holds an IP packet of either family.
pub(super) fn ip_frame(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ip::header_len(src)];
    packet.extend(payload);
    ip::write(&mut packet, src, dst, protocol);
    frame(ip::ether_type(src), &packet)
}

pub(super) fn ipv4_frame(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip_frame(src.into(), dst.into(), protocol, payload)
}

/// A frame that holds an ICMP message, with its checksum.
pub(super) fn icmp_frame(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    message: &[u8],
) -> Vec<u8> {
    let (src, dst, mut message) = (src.into(), dst.into(), message.to_vec());
    icmp::fill_checksum(&mut message, src, dst);
    ip_frame(src, dst, icmp::protocol(src), &message)
}

/// Fills in a transport's checksum and wraps it up.
fn summed(src: IpAddr, dst: IpAddr, protocol: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
    let sum = Sum::pseudo_header(src, dst, protocol, payload.len()).add(&payload);
    payload[at..at + 2].copy_from_slice(&sum.complement());
    ip_frame(src, dst, protocol, &payload)
}

pub(super) fn datagram(
    src: impl Into<IpAddr>,
    to: (impl Into<IpAddr>, u16),
    src_port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = [&[0; udp::HEADER_LEN], payload].concat();
    udp::write(&mut bytes, src_port, to.1);
    summed(src.into(), to.0.into(), ip::UDP, 6, bytes)
}

pub(super) fn segment(
    from: (impl Into<IpAddr>, u16),
    to: (impl Into<IpAddr>, u16),
    flags: u8,
    seq: u32,
    ack: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&from.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&to.1.to_be_bytes());
    bytes[4..8].copy_from_slice(&seq.to_be_bytes());
    bytes[8..12].copy_from_slice(&ack.to_be_bytes());
    bytes[12] = 0x50;
    bytes[13] = flags;
    bytes[14..16].copy_from_slice(&60_000u16.to_be_bytes());
    bytes.extend(payload);
    summed(from.0.into(), to.0.into(), ip::TCP, 16, bytes)
}

pub(super) fn arp(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    bytes.extend(GUEST_MAC);
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    frame(ethernet::TYPE_ARP, &bytes)
}

/// A frame that the guest has been given.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) offload: Offload,
}

/// The fields of a received TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) src: (IpAddr, u16),
    pub(super) dst_port: u16,
    pub(super) flags: u8,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) payload: Vec<u8>,
}

impl Received {
    pub(super) fn packet(&self) -> ip::Packet<'_> {
        assert_eq!(self.bytes[..6], GUEST_MAC);
        assert_eq!(self.bytes[6..12], GATEWAY_MAC);
        let packet = ip::Packet::read(&self.bytes[14..]).unwrap();
        assert_eq!(be16(&self.bytes, 12), ip::ether_type(packet.src));
        packet
    }

    pub(super) fn segment(&self) -> Segment {
        let packet = self.packet();
        assert_eq!(packet.protocol, ip::TCP);
        assert!(self.offload.needs_csum || packet.has_valid_transport_checksum());
        let bytes = packet.payload();
        Segment {
            src: (packet.src, be16(bytes, 0)),
            dst_port: be16(bytes, 2),
            flags: bytes[13],
            seq: be32(bytes, 4),
            ack: be32(bytes, 8),
            payload: bytes[usize::from(bytes[12] >> 4) * 4..].to_vec(),
        }
    }
}
