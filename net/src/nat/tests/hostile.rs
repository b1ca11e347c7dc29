//! A guest that means harm: floods and frames made at random. Nothing here leaves the process, as
//! every destination lies in the network and leads to a service or nowhere.

use super::ipv6::{DNS6, GATEWAY6, GUEST6, LINK_LOCAL};
use super::tcp::Peer;
use super::*;

/// A small generator (PCG), so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        let state = self.0;
        self.0 = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (((state >> 18) ^ state) >> 27) as u32;
        mixed.rotate_right((state >> 59) as u32)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    /// A number likely to be at an edge of something.
    fn edge(&mut self) -> u32 {
        let base = [0, 1, 0xff, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, u32::MAX][self.below(8)];
        base.wrapping_add(self.next() % 5).wrapping_sub(2)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next() as u8);
    }
}

fn drain(bench: &mut Bench, buf: &mut [u8]) {
    bench.nat.poll(bench.now);
    while let Some(pulled) = bench.nat.pull(buf) {
        assert!(pulled.len <= buf.len());
    }
    if let Some(deadline) = bench.nat.deadline(bench.now) {
        assert!(deadline <= bench.now + Duration::from_secs(400));
    }
}

/// Makes a frame's IP header pass, and keeps its destination inside the network.
fn tame(frame: &mut [u8]) {
    if frame.len() >= 54 && frame[12..14] == [0x86, 0xdd] {
        let prefix = [0xfd, 0, 0, 0, 0, 0, 0, 0];
        let len = (frame.len() - 54) as u16;
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame[38..46].copy_from_slice(&prefix);
    }
    if frame.len() < 34 || frame[12..14] != [8, 0] {
        return;
    }
    let header_len = (usize::from(frame[14] & 15) * 4).clamp(20, frame.len() - 14);
    frame[30..33].copy_from_slice(&[10, 0, 2]);
    frame[24..26].fill(0);
    let sum = crate::wire::checksum::Sum::default().add(&frame[14..14 + header_len]);
    frame[24..26].copy_from_slice(&sum.complement());
}

#[test]
fn frames_of_random_bytes_do_no_harm() {
    let mut bench = Bench::new(|_| {});
    let mut random = Random(1);
    let mut buf = vec![0; MAX_FRAME];
    for round in 0..100_000 {
        let mut bytes = vec![0; random.below(if round % 100 == 0 { 3000 } else { 120 })];
        random.fill(&mut bytes);
        if bytes.len() >= 14 && round % 4 != 0 {
            ethernet::write(
                &mut bytes,
                &GATEWAY_MAC,
                &GUEST_MAC,
                [0x800, 0x806, 0x86dd][round % 3],
            );
        }
        tame(&mut bytes);
        let _ = bench.push(&bytes);
        if round % 16 == 0 {
            drain(&mut bench, &mut buf);
        }
    }
    assert_eq!(bench.activity().frames_from_guest, 100_000);
}

#[test]
fn good_frames_with_bad_bytes_do_no_harm() {
    let mut bench = Bench::new(|_| {});
    let mut random = Random(2);
    let mut buf = vec![0; MAX_FRAME];
    let mut dhcp = vec![0; 300];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[28..34].copy_from_slice(&GUEST_MAC);
    dhcp[236..243].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 3]);
    let mut options = segment((GUEST, 4001), (SERVICE, 80), 2, 9, 0, &[2, 4, 0, 0, 3, 3, 14, 0]);
    options[46] = 0x70;
    let seeds = [
        arp(1, GUEST, GATEWAY),
        datagram(Ipv4Addr::UNSPECIFIED, (Ipv4Addr::new(10, 0, 2, 2), 67), 68, &dhcp),
        datagram(GUEST, (DNS, 53), 4000, &query(3, "some.name.test")),
        datagram(GUEST, (GATEWAY, 123), 4000, b"xxxxxxxx"),
        ipv4_frame(GUEST, GATEWAY, ipv4::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        segment((GUEST, 4000), (SERVICE, 80), 2, 9, 0, &[]),
        segment((GUEST, 4000), (SERVICE, 80), 0x11, 9, 9, b"some bytes"),
        options,
        icmp_frame(LINK_LOCAL, GATEWAY6, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]),
        icmp_frame(
            GUEST6,
            GATEWAY6,
            &[&[135, 0, 0, 0, 0, 0, 0, 0], &GATEWAY6.octets()[..]].concat(),
        ),
        datagram(GUEST6, (DNS6, 53), 4000, &query(3, "some.name.test")),
        segment((GUEST6, 4000), (GATEWAY6, 80), 2, 9, 0, &[]),
    ];
    for round in 0..200_000 {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        if bytes[23] == ip::TCP {
            bytes[34..36].copy_from_slice(&(random.next() as u16 % 500).to_be_bytes());
        }
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.edge() as u8;
        }
        if random.below(8) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        tame(&mut bytes);
        let offload = Offload {
            needs_csum: random.below(3) == 0,
            data_valid: random.below(3) > 0,
            csum_start: if random.below(8) > 0 { 34 } else { random.edge() as u16 },
            csum_offset: [16, 6, 0, 65535][random.below(4)],
            gso: [Gso::None, Gso::TcpV4, Gso::TcpV6][random.below(3)],
            gso_size: random.edge() as u16,
            hdr_len: random.edge() as u16,
        };
        let _ = bench.nat.push(&bytes, offload);
        if round % 8 == 0 {
            drain(&mut bench, &mut buf);
        }
        if round % 1000 == 0 {
            bench.advance(Duration::from_millis(u64::from(random.next() % 3000)));
        }
    }
    let activity = bench.activity();
    assert!(activity.tcp_flows_total > 100, "{activity:#?}");
    assert!(activity.dns_queries > 100, "{activity:#?}");
}

#[test]
fn segments_near_a_flow_s_window_do_no_harm() {
    for seed in 0..60 {
        let mut bench = Bench::new(|_| {});
        let mut random = Random(seed + 100);
        let csum = seed % 2 == 0;
        bench.nat.set_guest_offloads(GuestOffloads { csum, tso4: csum, tso6: false });
        let mut buf = vec![0; MAX_FRAME];
        let mut peer = Peer::open(&mut bench, (SERVICE, 80));
        let mut stream = bench.services.take();
        stream.set_nonblocking(true).unwrap();
        let payload = vec![0x5a; 65_000];
        let (seq, ack) = (peer.seq, peer.ack);
        for round in 0..1500 {
            peer.seq = seq.wrapping_add([random.edge() % 200_000, random.edge()][random.below(2)]);
            peer.ack = ack.wrapping_add([random.edge() % 200_000, random.edge()][random.below(2)]);
            let flags = match random.below(20) {
                0 => random.next() as u8,
                1 => 0x11,
                _ => 0x10,
            };
            let len = [0, 1, 100, 1400, 20_000, 65_000][random.below(6)];
            let mut frame =
                segment((GUEST, 4000), peer.to, flags, peer.seq, peer.ack, &payload[..len]);
            let window = random.edge() as u16;
            frame[48..50].copy_from_slice(&window.to_be_bytes());
            let offload = Offload {
                needs_csum: true,
                csum_start: 34,
                csum_offset: 16,
                gso: if len > 1400 { Gso::TcpV4 } else { Gso::None },
                gso_size: 1460,
                ..Offload::default()
            };
            let _ = bench.nat.push(&frame, offload);
            if random.below(3) == 0 {
                let _ = io::Write::write(&mut stream, &payload[..random.below(60_000)]);
                let _ = io::Read::read(&mut stream, &mut buf);
            }
            drain(&mut bench, &mut buf);
            if round % 50 == 0 {
                bench.advance(Duration::from_millis(u64::from(random.next() % 5000)));
            }
        }
    }
}

#[test]
fn a_flood_of_syns_is_bounded_and_fades() {
    let mut bench = Bench::new(|config| {
        config.limits = Limits { tcp_flows: 100, tcp_buffers: 1 << 20, ..Limits::default() };
    });
    let mut buf = vec![0; MAX_FRAME];
    for port in 1..=5000 {
        let pushed = bench.push(&segment((GUEST, port), (SERVICE, 80), 2, 1, 0, &[]));
        assert_eq!(pushed.is_ok(), port <= 100);
        drain(&mut bench, &mut buf);
    }
    let activity = bench.activity();
    assert_eq!(activity.tcp_flows, 100);
    assert_eq!(activity.dropped(DropReason::NoRoom), 4900);
    for _ in 0..400 {
        bench.advance(Duration::from_secs(1));
        drain(&mut bench, &mut buf);
    }
    assert_eq!(bench.activity().tcp_flows, 0);
}

#[test]
fn a_guest_that_never_pulls_is_bounded() {
    let mut bench = Bench::new(|_| {});
    let mut refused = 0;
    for _ in 0..20_000 {
        refused += u32::from(bench.push(&arp(1, GUEST, GATEWAY)) == Err(DropReason::NoRoom));
    }
    assert!(refused > 18_000);
    let mut buf = vec![0; MAX_FRAME];
    drain(&mut bench, &mut buf);
    bench.push(&arp(1, GUEST, GATEWAY)).unwrap();
}
