//! TCP flows and dials, segment by segment.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use super::frames::Segment;
use super::*;
use crate::{DialError, DialOutcome, Silence};

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const PORT: u16 = 4000;
pub(super) const ISS: u32 = 0xffff_fff0;

/// The guest's end of one connection.
pub(super) struct Peer {
    pub(super) guest: IpAddr,
    pub(super) to: (IpAddr, u16),
    pub(super) seq: u32,
    pub(super) ack: u32,
}

impl Peer {
    /// Opens a connection; its handshake is complete on return.
    pub(super) fn open(bench: &mut Bench, to: (Ipv4Addr, u16)) -> Peer {
        Peer::open_from(bench, GUEST.into(), (to.0.into(), to.1))
    }

    /// The same from an address of either family.
    pub(super) fn open_from(bench: &mut Bench, guest: IpAddr, to: (IpAddr, u16)) -> Peer {
        bench.push(&segment((guest, PORT), to, SYN, ISS, 0, &[])).unwrap();
        let answer = bench.wait().segment();
        assert_eq!((answer.flags, answer.src, answer.dst_port), (SYN | ACK, to, PORT));
        let seq = ISS.wrapping_add(1);
        assert_eq!(answer.ack, seq);
        let mut peer = Peer { guest, to, seq, ack: answer.seq.wrapping_add(1) };
        peer.send(bench, ACK, &[]).unwrap();
        peer
    }

    pub(super) fn send(
        &mut self,
        bench: &mut Bench,
        flags: u8,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let frame = segment((self.guest, PORT), self.to, flags, self.seq, self.ack, payload);
        let len = payload.len() as u32 + u32::from(flags & FIN);
        self.seq = self.seq.wrapping_add(len);
        bench.push(&frame)
    }

    /// Waits for the next segment with something in it, and notes it as received.
    pub(super) fn receive(&mut self, bench: &mut Bench) -> Segment {
        loop {
            let segment = bench.wait().segment();
            if segment.payload.is_empty() && segment.flags & (FIN | RST | SYN) == 0 {
                continue;
            }
            assert_eq!(segment.seq, self.ack);
            let len = segment.payload.len() as u32 + u32::from(segment.flags & FIN);
            self.ack = self.ack.wrapping_add(len);
            return segment;
        }
    }
}

#[test]
fn bytes_and_ends_pass_between_a_guest_and_a_service() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    peer.send(&mut bench, ACK | PSH, b"question").unwrap();
    bench.nat.poll(bench.now);
    let mut buf = [0; 8];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"answer");
    drop(stream);
    assert_eq!(peer.receive(&mut bench).flags & FIN, FIN);
    peer.send(&mut bench, ACK | FIN, &[]).unwrap();
    assert_eq!(bench.pull().unwrap().segment().ack, peer.seq);
    assert!(bench.pull().is_none());
    assert_eq!(bench.activity().tcp_flows, 0);
    // A late segment is told that its connection is gone.
    assert_eq!(peer.send(&mut bench, ACK | FIN, &[]), Err(DropReason::NoFlow));
    assert_eq!(bench.pull().unwrap().segment().flags & RST, RST);
}

#[test]
fn a_syn_is_answered_when_the_host_s_connection_stands() {
    let mut bench = Bench::new(|config| config.host_loopback = true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut peer = Peer::open(&mut bench, (GATEWAY, port));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"hello").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"hello");
    // The guest resets, and the host sees it.
    peer.send(&mut bench, RST | ACK, &[]).unwrap();
    assert!(bench.pull().is_none());
    assert_eq!(bench.activity().tcp_flows, 0);
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_refused_connection_is_reset_in_the_guest() {
    let mut bench = Bench::new(|config| config.host_loopback = true);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for to in [(GATEWAY, closed), (SERVICE, 81)] {
        // The second is denied outright.
        let _ = bench.push(&segment((GUEST, PORT), to, SYN, 7, 0, &[]));
        let answer = bench.wait().segment();
        assert_eq!((answer.flags, answer.ack), (RST | ACK, 8));
    }
    assert!(bench.pull().is_none());
    assert_eq!(bench.activity().tcp_flows, 0);
}

#[test]
fn bulk_data_leaves_in_frames_as_large_as_the_guest_takes() {
    for tso4 in [false, true] {
        let mut bench = Bench::new(|_| {});
        bench.nat.set_guest_offloads(GuestOffloads { csum: tso4, tso4, tso6: false });
        let mut peer = Peer::open(&mut bench, (SERVICE, 80));
        let mut stream = bench.services.take();
        let sent: Vec<u8> = (0..40_000).map(|at| (at / 7) as u8).collect();
        stream.write_all(&sent).unwrap();
        let mut received = Vec::new();
        let mut largest = 0;
        while received.len() < sent.len() {
            let frame = bench.wait();
            let segment = frame.segment();
            largest = largest.max(frame.bytes.len());
            if segment.payload.len() > 1460 {
                assert_eq!(frame.offload.gso, Gso::TcpV4);
                // The peer gave no MSS, so it has the least that all must take.
                assert_eq!((frame.offload.gso_size, frame.offload.hdr_len), (536, 54));
                assert_eq!((frame.offload.csum_start, frame.offload.csum_offset), (34, 16));
            }
            assert_eq!(segment.seq, peer.ack);
            peer.ack = peer.ack.wrapping_add(segment.payload.len() as u32);
            received.extend(segment.payload);
            peer.send(&mut bench, ACK, &[]).unwrap();
        }
        assert!(received == sent);
        assert_eq!(largest > 1514, tso4, "{largest}");
    }
}

#[test]
fn a_flow_among_a_thousand_idle_ones_still_has_a_window_that_pays() {
    let mut bench = Bench::new(|_| {});
    for port in 1..=1001 {
        bench.push(&segment((GUEST, port), (SERVICE, 80), SYN, ISS, 0, &[])).unwrap();
        let answer = bench.wait();
        assert_eq!(answer.segment().flags, SYN | ACK);
        // The guest has offered no scaling (RFC 7323), so this is all that can be announced.
        let window = crate::wire::be16(answer.packet().payload(), 14);
        assert!(window >= 60_000, "flow {port} has a window of {window}");
    }
}

#[test]
fn an_unacknowledged_segment_is_sent_again_when_its_time_comes() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    stream.write_all(b"lost").unwrap();
    let first = peer.receive(&mut bench);
    assert!(bench.pull().is_none());
    let due = bench.nat.deadline(bench.now).expect("a retransmission timer");
    bench.advance(due - bench.now);
    let again = bench.pull().expect("a retransmission").segment();
    assert_eq!((again.seq, again.payload), (first.seq, first.payload));
}

#[test]
fn a_guest_that_is_gone_is_found_out_by_keep_alives() {
    let mut bench = Bench::new(|_| {});
    let _peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut probes = 0;
    for _ in 0..400 {
        while bench.pull().is_some() {
            probes += 1;
        }
        bench.advance(Duration::from_secs(1));
    }
    assert!(probes > 3);
    assert_eq!(bench.activity().tcp_flows, 0);
}

#[test]
fn a_device_reset_ends_every_flow() {
    let mut bench = Bench::new(|_| {});
    let _peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    bench.nat.set_guest_offloads(GuestOffloads::default());
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(bench.activity().tcp_flows, 0);
}

#[test]
fn a_dial_looks_for_the_guest_then_connects_and_tells_the_caller() {
    let mut bench = Bench::new(|_| {});
    let handle = bench.handle.clone();
    let dialling = thread::spawn(move || handle.dial(22, Duration::from_secs(20)));
    for _ in 0..3 {
        let ask = bench.wait();
        assert_eq!(ask.bytes[..6], [0xff; 6]);
        assert_eq!(ask.bytes[20..22], [0, 1]);
        assert_eq!(ask.bytes[38..42], GUEST.octets());
        assert!(bench.pull().is_none());
        assert_eq!(bench.nat.deadline(bench.now), Some(bench.now + Duration::from_millis(250)));
        bench.advance(Duration::from_millis(250));
    }
    bench.push(&arp(2, GUEST, GATEWAY)).unwrap();
    let first = loop {
        let received = bench.wait();
        if received.bytes[12..14] == [8, 0] {
            break received.segment();
        }
    };
    assert_eq!((first.flags, first.src.0, first.dst_port), (SYN, GATEWAY.into(), 22));
    // The first SYN is lost: another follows a second later.
    assert!(bench.pull().is_none());
    bench.advance(Duration::from_secs(1));
    let syn = bench.wait().segment();
    assert_eq!(syn.flags, SYN);
    let (here, ack) = ((GUEST, 22), syn.seq.wrapping_add(1));
    bench.push(&segment(here, syn.src, SYN | ACK, 100, ack, &[])).unwrap();
    assert_eq!(bench.wait().segment().flags, ACK);
    let mut stream = dialling.join().unwrap().unwrap();
    bench.push(&segment(here, syn.src, ACK | PSH, 101, ack, b"SSH-2.0")).unwrap();
    bench.nat.poll(bench.now);
    let mut banner = [0; 7];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0");
    let (port, outcome, _) = bench.activity().last_dial.unwrap();
    assert_eq!((port, outcome), (22, DialOutcome::Connected));
}

#[test]
fn a_dial_outlives_a_device_reset() {
    let mut bench = Bench::new(|_| {});
    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let handle = bench.handle.clone();
    let dialling = thread::spawn(move || handle.dial(22, Duration::from_secs(20)));
    assert_eq!(bench.wait().segment().flags, SYN);
    bench.nat.set_guest_offloads(GuestOffloads::default());
    let ask = bench.wait();
    assert_eq!(ask.bytes[38..42], GUEST.octets());
    bench.push(&arp(2, GUEST, GATEWAY)).unwrap();
    let syn = bench.wait().segment();
    let ack = syn.seq.wrapping_add(1);
    bench.push(&segment((GUEST, 22), syn.src, SYN | ACK, 100, ack, &[])).unwrap();
    bench.nat.poll(bench.now);
    dialling.join().unwrap().unwrap();
}

#[test]
fn a_dial_is_refused_when_the_guest_refuses() {
    let mut bench = Bench::new(|_| {});
    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let handle = bench.handle.clone();
    let dialling = thread::spawn(move || handle.dial(22, Duration::from_secs(20)));
    let syn = bench.wait().segment();
    let ack = syn.seq.wrapping_add(1);
    bench.push(&segment((GUEST, 22), syn.src, RST | ACK, 0, ack, &[])).unwrap();
    assert!(bench.pull().is_none());
    assert_eq!(dialling.join().unwrap().unwrap_err(), DialError::Refused { port: 22 });
    assert_eq!(bench.activity().tcp_flows, 0);
}

#[test]
fn a_dial_that_nobody_waits_for_is_let_go() {
    let mut bench = Bench::new(|_| {});
    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let handle = bench.handle.clone();
    let timeout = Duration::from_millis(50);
    let dialling = thread::spawn(move || handle.dial(22, timeout));
    assert_eq!(bench.wait().segment().flags, SYN);
    let error = dialling.join().unwrap().unwrap_err();
    let silence = Silence::NoTcp;
    assert_eq!(error, DialError::NoAnswer { port: 22, timeout, silence });
    assert_eq!(bench.activity().tcp_flows, 0);
    let error = bench.handle.dial(0, Duration::from_millis(50));
    assert!(error.is_err());
}
