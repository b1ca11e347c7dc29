//! The network as hand-built frames see it, under a clock that the tests hold.

mod frames;
mod hostile;
mod ipv6;
mod restore;
mod rfc;
mod rules;
mod tcp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use super::*;
use crate::config::{Forward, Limits, Resolvers, Service, Target};
use crate::dns::message::tests::query;
use crate::link::{Gso, MAX_FRAME};
use crate::wire::ethernet::{self, Mac};
use crate::wire::{icmp, ip, ipv4, udp as udp_wire};
use frames::{Received, arp, datagram, frame, icmp_frame, ipv4_frame, segment};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GUEST_MAC: Mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const GATEWAY_MAC: Mac = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];

/// A service that keeps its ends of the streams for the test.
#[derive(Default)]
struct Streams(Mutex<VecDeque<UnixStream>>);

impl Streams {
    fn take(&self) -> UnixStream {
        self.0.lock().unwrap().pop_front().expect("a connection")
    }
}

impl Service for Streams {
    fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut streams = self.0.lock().unwrap();
        // A test that does not look holds the last few only.
        streams.truncate(63);
        streams.push_back(ours);
        Ok(theirs)
    }
}

/// A network and its guest, with a clock of their own.
struct Bench {
    nat: Nat,
    handle: NatHandle,
    services: Arc<Streams>,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut NatConfig)) -> Bench {
        let services = Arc::new(Streams::default());
        let mut config = NatConfig {
            resolvers: Resolvers::Fixed(Vec::new()),
            forwards: vec![Forward {
                address: SERVICE,
                port: 80,
                target: Target::Service(Arc::clone(&services) as Arc<dyn Service>),
            }],
            ..NatConfig::default()
        };
        change(&mut config);
        let now = Instant::now();
        let (nat, handle) = Nat::starting_at(config, now).unwrap();
        Bench { nat, handle, services, now }
    }

    fn push(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        self.nat.push(frame, Offload::default())
    }

    fn pull(&mut self) -> Option<Received> {
        self.nat.poll(self.now);
        let mut buf = vec![0; MAX_FRAME];
        let pulled = self.nat.pull(&mut buf)?;
        buf.truncate(pulled.len);
        Some(Received { bytes: buf, offload: pulled.offload })
    }

    /// Lets time pass.
    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.nat.poll(self.now);
    }

    /// Waits for the host until the network has a frame for the guest.
    fn wait(&mut self) -> Received {
        loop {
            if let Some(received) = self.pull() {
                return received;
            }
            let mut fd = libc::pollfd {
                fd: self.nat.wake_fd().as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: the pointer describes one pollfd, which outlives the call.
            let ready = unsafe { libc::poll(&mut fd, 1, 20_000) };
            assert_eq!(ready, 1, "nothing happened on the host");
        }
    }

    fn activity(&mut self) -> Activity {
        self.nat.poll(self.now);
        self.handle.activity()
    }
}

#[test]
fn what_is_no_frame_for_us_is_dropped_by_name() {
    let mut bench = Bench::new(|_| {});
    let good = ipv4_frame(GUEST, GATEWAY, ip::UDP, &[0; 8]);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let long = vec![0; MAX_FRAME + 1];
    let big = ipv4_frame(GUEST, GATEWAY, ip::UDP, &[0; 1500]);
    let cases: [(&[u8], DropReason); 12] = [
        (&good[..13], DropReason::Truncated),
        (&[], DropReason::Truncated),
        (&long, DropReason::TooLong),
        (&big, DropReason::TooLong),
        (&with(0, &[2, 2, 2, 2, 2, 2]), DropReason::NotForUs),
        (&with(6, &[1, 2, 3, 4, 5, 6]), DropReason::BadMac),
        (&with(6, &GATEWAY_MAC), DropReason::BadMac),
        (&with(12, &[0x86, 0xdd]), DropReason::Truncated),
        (&with(12, &[0x88, 0xcc]), DropReason::UnknownEtherType),
        (&with(20, &[0x20]), DropReason::BadIpv4),
        (&frame(ethernet::TYPE_ARP, &[0; 20]), DropReason::Truncated),
        (&frame(ethernet::TYPE_ARP, &[0; 28]), DropReason::BadArp),
    ];
    for (bytes, reason) in cases {
        assert_eq!(bench.push(bytes), Err(reason));
    }
    let activity = bench.activity();
    assert_eq!(activity.dropped(DropReason::Truncated), 4);
    assert_eq!(activity.drops().map(|(_, count)| count).sum::<u64>(), 12);
    assert!(bench.pull().is_none());
}

#[test]
fn what_no_protocol_takes_is_dropped_by_name() {
    let mut bench = Bench::new(|_| {});
    let spoof = Ipv4Addr::new(10, 0, 2, 16);
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let mut bad_udp = datagram(GUEST, (DNS, 53), 5, b"x");
    bad_udp[40] ^= 1;
    let mut bad_tcp = segment((GUEST, 5), (GATEWAY, 80), 0x02, 1, 0, &[]);
    bad_tcp[38] ^= 1;
    let mut fragment = ipv4_frame(GUEST, outside, ip::UDP, &[0; 8]);
    fragment[20] = 0x20;
    fragment[24..26].fill(0);
    let sum = crate::wire::checksum::Sum::default().add(&fragment[14..34]).complement();
    fragment[24..26].copy_from_slice(&sum);
    let group = Ipv4Addr::new(224, 0, 0, 1);
    let echo = ipv4_frame(GUEST, group, ipv4::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    let cases = [
        (ipv4_frame(spoof, outside, ip::UDP, &[0; 8]), DropReason::SpoofedSource),
        (ipv4_frame(Ipv4Addr::UNSPECIFIED, GATEWAY, ip::TCP, &[0; 20]), DropReason::SpoofedSource),
        (datagram(Ipv4Addr::UNSPECIFIED, (DNS, 53), 5, b"x"), DropReason::SpoofedSource),
        (ipv4_frame(GUEST, outside, 47, &[0; 8]), DropReason::UnknownProtocol),
        (ipv4_frame(GUEST, outside, ip::UDP, &[0; 7]), DropReason::BadUdp),
        (ipv4_frame(GUEST, outside, ip::TCP, &[0; 19]), DropReason::BadTcp),
        (
            ipv4_frame(GUEST, GATEWAY, ipv4::ICMP, &[13, 0, 0xf2, 0xff, 0, 0, 0, 0]),
            DropReason::BadIcmp,
        ),
        (ipv4_frame(GUEST, GATEWAY, ipv4::ICMP, &[8, 0, 1, 2, 0, 0, 0, 0]), DropReason::BadIcmp),
        (echo, DropReason::UnroutableDestination),
        (bad_udp, DropReason::BadUdp),
        (bad_tcp, DropReason::BadTcp),
        (fragment, DropReason::Fragment),
        (datagram(GUEST, (DNS, 53), 5, b"not a query"), DropReason::BadDns),
        (datagram(GUEST, (GATEWAY, 67), 68, b"not dhcp"), DropReason::BadDhcp),
        (
            datagram(GUEST, (Ipv4Addr::new(224, 0, 0, 251), 5353), 5353, b"x"),
            DropReason::UnroutableDestination,
        ),
        (datagram(GUEST, (Ipv4Addr::new(169, 254, 169, 254), 80), 5, b"x"), DropReason::Denied),
        (segment((GUEST, 5), (GATEWAY, 80), 0x10, 1, 1, &[]), DropReason::NoFlow),
        (segment((GUEST, 5), (GATEWAY, 80), 0x02, 1, 0, &[]), DropReason::Denied),
    ];
    for (bytes, reason) in cases {
        assert_eq!(bench.push(&bytes), Err(reason), "{bytes:02x?}");
    }
}

#[test]
fn offloads_that_do_not_fit_their_frames_are_refused() {
    let mut bench = Bench::new(|_| {});
    let syn = segment((GUEST, 5), (SERVICE, 80), 0x02, 1, 0, &[]);
    let good = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() };
    let gso = Offload { gso: Gso::TcpV4, gso_size: 1000, ..good };
    for offload in [
        Offload { csum_start: 33, ..good },
        Offload { csum_start: u16::MAX, ..good },
        Offload { csum_offset: 6, ..good },
        Offload { needs_csum: false, ..gso },
        Offload { gso_size: 0, ..gso },
        Offload { gso: Gso::TcpV6, ..gso },
    ] {
        assert_eq!(bench.nat.push(&syn, offload), Err(DropReason::BadOffload), "{offload:?}");
    }
    let udp = datagram(GUEST, (DNS, 53), 5, b"x");
    assert_eq!(bench.nat.push(&udp, gso), Err(DropReason::BadOffload));
    let mut unsummed = syn;
    unsummed[50..52].fill(0xaa);
    assert_eq!(bench.nat.push(&unsummed, gso), Ok(()));
}

#[test]
fn arp_answers_for_the_network_s_addresses_and_never_for_the_guest_s() {
    let mut bench = Bench::new(|_| {});
    for address in [GATEWAY, DNS, SERVICE] {
        bench.push(&arp(1, GUEST, address)).unwrap();
        let reply = bench.pull().unwrap();
        let expected = [
            &GUEST_MAC[..],
            &GATEWAY_MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &GATEWAY_MAC,
            &address.octets(),
            &GUEST_MAC,
            &GUEST.octets(),
        ];
        assert_eq!(reply.bytes, expected.concat());
    }
    // A probe for its own address, an announcement, and one for nobody.
    let unspecified = Ipv4Addr::UNSPECIFIED;
    for (sender, target) in
        [(unspecified, GUEST), (GUEST, GUEST), (GUEST, Ipv4Addr::new(10, 0, 2, 77))]
    {
        bench.push(&arp(1, sender, target)).unwrap();
        assert!(bench.pull().is_none());
    }
    let claims_gateway = arp(2, GATEWAY, GUEST);
    assert_eq!(bench.push(&claims_gateway), Err(DropReason::SpoofedSource));
}

#[test]
fn a_ping_of_the_gateway_comes_back_whole() {
    let mut bench = Bench::new(|_| {});
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
    message.extend((0..100).map(|byte| byte as u8));
    bench.push(&icmp_frame(GUEST, GATEWAY, &message)).unwrap();
    let reply = bench.pull().unwrap();
    let packet = reply.packet();
    assert_eq!((packet.src, packet.dst), (GATEWAY.into(), GUEST.into()));
    assert_eq!(packet.payload()[0], 0);
    assert_eq!(packet.payload()[4..], message[4..]);
    assert!(crate::wire::checksum::Sum::default().add(packet.payload()).is_valid());
}

/// A UDP socket on the host's loopback, for flows that the test answers.
fn host_socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn udp_flows_carry_both_ways_and_end_when_idle() {
    let mut bench = Bench::new(|config| config.host_loopback = true);
    let (socket, address) = host_socket();
    let to = (GATEWAY, address.port());
    bench.push(&datagram(GUEST, to, 4000, b"ping")).unwrap();
    let mut buf = [0; 16];
    let (len, from) = socket.recv_from(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"ping");
    socket.send_to(b"pong", from).unwrap();
    let received = bench.wait();
    let packet = received.packet();
    assert!(packet.has_valid_transport_checksum());
    let reply = udp_wire::Datagram::read(packet.payload()).unwrap();
    assert_eq!((packet.src, reply.src_port, reply.dst_port), (GATEWAY.into(), to.1, 4000));
    assert_eq!(reply.payload, b"pong");

    bench.advance(Duration::from_secs(59));
    assert_eq!(bench.activity().udp_flows, 1);
    bench.advance(Duration::from_secs(2));
    assert_eq!(bench.activity().udp_flows, 0);
}

#[test]
fn a_silent_resolver_is_given_up_after_two_rounds() {
    let (socket, address) = host_socket();
    let mut bench = Bench::new(|config| config.resolvers = Resolvers::Fixed(vec![address]));
    bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, "deb.test"))).unwrap();
    for _ in 0..2 {
        assert!(bench.pull().is_none());
        let due = bench.nat.deadline(bench.now).expect("a deadline");
        assert_eq!(due - bench.now, Duration::from_secs(2));
        bench.advance(Duration::from_secs(2));
    }
    let received = bench.pull().expect("an answer");
    let reply = udp_wire::Datagram::read(received.packet().payload()).unwrap();
    assert_eq!(reply.payload[..4], [0, 9, 0x81, 0x82]);
    assert_eq!(bench.nat.deadline(bench.now), None);
    let mut buf = [0; 512];
    for _ in 0..2 {
        assert_eq!(socket.recv(&mut buf).unwrap(), query(9, "deb.test").len());
    }
}

#[test]
fn only_the_answer_to_the_question_is_passed_on() {
    let (socket, address) = host_socket();
    let mut bench = Bench::new(|config| config.resolvers = Resolvers::Fixed(vec![address]));
    bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(9, "deb.test"))).unwrap();
    let mut buf = [0; 512];
    let (len, from) = socket.recv_from(&mut buf).unwrap();
    let mut answer = buf[..len].to_vec();
    answer[2] |= 0x80;
    let mut forged = answer.clone();
    forged[1] ^= 1;
    socket.send_to(&forged, from).unwrap();
    socket.send_to(b"x", from).unwrap();
    socket.send_to(&answer, from).unwrap();
    let received = bench.wait();
    let reply = udp_wire::Datagram::read(received.packet().payload()).unwrap();
    assert_eq!(reply.payload, answer);
    assert!(bench.pull().is_none());
}

#[test]
fn queries_beyond_the_limit_fail_at_once() {
    let (_socket, address) = host_socket();
    let mut bench = Bench::new(|config| {
        config.resolvers = Resolvers::Fixed(vec![address]);
        config.limits.dns_queries = 3;
    });
    for id in 0..5 {
        let pushed = bench.push(&datagram(GUEST, (DNS, 53), 4000, &query(id, "deb.test")));
        assert_eq!(pushed.is_ok(), id < 3);
        assert_eq!(bench.pull().is_some(), id >= 3);
    }
}

#[test]
fn dhcp_leads_to_a_lease_that_a_device_reset_ends() {
    let mut bench = Bench::new(|_| {});
    bench.nat.set_guest_offloads(GuestOffloads { csum: true, ..GuestOffloads::default() });
    assert_eq!(bench.activity().silence(), crate::Silence::NoFrames);
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&GUEST_MAC);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let unspecified = Ipv4Addr::UNSPECIFIED;
    for (kind, lease) in [(1, Lease::Offered), (3, Lease::Bound)] {
        let options = [53, 1, kind, 50, 4, 10, 0, 2, 15, 255];
        let message = [&message[..], &options].concat();
        bench.push(&datagram(unspecified, (Ipv4Addr::BROADCAST, 67), 68, &message)).unwrap();
        let reply = bench.pull().unwrap();
        assert_eq!(reply.packet().src, GATEWAY);
        assert_eq!(bench.activity().lease, lease);
    }
    assert_eq!(bench.activity().silence(), crate::Silence::NoArp);
    bench.nat.set_guest_offloads(GuestOffloads::default());
    assert_eq!(bench.activity().lease, Lease::None);
}

#[test]
fn a_frame_longer_than_the_puller_s_buffer_is_dropped() {
    let mut bench = Bench::new(|_| {});
    bench.push(&arp(1, GUEST, GATEWAY)).unwrap();
    bench.push(&arp(1, GUEST, DNS)).unwrap();
    assert!(bench.nat.pull(&mut [0; 41]).is_none());
    assert!(bench.nat.pull(&mut [0; 42]).is_none());
}
