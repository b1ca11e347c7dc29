//! A guest that goes on in another network than the one it was saved with.

use std::io::Write;
use std::thread;

use super::tcp::{ACK, FIN, ISS, PORT, PSH, Peer, RST, SYN};
use super::*;

/// Saves a bench's network and carries on for its guest in a new one.
fn moved(bench: &Bench) -> Bench {
    let state = bench.nat.save();
    let mut new = Bench::new(|_| {});
    new.nat.restore(&state).unwrap();
    new
}

/// Takes everything that waits for the guest, which must be resets, and gives their numbers.
fn resets(bench: &mut Bench) -> Vec<(u16, u32, u32)> {
    let mut all = Vec::new();
    while let Some(received) = bench.pull() {
        let segment = received.segment();
        assert_eq!((segment.flags, segment.payload.len()), (RST | ACK, 0));
        all.push((segment.dst_port, segment.seq, segment.ack));
    }
    all
}

/// Makes a dial that the guest takes; returns both ends.
fn dialled(bench: &mut Bench) -> (Peer, UnixStream) {
    let handle = bench.handle.clone();
    let dialling = thread::spawn(move || handle.dial(22, Duration::from_secs(20)));
    let syn = bench.wait().segment();
    assert_eq!((syn.flags, syn.src.0, syn.dst_port), (SYN, GATEWAY.into(), 22));
    let ack = syn.seq.wrapping_add(1);
    bench.push(&segment((GUEST, 22), syn.src, SYN | ACK, 100, ack, &[])).unwrap();
    assert_eq!(bench.wait().segment().flags, ACK);
    let guest = GUEST.into();
    (Peer { guest, to: syn.src, seq: 101, ack }, dialling.join().unwrap().unwrap())
}

#[test]
fn an_idle_connection_is_reset_with_the_one_number_the_guest_expects() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    stream.write_all(b"answer").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"answer");
    peer.send(&mut bench, ACK | PSH, b"thanks").unwrap();
    while bench.pull().is_some() {}

    let mut new = moved(&bench);
    assert_eq!(resets(&mut new), [(PORT, peer.ack, peer.seq)]);
    assert_eq!(new.activity().tcp_flows, 0);
    // And no second time.
    new.advance(Duration::from_secs(10));
    assert!(new.pull().is_none());
}

#[test]
fn what_the_guest_may_not_have_received_is_reset_at_both_ends() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    let acknowledged = peer.ack;
    stream.write_all(b"lost?").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"lost?");
    assert!(bench.pull().is_none());
    // Sent again, which is nothing new.
    let due = bench.nat.deadline(bench.now).expect("a retransmission timer");
    bench.advance(due - bench.now);
    assert_eq!(bench.pull().unwrap().segment().payload, b"lost?");
    drop(stream);
    assert_eq!(bench.wait().segment().flags & FIN, FIN);
    let given = acknowledged.wrapping_add(5 + 1);

    let mut new = moved(&bench);
    let seq = peer.seq;
    assert_eq!(resets(&mut new), [(PORT, acknowledged, seq), (PORT, given, seq)]);
    // A guest that has received part of it challenges the second, and is reset by its own number.
    peer.ack = acknowledged.wrapping_add(2);
    assert_eq!(peer.send(&mut new, ACK, &[]), Err(DropReason::NoFlow));
    let reset = new.pull().unwrap().segment();
    assert_eq!((reset.flags & RST, reset.seq), (RST, peer.ack));
}

#[test]
fn a_connecting_guest_asks_again_or_is_reset_by_the_acknowledgement_of_its_syn() {
    let mut bench = Bench::new(|_| {});
    let syn = segment((GUEST, PORT), (SERVICE, 80), SYN, ISS, 0, &[]);
    bench.push(&syn).unwrap();
    // It has heard nothing yet: the new network takes its next SYN as any other.
    let mut new = moved(&bench);
    assert!(new.pull().is_none());
    new.push(&syn).unwrap();
    assert_eq!(new.wait().segment().flags, SYN | ACK);
    // Whether the answer has been received is not known now.
    let mut newest = moved(&new);
    let resets = resets(&mut newest);
    assert_eq!(resets.len(), 1);
    assert_eq!(resets[0].2, ISS.wrapping_add(1));
}

#[test]
fn a_dial_connects_at_once_from_a_port_the_guest_does_not_know() {
    let mut bench = Bench::new(|_| {});
    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let (old, _stream) = dialled(&mut bench);
    let mut new = moved(&bench);
    let activity = new.handle.activity();
    assert_eq!(activity.guest_mac, Some(GUEST_MAC));
    assert!(activity.address_seen.is_some());
    let handle = new.handle.clone();
    let dialling = thread::spawn(move || handle.dial(22, Duration::from_secs(20)));
    // The old connection goes first.
    let reset = new.wait().segment();
    assert_eq!((reset.src, reset.dst_port), (old.to, 22));
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, old.ack, old.seq));
    let syn = new.wait().segment();
    assert_eq!((syn.flags, syn.src.0, syn.dst_port), (SYN, GATEWAY.into(), 22));
    assert_ne!(syn.src, old.to);
    let ack = syn.seq.wrapping_add(1);
    new.push(&segment((GUEST, 22), syn.src, SYN | ACK, 100, ack, &[])).unwrap();
    new.nat.poll(new.now);
    dialling.join().unwrap().unwrap();
}

#[test]
fn a_lease_is_bound_from_the_start_and_renewed() {
    let mut bench = Bench::new(|_| {});
    bench.nat.set_guest_offloads(GuestOffloads { csum: true, ..GuestOffloads::default() });
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&GUEST_MAC);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let request = [&message[..], &[53, 1, 3, 50, 4, 10, 0, 2, 15, 255]].concat();
    let everyone = (Ipv4Addr::BROADCAST, 67);
    bench.push(&datagram(Ipv4Addr::UNSPECIFIED, everyone, 68, &request)).unwrap();
    assert_eq!(bench.activity().lease, Lease::Bound);

    let mut new = moved(&bench);
    let activity = new.handle.activity();
    assert_eq!((activity.lease, activity.driver_up), (Lease::Bound, true));
    assert_eq!(activity.silence(), bench.activity().silence());
    // RFC 2131, section 4.3.2: a renewal names its address as the client's own.
    message[12..16].copy_from_slice(&GUEST.octets());
    let renewal = [&message[..], &[53, 1, 3, 255]].concat();
    new.push(&datagram(GUEST, (GATEWAY, 67), 68, &renewal)).unwrap();
    let received = new.pull().unwrap();
    let reply = udp_wire::Datagram::read(received.packet().payload()).unwrap();
    assert_eq!(reply.payload[240..243], [53, 1, 5]);
    assert_eq!(new.activity().lease, Lease::Bound);
}

#[test]
fn every_connection_is_reset_however_many_there_are() {
    const COUNT: u16 = 2000;
    let mut bench = Bench::new(|_| {});
    for port in 1..=COUNT {
        bench.push(&segment((GUEST, port), (SERVICE, 80), SYN, ISS, 0, &[])).unwrap();
        assert_eq!(bench.wait().segment().flags, SYN | ACK);
    }
    let state = bench.nat.save();
    assert!(state.len() < 100_000, "{} bytes", state.len());
    // Saved once more before the first poll, nothing is lost.
    let mut new = moved(&moved(&bench));
    let mut ports: Vec<u16> = resets(&mut new).iter().map(|(port, ..)| *port).collect();
    ports.sort_unstable();
    assert!(ports.into_iter().eq(1..=COUNT));
}

#[test]
fn a_restored_guest_survives_its_device_s_start_but_not_a_reset() {
    for accepted in
        [GuestOffloads::default(), GuestOffloads { csum: true, tso4: true, tso6: false }]
    {
        let mut bench = Bench::new(|_| {});
        bench.nat.set_guest_offloads(accepted);
        let _peer = Peer::open(&mut bench, (SERVICE, 80));
        let _stream = bench.services.take();
        bench.nat.activity.driver_up = true;
        let mut new = moved(&bench);
        new.nat.set_guest_offloads(accepted);
        let activity = new.activity();
        assert!(activity.address_seen.is_some() && activity.driver_up);
        assert_eq!(resets(&mut new).len(), 1);

        let mut new = moved(&bench);
        new.nat.set_guest_offloads(accepted);
        assert!(new.activity().driver_up);
        new.nat.set_guest_offloads(GuestOffloads::default());
        assert!(new.activity().address_seen.is_none());
        assert!(new.pull().is_none());
    }
}

#[test]
fn a_device_that_pauses_and_goes_on_loses_nothing() {
    let accepted = GuestOffloads { csum: true, tso4: true, tso6: false };
    let mut bench = Bench::new(|_| {});
    bench.nat.set_guest_offloads(accepted);
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    bench.push(&arp(1, GUEST, GATEWAY)).unwrap();
    assert!(!bench.nat.save().is_empty());
    bench.nat.set_guest_offloads(accepted);
    assert_eq!(bench.pull().unwrap().bytes[12..14], [8, 6]);
    stream.write_all(b"on").unwrap();
    assert_eq!(peer.receive(&mut bench).payload, b"on");
    assert_eq!(bench.activity().tcp_flows, 1);
}

#[test]
fn a_damaged_or_foreign_state_is_refused_and_changes_nothing() {
    let mut bench = Bench::new(|_| {});
    let _peer = Peer::open(&mut bench, (SERVICE, 80));
    let state = bench.nat.save();
    let foreign = Bench::new(|config| config.guest = Ipv4Addr::new(10, 0, 2, 16)).nat.save();
    let mut damaged = vec![Vec::new(), foreign, state[..state.len() / 2].to_vec()];
    let mut random = 7u64;
    for _ in 0..200 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = state.clone();
        let at = (random >> 33) as usize % bytes.len();
        bytes[at] ^= (1 << (random >> 61)) as u8;
        damaged.push(bytes);
    }
    let mut new = Bench::new(|_| {});
    let (before, activity) = (new.nat.save(), new.handle.activity());
    for bytes in damaged {
        let error = new.nat.restore(&bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    assert!(new.nat.save() == before && new.handle.activity() == activity);
    assert!(new.pull().is_none());
}
