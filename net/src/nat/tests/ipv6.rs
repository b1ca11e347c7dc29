//! The IPv6 side: neighbour discovery, and the protocols above it.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};

use super::frames::ip_frame;
use super::tcp::{ACK, FIN, PORT, PSH, Peer, RST, SYN};
use super::*;
use crate::config::{Ipv6Config, Ipv6Route};
use crate::wire::{be32, ip};

pub(super) const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
pub(super) const LINK_LOCAL: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub(super) const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn bench(route: Ipv6Route) -> Bench {
    Bench::new(|config| config.ipv6 = Some(Ipv6Config { route, ..Ipv6Config::default() }))
}

/// A router solicitation with the guest's station (RFC 4861, section 4.1).
fn solicitation() -> Vec<u8> {
    let message = [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1], &GUEST_MAC[..]].concat();
    icmp_frame(LINK_LOCAL, ROUTERS, &message)
}

/// A neighbour solicitation, or an advertisement (sections 4.3 and 4.4).
fn neighbour(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat();
    icmp_frame(src, dst, &message)
}

#[test]
fn a_solicited_router_advertises_prefix_mtu_name_server_and_domains() {
    let mut bench = bench(Ipv6Route::Always);
    bench.push(&solicitation()).unwrap();
    let received = bench.pull().unwrap();
    let packet = received.packet();
    assert_eq!((packet.src, packet.dst), (Ipv6Config::LINK_LOCAL.into(), NODES.into()));
    assert_eq!(packet.hops(), 255);
    assert!(icmp::has_valid_checksum(&packet));
    let message = packet.payload();
    assert_eq!((message[0], message[1]), (134, 0));
    // Nothing is managed, and the router is one for half an hour.
    assert_eq!(message[4..8], [64, 0, 0x07, 0x08]);
    let expected = [
        &[1, 1][..],
        &GATEWAY_MAC,
        &[5, 1, 0, 0, 0, 0, 5, 220],
        &[3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0],
        &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[25, 3, 0, 0, 0, 0, 0x07, 0x08],
        &DNS6.octets(),
    ];
    assert_eq!(message[16..], expected.concat());
}

#[test]
fn advertisements_go_on_for_hours_once_they_were_asked_for() {
    let mut bench = bench(Ipv6Route::Always);
    bench.advance(Duration::from_secs(3600));
    assert!(bench.pull().is_none());
    bench.push(&solicitation()).unwrap();
    let mut count = 0;
    for _ in 0..3600 {
        while bench.pull().is_some() {
            count += 1;
        }
        bench.advance(Duration::from_secs(1));
    }
    assert_eq!(count, 1 + 3600 / 600 - 1);
    // Another network goes on with them, and a device reset ends them.
    let state = bench.nat.save();
    bench.nat.restore(&state).unwrap();
    assert_eq!(bench.pull().unwrap().packet().payload()[0], 134);
    bench.nat.set_guest_offloads(GuestOffloads::default());
    bench.advance(Duration::from_secs(3600));
    assert!(bench.pull().is_none());
}

#[test]
fn a_gateway_that_leads_nowhere_is_no_default_router() {
    let mut bench = bench(Ipv6Route::Never);
    bench.push(&solicitation()).unwrap();
    let received = bench.pull().unwrap();
    let message = received.packet().payload().to_vec();
    assert_eq!(message[6..8], [0, 0]);
    assert_eq!(message[32..36], [3, 4, 64, 0xc0]);
}

#[test]
fn neighbours_are_told_the_gateway_s_station_for_our_addresses_only() {
    let mut bench = bench(Ipv6Route::Never);
    for target in [GATEWAY6, DNS6, Ipv6Config::LINK_LOCAL] {
        bench.push(&neighbour(135, GUEST6, target, target)).unwrap();
        let received = bench.pull().unwrap();
        let packet = received.packet();
        assert_eq!((packet.src, packet.dst, packet.hops()), (target.into(), GUEST6.into(), 255));
        assert!(icmp::has_valid_checksum(&packet));
        let message = packet.payload();
        assert_eq!((message[0], message[4]), (136, 0xe0));
        assert_eq!(message[8..24], target.octets());
        assert_eq!(message[24..], [&[2, 1][..], &GATEWAY_MAC].concat());
    }
    // Someone without an address asks whether ours is free: everybody hears that it is not.
    bench.push(&neighbour(135, Ipv6Addr::UNSPECIFIED, NODES, GATEWAY6)).unwrap();
    let received = bench.pull().unwrap();
    assert_eq!(received.packet().dst, IpAddr::V6(NODES));
    assert_eq!(received.packet().payload()[4], 0xa0);
    // Its own addresses and nobody's are free.
    for target in [GUEST6, LINK_LOCAL, "fd00::77".parse().unwrap()] {
        bench.push(&neighbour(135, Ipv6Addr::UNSPECIFIED, NODES, target)).unwrap();
        assert!(bench.pull().is_none());
    }
}

#[test]
fn what_is_not_a_guest_s_is_dropped_by_name() {
    let mut bench = bench(Ipv6Route::Never);
    let outside: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let mut too_far = solicitation();
    too_far[21] = 254;
    let mut bad_sum = solicitation();
    bad_sum[56] ^= 1;
    let other_station = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2];
    let endless_option = [133, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 2, 2, 2, 2, 2];
    let mut no_sum = datagram(GUEST6, (DNS6, 53), 5, &query(1, "a.test"));
    no_sum[60..62].fill(0);
    let cases = [
        (neighbour(136, GUEST6, NODES, GATEWAY6), DropReason::SpoofedSource),
        (neighbour(135, GATEWAY6, NODES, GUEST6), DropReason::SpoofedSource),
        (icmp_frame(LINK_LOCAL, NODES, &[134; 16]), DropReason::SpoofedSource),
        (datagram(outside, (DNS6, 53), 5, b"x"), DropReason::SpoofedSource),
        (datagram(unspecified, (DNS6, 53), 5, b"x"), DropReason::SpoofedSource),
        (icmp_frame(unspecified, GATEWAY6, &[128, 0, 0, 0, 0, 0, 0, 0]), DropReason::SpoofedSource),
        (too_far, DropReason::BadNdp),
        (icmp_frame(LINK_LOCAL, ROUTERS, &other_station), DropReason::BadNdp),
        (icmp_frame(LINK_LOCAL, ROUTERS, &endless_option), DropReason::BadNdp),
        (neighbour(135, GUEST6, NODES, NODES), DropReason::BadNdp),
        (bad_sum, DropReason::BadIcmp),
        (icmp_frame(GUEST6, GATEWAY6, &[1, 0, 0, 0, 0, 0, 0, 0]), DropReason::BadIcmp),
        (no_sum, DropReason::BadUdp),
        (datagram(GUEST6, (NODES, 5353), 5353, b"x"), DropReason::UnroutableDestination),
        (datagram(LINK_LOCAL, (outside, 53), 5, b"x"), DropReason::UnroutableDestination),
        (
            icmp_frame(LINK_LOCAL, outside, &[128, 0, 0, 0, 0, 1, 0, 1]),
            DropReason::UnroutableDestination,
        ),
        (ip_frame(GUEST6.into(), outside.into(), 47, &[0; 8]), DropReason::UnknownProtocol),
        (ip_frame(GUEST6.into(), outside.into(), 44, &[17; 16]), DropReason::Fragment),
    ];
    for (bytes, reason) in cases {
        assert_eq!(bench.push(&bytes), Err(reason), "{bytes:02x?}");
        assert!(bench.pull().is_none(), "{reason}");
    }
    // Listener reports are taken, behind their hop-by-hop option.
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    let trusted = Offload { data_valid: true, ..Offload::default() };
    let report = ip_frame(LINK_LOCAL.into(), ROUTERS.into(), 0, &report);
    assert_eq!(bench.nat.push(&report, trusted), Ok(()));
}

#[test]
fn without_an_ipv6_side_or_with_an_mtu_too_small_it_is_dropped_by_name() {
    for change in
        [|config: &mut NatConfig| config.ipv6 = None, |config: &mut NatConfig| config.mtu = 1279]
    {
        let mut bench = Bench::new(change);
        assert_eq!(bench.push(&solicitation()), Err(DropReason::Ipv6));
    }
}

#[test]
fn a_denied_destination_is_reported_at_once() {
    let mut bench = bench(Ipv6Route::Never);
    let private: Ipv6Addr = "fe80::99".parse().unwrap();
    assert_eq!(bench.push(&datagram(GUEST6, (private, 9), 4000, b"x")), Err(DropReason::Denied));
    let received = bench.pull().unwrap();
    let packet = received.packet();
    assert!(icmp::has_valid_checksum(&packet));
    // RFC 4443, section 3.1: communication administratively prohibited, and the packet it is about.
    assert_eq!(packet.payload()[..2], [1, 1]);
    let quoted = ip::Packet::read(&packet.payload()[8..]).unwrap();
    assert_eq!((quoted.src, quoted.dst), (GUEST6.into(), private.into()));
    assert_eq!(be32(quoted.payload(), 0), 4000 << 16 | 9);
    let syn = segment((GUEST6, PORT), (private, 80), SYN, 7, 0, &[]);
    assert_eq!(bench.push(&syn), Err(DropReason::Denied));
    assert_eq!(bench.pull().unwrap().segment().flags, RST | ACK);
}

#[test]
fn pings_of_our_addresses_and_queries_of_the_name_server_are_answered() {
    let mut bench = bench(Ipv6Route::Never);
    bench.push(&icmp_frame(GUEST6, GATEWAY6, &[128, 0, 0, 0, 1, 2, 3, 4, 5])).unwrap();
    let received = bench.pull().unwrap();
    let packet = received.packet();
    assert_eq!((packet.src, packet.dst), (GATEWAY6.into(), GUEST6.into()));
    assert!(icmp::has_valid_checksum(&packet));
    assert_eq!(packet.payload()[4..], [1, 2, 3, 4, 5]);
    assert_eq!(packet.payload()[0], 129);

    bench.push(&datagram(GUEST6, (DNS6, 53), 4000, &query(9, "deb.test"))).unwrap();
    let received = bench.pull().unwrap();
    let packet = received.packet();
    assert!(packet.has_valid_transport_checksum());
    assert_eq!((packet.src, packet.dst), (DNS6.into(), GUEST6.into()));
    let reply = udp_wire::Datagram::read(packet.payload()).unwrap();
    assert_eq!(reply.payload[..4], [0, 9, 0x81, 0x82]);
}

#[test]
fn tcp_passes_both_ways_and_is_reset_after_a_restore() {
    let mut bench = Bench::new(|config| config.host_loopback = true);
    let listener = TcpListener::bind("[::1]:0").expect("a host with an IPv6 loopback");
    let port = listener.local_addr().unwrap().port();
    bench.nat.set_guest_offloads(GuestOffloads { csum: true, tso4: false, tso6: true });
    let mut peer = Peer::open_from(&mut bench, GUEST6.into(), (GATEWAY6.into(), port));
    let (mut stream, _) = listener.accept().unwrap();
    peer.send(&mut bench, ACK | PSH, b"question").unwrap();
    bench.nat.poll(bench.now);
    let mut buf = [0; 8];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"question");
    stream.write_all(&[7; 4000]).unwrap();
    let mut received = 0;
    while received < 4000 {
        let frame = bench.wait();
        let segment = frame.segment();
        // The peer gave no MSS, so it has the least that all must take (RFC 9293, section 3.7.1).
        assert!(segment.payload.len() <= 1220);
        if !segment.payload.is_empty() {
            assert_eq!((frame.offload.gso, frame.offload.csum_start), (Gso::None, 54));
        }
        received += segment.payload.len();
        peer.ack = peer.ack.wrapping_add(segment.payload.len() as u32);
        peer.send(&mut bench, ACK, &[]).unwrap();
    }
    peer.send(&mut bench, ACK, &[]).unwrap();
    while bench.pull().is_some() {}

    let state = bench.nat.save();
    let mut new = Bench::new(|_| {});
    new.nat.restore(&state).unwrap();
    let reset = new.pull().unwrap().segment();
    assert_eq!((reset.src, reset.dst_port), (peer.to, PORT));
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, peer.ack, peer.seq));
    drop(stream);
    assert_eq!(peer.receive(&mut bench).flags & FIN, FIN);
}
