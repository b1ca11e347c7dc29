//! What RFC 9293 and its companions ask of a TCP, and floods of the other protocols.

use std::io::{Read, Write};

use super::tcp::{ACK, FIN, ISS, PORT, PSH, Peer, RST, SYN};
use super::*;

/// Sends a segment with another window than the usual one; its checksum is said to be known.
fn push_window(bench: &mut Bench, peer: &Peer, flags: u8, window: u16, payload: &[u8]) {
    let mut frame = segment((peer.guest, PORT), peer.to, flags, peer.seq, peer.ack, payload);
    frame[48..50].copy_from_slice(&window.to_be_bytes());
    bench.nat.push(&frame, Offload { data_valid: true, ..Offload::default() }).unwrap();
}

/// Takes everything that waits for the guest.
fn drain(bench: &mut Bench) -> Vec<super::frames::Segment> {
    std::iter::from_fn(|| bench.pull()).map(|received| received.segment()).collect()
}

fn read_available(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut buf) {
        bytes.extend(&buf[..len]);
    }
    bytes
}

/// Section 3.6, figure 13.
#[test]
fn both_ends_may_close_at_the_same_time() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    drop(bench.services.take());
    let fin = bench.wait().segment();
    assert_eq!((fin.flags & FIN, fin.seq), (FIN, peer.ack));
    // The guest's FIN crosses it, and acknowledges nothing.
    peer.send(&mut bench, ACK | FIN, &[]).unwrap();
    let ack = bench.pull().unwrap().segment();
    assert_eq!((ack.flags, ack.ack), (ACK, peer.seq));
    peer.ack = peer.ack.wrapping_add(1);
    peer.send(&mut bench, ACK, &[]).unwrap();
    assert!(drain(&mut bench).iter().all(|segment| segment.flags & RST == 0));
    assert_eq!(bench.activity().tcp_flows, 0);
}

/// Section 3.8.6.1.
#[test]
fn a_closed_window_is_probed_until_it_opens() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    push_window(&mut bench, &peer, ACK, 0, &[]);
    stream.write_all(b"waiting").unwrap();
    // Nothing fits, so nothing but probes comes, further and further apart.
    let mut waits = Vec::new();
    let mut last = bench.now;
    while waits.len() < 4 {
        if let Some(received) = bench.pull() {
            let probe = received.segment();
            assert!(probe.payload.len() <= 1, "{probe:?}");
            waits.push(bench.now - last);
            last = bench.now;
            push_window(&mut bench, &peer, ACK, 0, &[]);
            continue;
        }
        let due = bench.nat.deadline(bench.now).expect("a timer for the next probe");
        bench.advance(due.max(bench.now + Duration::from_millis(1)) - bench.now);
    }
    assert!(waits[3] > waits[1], "{waits:?}");
    assert_eq!(bench.activity().tcp_flows, 1);
    push_window(&mut bench, &peer, ACK, 1000, &[]);
    let mut received: Vec<u8> = Vec::new();
    while received.len() < 7 {
        let segment = bench.wait().segment();
        let new = peer.ack.wrapping_sub(segment.seq) as usize;
        received.extend(segment.payload.get(new..).unwrap_or_default());
        peer.ack = peer.ack.wrapping_add(segment.payload.len().saturating_sub(new) as u32);
    }
    assert_eq!(received, b"waiting");
}

/// Section 3.10.7.2: data in a SYN may be taken later, and must not be taken twice.
#[test]
fn data_in_a_syn_arrives_once() {
    let mut bench = Bench::new(|_| {});
    bench.push(&segment((GUEST, PORT), (SERVICE, 80), SYN, ISS, 0, b"early")).unwrap();
    let answer = bench.wait().segment();
    assert_eq!(answer.flags, SYN | ACK);
    let mut stream = bench.services.take();
    let ack = answer.seq.wrapping_add(1);
    let to = (SERVICE, 80);
    // The guest sends what has not been acknowledged, all of it or the rest.
    for (skip, flags) in [(0, ACK | PSH), (2, ACK | PSH)] {
        let seq = ISS.wrapping_add(1 + skip);
        let payload = &b"early bird"[skip as usize..];
        bench.push(&segment((GUEST, PORT), to, flags, seq, ack, payload)).unwrap();
        bench.nat.poll(bench.now);
    }
    assert_eq!(read_available(&mut stream), b"early bird");
}

#[test]
fn a_segment_with_a_wrong_checksum_changes_nothing() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    for flags in [ACK | PSH, ACK | FIN, RST | ACK] {
        let mut frame = segment((GUEST, PORT), peer.to, flags, peer.seq, peer.ack, b"broken");
        frame[55] ^= 1;
        assert_eq!(bench.push(&frame), Err(DropReason::BadTcp));
    }
    assert!(bench.pull().is_none());
    peer.send(&mut bench, ACK | PSH, b"whole").unwrap();
    bench.nat.poll(bench.now);
    assert_eq!(read_available(&mut stream), b"whole");
}

/// Section 3.10.7.4: whatever the order, the stream is the bytes by their numbers.
#[test]
fn overlapping_and_unordered_segments_make_one_stream() {
    let text = b"the quick brown fox jumps over the lazy dog";
    let mut bench = Bench::new(|_| {});
    let peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    let mut arrived = Vec::new();
    let pieces = [(10, 20), (4, 12), (0, 5), (0, 15), (30, 43), (18, 33), (25, 43), (0, 43)];
    for (from, to) in pieces {
        let seq = peer.seq.wrapping_add(from);
        let payload = &text[from as usize..to as usize];
        let frame = segment((GUEST, PORT), peer.to, ACK | PSH, seq, peer.ack, payload);
        bench.push(&frame).unwrap();
        bench.nat.poll(bench.now);
        arrived.extend(read_available(&mut stream));
        assert!(text.starts_with(&arrived));
        drain(&mut bench);
    }
    assert_eq!(arrived, text);
}

#[test]
fn a_window_of_a_few_bytes_still_lets_everything_through() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    push_window(&mut bench, &peer, ACK, 3, &[]);
    let sent: Vec<u8> = (0..200).collect();
    stream.write_all(&sent).unwrap();
    let mut received = Vec::new();
    let mut rounds = 0;
    while received.len() < sent.len() {
        rounds += 1;
        assert!(rounds < 5000, "{} bytes", received.len());
        let Some(frame) = bench.pull() else {
            // The sender may wait for more room (section 3.8.6.2.1), but not for ever.
            let due = bench.nat.deadline(bench.now).expect("a timer");
            bench.advance(due.max(bench.now + Duration::from_millis(1)) - bench.now);
            continue;
        };
        let segment = frame.segment();
        assert!(segment.payload.len() <= 3, "{segment:?}");
        if segment.seq == peer.ack {
            peer.ack = peer.ack.wrapping_add(segment.payload.len() as u32);
            received.extend(segment.payload);
        }
        push_window(&mut bench, &peer, ACK, 3, &[]);
    }
    assert_eq!(received, sent);
}

/// RFC 5961, sections 3 and 4: only the exact number resets, and a SYN is challenged.
#[test]
fn blind_resets_and_syns_do_not_end_a_connection() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    for (flags, offset) in [(RST, 1_000_000), (RST | ACK, u32::MAX - 500), (SYN, 5_000_000)] {
        let seq = peer.seq.wrapping_add(offset);
        let _ = bench.push(&segment((GUEST, PORT), peer.to, flags, seq, peer.ack, &[]));
        for answer in drain(&mut bench) {
            assert_eq!((answer.flags & RST, answer.ack), (0, peer.seq), "{flags:#x}");
        }
    }
    peer.send(&mut bench, ACK | PSH, b"still here").unwrap();
    bench.nat.poll(bench.now);
    assert_eq!(read_available(&mut stream), b"still here");
}

#[test]
fn an_idle_connection_lives_for_hours_while_its_guest_answers_keep_alives() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    let mut probes = 0;
    for _ in 0..2 * 3600 {
        bench.advance(Duration::from_secs(1));
        for probe in drain(&mut bench) {
            assert_eq!(probe.flags & (RST | FIN), 0);
            probes += 1;
            peer.send(&mut bench, ACK, &[]).unwrap();
        }
    }
    assert!((50..300).contains(&probes), "{probes} keep-alives in two hours");
    stream.write_all(b"late").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"late");
}

#[test]
fn a_flood_of_datagrams_is_bounded() {
    let mut bench = Bench::new(|config| {
        config.host_loopback = true;
        config.limits.udp_flows = 50;
    });
    let (_socket, address) = host_socket();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for port in 1..=5000 {
        let _ = bench.push(&datagram(GUEST, (GATEWAY, address.port()), port, b"flood"));
        while bench.pull().is_some() {}
    }
    assert_eq!(bench.activity().udp_flows, 50);
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests run beside this one.
    assert!(after < before + 2000, "{before} descriptors became {after}");
    bench.advance(Duration::from_secs(120));
    assert_eq!(bench.activity().udp_flows, 0);
}

#[test]
fn a_scan_of_every_port_leaves_nothing_behind() {
    let mut bench = Bench::new(|_| {});
    let (mut resets, mut denied) = (0, 0);
    for port in 1..=u16::MAX {
        let to = (Ipv4Addr::new(10, 0, 2, 2), port);
        denied += u32::from(
            bench.push(&segment((GUEST, 4000), to, SYN, 7, 0, &[])) == Err(DropReason::Denied),
        );
        resets += drain(&mut bench).iter().filter(|segment| segment.flags & RST != 0).count();
    }
    assert_eq!((denied, resets), (65_535, 65_535));
    let activity = bench.activity();
    assert_eq!(activity.dropped(DropReason::Denied), 65_535);
    assert_eq!((activity.tcp_flows, activity.tcp_flows_total), (0, 0));
}

#[test]
fn frames_that_claim_another_s_address_are_dropped_and_counted() {
    let mut bench = Bench::new(|_| {});
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let victim = Ipv4Addr::new(10, 0, 2, 99);
    let spoofed = [
        arp(1, GATEWAY, GUEST),
        arp(2, DNS, GUEST),
        arp(1, victim, victim),
        datagram(victim, (outside, 53), 4000, b"x"),
        segment((outside, PORT), (SERVICE, 80), SYN, 7, 0, &[]),
        icmp_frame(GATEWAY, DNS, &[8, 0, 0, 0, 0, 1, 0, 1]),
    ];
    for frame in &spoofed {
        assert_eq!(bench.push(frame), Err(DropReason::SpoofedSource));
    }
    assert!(bench.pull().is_none());
    let activity = bench.activity();
    assert_eq!(activity.dropped(DropReason::SpoofedSource), spoofed.len() as u64);
    assert!(activity.address_seen.is_none() && activity.guest_mac.is_none());
}
