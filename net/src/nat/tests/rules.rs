//! What the guest may reach, frame by frame, and what is told of it.

use super::tcp::{Peer, RST, SYN};
use super::*;
use crate::watch::{Flow, Kept, Outcome, Watch};
use crate::{Protocol, Rules};

const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn parsed(texts: &[&str]) -> Vec<crate::Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A network that is restricted but for `allow`, and what is told of it.
fn restricted(allow: &[&str], resolver: SocketAddr) -> (Bench, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let watch = Watch(Some(Arc::clone(&kept) as _));
    let bench = Bench::new(|config| {
        config.rules = Rules { restrict: true, allow: parsed(allow), deny: Vec::new() };
        config.resolvers = Resolvers::Fixed(vec![resolver]);
        config.watch = watch;
    });
    (bench, kept)
}

fn told(kept: &Kept) -> Vec<Flow> {
    std::mem::take(&mut *kept.0.lock().unwrap())
}

/// Answers the next query that a resolver is asked with one address.
fn answer(resolver: &UdpSocket, address: [u8; 4]) {
    let mut buf = [0; 512];
    let (len, from) = resolver.recv_from(&mut buf).unwrap();
    // Without the EDNS record at the end.
    let mut message = buf[..len - 11].to_vec();
    message[2] |= 0x80;
    message[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address);
    resolver.send_to(&message, from).unwrap();
}

fn response_code(received: &Received) -> u8 {
    let packet = received.packet();
    udp_wire::Datagram::read(packet.payload()).unwrap().payload[3] & 0x0f
}

#[test]
fn a_restricted_guest_reaches_the_forwards_and_is_told_no_at_once_elsewhere() {
    let (_socket, address) = host_socket();
    let (mut bench, kept) = restricted(&[], address);
    let _peer = Peer::open(&mut bench, (SERVICE, 80));
    let syn = segment((GUEST, 5), (WORLD, 80), SYN, 7, 0, &[]);
    assert_eq!(bench.push(&syn), Err(DropReason::Denied));
    assert_eq!(bench.wait().segment().flags & RST, RST);
    let ping = datagram(GUEST, (WORLD, 123), 5, b"x");
    assert_eq!(bench.push(&ping), Err(DropReason::Denied));
    let unreachable = bench.wait();
    // Communication administratively prohibited (RFC 1812, section 5.2.7.1).
    assert_eq!(unreachable.packet().payload()[..2], [3, 13]);
    let flows = told(&kept);
    let denied = Outcome::Denied("the network is restricted".into());
    assert!(flows.iter().all(|flow| flow.outcome == denied), "{flows:?}");
    let peers: Vec<_> = flows.iter().map(|flow| (flow.protocol, flow.peer.to_string())).collect();
    let expected = [(Protocol::Tcp, "192.0.2.1:80"), (Protocol::Udp, "192.0.2.1:123")];
    assert!(peers.iter().map(|(p, a)| (*p, a.as_str())).eq(expected), "{peers:?}");
    assert_eq!(bench.activity().dropped(DropReason::Denied), 2);
}

#[test]
fn a_name_opens_its_addresses_once_our_name_server_has_answered_for_it() {
    let (socket, address) = host_socket();
    let (mut bench, kept) = restricted(&["deb.test:4321"], address);
    // Nothing that the test sends leaves: the address is the host's, where nobody listens.
    let udp = datagram(GUEST, (WORLD, 4321), 5, b"x");
    assert_eq!(bench.push(&udp), Err(DropReason::Denied));
    bench.wait();
    bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, "Deb.Test"))).unwrap();
    answer(&socket, WORLD.octets());
    assert_eq!(response_code(&bench.wait()), 0);
    assert_ne!(bench.push(&udp), Err(DropReason::Denied));
    let other = datagram(GUEST, (WORLD, 4322), 5, b"x");
    assert_eq!(bench.push(&other), Err(DropReason::Denied));
    let flows = told(&kept);
    let last = flows.last().unwrap();
    assert_eq!(last.name.as_deref(), Some("deb.test"));
    let answered = flows.iter().find(|flow| flow.outcome == Outcome::Answered(0)).unwrap();
    assert_eq!((answered.protocol, answered.name.as_deref()), (Protocol::Dns, Some("deb.test")));
}

#[test]
fn datagrams_go_on_where_a_name_let_them_when_it_has_lapsed_and_new_ones_do_not() {
    let (socket, address) = host_socket();
    let (mut bench, _) = restricted(&["deb.test"], address);
    bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, "deb.test"))).unwrap();
    answer(&socket, WORLD.octets());
    assert_eq!(response_code(&bench.wait()), 0);
    let from = |port| datagram(GUEST, (WORLD, 4321), port, b"x");
    assert_ne!(bench.push(&from(5)), Err(DropReason::Denied));
    // Names count for ten minutes at least.
    for _ in 0..22 {
        bench.advance(Duration::from_secs(30));
        assert_ne!(bench.push(&from(5)), Err(DropReason::Denied));
    }
    assert_eq!(bench.push(&from(6)), Err(DropReason::Denied));
}

#[test]
fn a_restricted_guest_asks_for_no_other_names_so_that_they_carry_nothing_out() {
    let (socket, address) = host_socket();
    let (mut bench, kept) = restricted(&["deb.test"], address);
    let secret = datagram(GUEST, (DNS, 53), 4000, &query(9, "secret.evil.test"));
    assert_eq!(bench.push(&secret), Err(DropReason::Denied));
    assert_eq!(response_code(&bench.wait()), 5, "REFUSED");
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 512]).is_err(), "the resolver was asked");
    assert_eq!(told(&kept)[0].name.as_deref(), Some("secret.evil.test"));
}

#[test]
fn an_answer_that_leads_a_name_to_the_host_is_refused_and_told() {
    for address in [[127, 0, 0, 1], GATEWAY.octets(), [169, 254, 169, 254]] {
        let (socket, resolver) = host_socket();
        let kept = Arc::new(Kept::default());
        let watch = Watch(Some(Arc::clone(&kept) as _));
        let mut bench = Bench::new(|config| {
            config.host_loopback = true;
            config.resolvers = Resolvers::Fixed(vec![resolver]);
            config.watch = watch;
        });
        bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, "rebind.test"))).unwrap();
        answer(&socket, address);
        assert_eq!(response_code(&bench.wait()), 5, "REFUSED");
        let flows = told(&kept);
        assert!(matches!(&flows[0].outcome, Outcome::Denied(why) if why.contains("host's own")));
    }
}

#[test]
fn a_connection_is_told_at_its_end_with_what_it_carried() {
    use std::io::{Read, Write};
    let kept = Arc::new(Kept::default());
    let watch = Watch(Some(Arc::clone(&kept) as _));
    let mut bench = Bench::new(|config| config.watch = watch);
    let mut peer = Peer::open(&mut bench, (SERVICE, 80));
    let mut stream = bench.services.take();
    peer.send(&mut bench, super::tcp::ACK, b"question").unwrap();
    bench.nat.poll(bench.now);
    stream.read_exact(&mut [0; 8]).unwrap();
    stream.write_all(b"the answer").unwrap();
    peer.receive(&mut bench);
    peer.send(&mut bench, super::tcp::ACK, &[]).unwrap();
    assert!(told(&kept).is_empty(), "before its end");
    bench.advance(Duration::from_secs(2));
    drop(stream);
    peer.receive(&mut bench);
    peer.send(&mut bench, super::tcp::ACK | super::tcp::FIN, &[]).unwrap();
    while bench.pull().is_some() {}
    bench.activity();
    let flows = told(&kept);
    let Flow { from_guest, to_guest, age, outcome, peer, .. } = &flows[0];
    assert_eq!((*from_guest, *to_guest, outcome), (8, 10, &Outcome::Closed));
    assert_eq!((*age, peer.to_string()), (Duration::from_secs(2), "10.0.2.100:80".into()));
    // Refused by the host, and reset by the guest.
    let syn = segment((GUEST, 5), (SERVICE, 80), SYN, 7, 0, &[]);
    bench.push(&syn).unwrap();
    bench.wait();
    bench.push(&segment((GUEST, 5), (SERVICE, 80), RST, 8, 0, &[])).unwrap();
    while bench.pull().is_some() {}
    bench.activity();
    assert_eq!(told(&kept)[0].outcome, Outcome::Reset);
    // Still open when the network goes.
    let _peer = Peer::open(&mut bench, (SERVICE, 80));
    drop(bench);
    assert_eq!(told(&kept)[0].outcome, Outcome::Open);
}

#[test]
fn callers_at_a_port_of_the_host_reach_the_guest_and_are_reset_while_there_is_none() {
    use super::tcp::{ACK, PSH};
    use std::io::{Read, Write};
    let port = crate::Inbound::bind(Protocol::Tcp, ([127, 0, 0, 1], 0).into(), 22).unwrap();
    let host = port.host().unwrap();
    let kept = Arc::new(Kept::default());
    let watch = Watch(Some(Arc::clone(&kept) as _));
    let mut bench = Bench::new(|config| {
        config.inbound = vec![port];
        config.watch = watch;
    });
    let mut early = std::net::TcpStream::connect(host).unwrap();
    early.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    bench.nat.poll(bench.now);
    assert_eq!(early.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let mut caller = std::net::TcpStream::connect(host).unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let syn = bench.wait().segment();
    assert_eq!((syn.flags, syn.src.0, syn.dst_port), (SYN, GATEWAY.into(), 22));
    let ack = syn.seq.wrapping_add(1);
    bench.push(&segment((GUEST, 22), syn.src, SYN | ACK, 100, ack, &[])).unwrap();
    assert_eq!(bench.wait().segment().flags, ACK);
    bench.push(&segment((GUEST, 22), syn.src, ACK | PSH, 101, ack, b"hello")).unwrap();
    bench.nat.poll(bench.now);
    let mut hello = [0; 5];
    caller.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    caller.write_all(b"you").unwrap();
    let data = loop {
        let segment = bench.wait().segment();
        if !segment.payload.is_empty() {
            break segment;
        }
    };
    assert_eq!(data.payload, b"you");

    // One that the guest refuses.
    let mut refused = std::net::TcpStream::connect(host).unwrap();
    refused.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let syn = loop {
        let segment = bench.wait().segment();
        if segment.flags & SYN != 0 {
            break segment;
        }
    };
    let ack = syn.seq.wrapping_add(1);
    bench.push(&segment((GUEST, 22), syn.src, RST | ACK, 0, ack, &[])).unwrap();
    while bench.pull().is_some() {}
    bench.nat.poll(bench.now);
    assert_eq!(refused.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let flows = told(&kept);
    let [flow] = &flows[..] else { panic!("{flows:?}") };
    assert!(flow.inbound && flow.peer.ip().is_loopback());
    assert_eq!(flow.outcome, Outcome::Refused);
}

#[test]
fn datagrams_pass_both_ways_through_a_port_of_the_host() {
    let port = crate::Inbound::bind(Protocol::Udp, ([127, 0, 0, 1], 0).into(), 69).unwrap();
    let host = port.host().unwrap();
    let mut bench = Bench::new(|config| config.inbound = vec![port]);
    bench.push(&arp(1, GUEST, GUEST)).unwrap();
    let (socket, address) = host_socket();
    socket.send_to(b"question", host).unwrap();
    let received = bench.wait();
    let packet = received.packet();
    let question = udp_wire::Datagram::read(packet.payload()).unwrap();
    assert_eq!((packet.src, question.dst_port), (GATEWAY.into(), 69));
    assert_eq!(question.payload, b"question");
    let (from, mut buf) = (question.src_port, [0; 16]);
    // From another port the guest answers nobody.
    assert!(bench.push(&datagram(GUEST, (GATEWAY, from), 70, b"forged")).is_err());
    bench.push(&datagram(GUEST, (GATEWAY, from), 69, b"answer")).unwrap();
    let (len, _) = socket.recv_from(&mut buf).unwrap();
    assert_eq!((&buf[..len], address.ip().is_loopback()), (&b"answer"[..], true));
    bench.advance(Duration::from_secs(61));
    assert!(bench.push(&datagram(GUEST, (GATEWAY, from), 69, b"late")).is_err());
}

#[test]
fn names_that_the_configuration_knows_are_answered_to_a_restricted_guest_and_open_their_addresses()
{
    let kept = Arc::new(Kept::default());
    let watch = Watch(Some(Arc::clone(&kept) as _));
    let mut bench = Bench::new(|config| {
        config.rules = Rules {
            restrict: true,
            allow: parsed(&["mirror.test:4321"]),
            deny: parsed(&["bad.test"]),
        };
        let known = |name: &str| (name.to_string(), IpAddr::V4(WORLD));
        config.names = [known("mirror.test"), known("other.test"), known("bad.test")].into();
        config.watch = watch;
    });
    for (name, code) in [("mirror.test", 0), ("other.test", 0), ("bad.test", 5)] {
        let _ = bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, name)));
        assert_eq!(response_code(&bench.wait()), code, "{name}");
    }
    // `bad.test` was refused, so that its rule does not hold for the address it shares.
    let udp = |port| datagram(GUEST, (WORLD, port), 5, b"x");
    assert_ne!(bench.push(&udp(4321)), Err(DropReason::Denied));
    assert_eq!(bench.push(&udp(4322)), Err(DropReason::Denied));
    assert_eq!(told(&kept)[0].name.as_deref(), Some("bad.test"));
}
