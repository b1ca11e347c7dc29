//! What the network's fuzz targets do: an input becomes frames of the guest's, whose destinations are
//! kept inside the network, so that nothing leaves the process.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use kvmbake_net::{Gso, GuestOffloads, Link, MAX_FRAME, Nat, NatConfig, Offload, Resolvers};

const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const GUEST: [u8; 4] = [10, 0, 2, 15];
/// Frames of one input.
const MAX_FRAMES: usize = 64;

fn nat() -> Nat {
    let config = NatConfig {
        resolvers: Resolvers::Fixed(Vec::new()),
        names: vec![("a.test".to_owned(), IpAddr::from([192, 0, 2, 1]))],
        hosts: None,
        search: Some(vec!["test".to_owned()]),
        ..NatConfig::default()
    };
    Nat::new(config).expect("the host gives a poller").0
}

/// Gives the network an input that is a sequence of frames: each with its length in two bytes, and one
/// of flags for what it leaves to the network.
pub fn frames(mut input: &[u8]) {
    let mut nat = nat();
    let start = Instant::now();
    let flags = input.first().copied().unwrap_or_default();
    let csum = flags & 1 != 0;
    nat.set_guest_offloads(GuestOffloads { csum, tso4: csum, tso6: csum });
    for round in 0..MAX_FRAMES {
        let Some((&[high, low, flags], rest)) = input.split_first_chunk::<3>() else { break };
        let len = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (frame, rest) = rest.split_at(len);
        input = rest;
        let mut frame = frame.to_vec();
        tame(&mut frame);
        let offload = Offload {
            needs_csum: flags & 1 != 0,
            data_valid: flags & 2 != 0,
            csum_start: if flags & 4 != 0 { 34 } else { 54 },
            csum_offset: if flags & 8 != 0 { 16 } else { 6 },
            gso: [Gso::None, Gso::None, Gso::TcpV4, Gso::TcpV6][usize::from(flags >> 4 & 3)],
            gso_size: u16::from(flags) * 8,
            hdr_len: 0,
        };
        let _ = nat.push(&frame, offload);
        drain(&mut nat, start + Duration::from_secs(round as u64));
    }
    let saved = nat.save();
    self::nat().restore(&saved).expect("what was saved reads back");
}

/// Gives the DHCP server an input as a message.
pub fn dhcp(input: &[u8]) {
    datagram(input, [0; 4], [255; 4], 68, 67);
}

/// Gives the name server an input as a query.
pub fn dns(input: &[u8]) {
    datagram(input, GUEST, [10, 0, 2, 3], 4000, 53);
}

fn datagram(input: &[u8], src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16) {
    let payload = &input[..input.len().min(1400)];
    let mut frame = [&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend((payload.len() as u16 + 28).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(src);
    frame.extend(dst);
    frame.extend(src_port.to_be_bytes());
    frame.extend(dst_port.to_be_bytes());
    frame.extend((payload.len() as u16 + 8).to_be_bytes());
    frame.extend([0; 2]);
    frame.extend(payload);
    seal(&mut frame);
    let mut nat = nat();
    let _ = nat.push(&frame, Offload { data_valid: true, ..Offload::default() });
    drain(&mut nat, Instant::now());
}

fn drain(nat: &mut Nat, now: Instant) {
    let mut buf = vec![0; MAX_FRAME];
    nat.poll(now);
    for _ in 0..4096 {
        let Some(pulled) = nat.pull(&mut buf) else { return };
        assert!(pulled.len >= 14 && pulled.len <= buf.len());
    }
    panic!("the network gives frames without end");
}

/// Makes a frame one for the gateway whose IP header passes and leads nowhere outside.
fn tame(frame: &mut [u8]) {
    if frame.len() < 34 {
        return;
    }
    frame[..6].copy_from_slice(&GATEWAY_MAC);
    match [frame[12], frame[13]] {
        [8, 0] => {
            frame[30..33].copy_from_slice(&[10, 0, 2]);
            seal(frame);
        }
        [0x86, 0xdd] if frame.len() >= 54 && frame[38] != 0xff => {
            frame[38..46].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0]);
        }
        _ => {}
    }
}

/// Gives an IPv4 header its checksum (RFC 1071).
fn seal(frame: &mut [u8]) {
    let end = (14 + usize::from(frame[14] & 15).max(5) * 4).min(frame.len() & !1);
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..end]
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !(sum as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}
