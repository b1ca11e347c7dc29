use super::*;
use crate::outbox::Addresses;
use crate::wire::{ip, udp};

const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GUEST: [u8; 4] = [10, 0, 2, 15];

struct Server {
    dhcp: Dhcp,
    outbox: Outbox,
    search: Vec<String>,
}

/// A reply as it arrived.
struct Reply {
    eth_dst: Mac,
    dst: std::net::IpAddr,
    bytes: Vec<u8>,
}

impl Reply {
    fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut rest = &self.bytes[FIXED_LEN..];
        while rest[0] != option::END {
            let len = usize::from(rest[1]);
            if rest[0] == code {
                return Some(rest[2..2 + len].to_vec());
            }
            rest = &rest[2 + len..];
        }
        None
    }

    fn kind(&self) -> u8 {
        self.option(option::MESSAGE_TYPE).unwrap()[0]
    }
}

impl Server {
    fn new(change: impl FnOnce(&mut NatConfig)) -> Server {
        let mut config = NatConfig::default();
        change(&mut config);
        Server {
            outbox: Outbox::new(Addresses {
                gateway_mac: config.gateway_mac,
                guest_mac: MAC,
                guest: config.guest,
            }),
            search: config.search.clone().unwrap_or_default(),
            dhcp: Dhcp::new(Arc::new(config)),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> (Result<Outcome, DropReason>, Option<Reply>) {
        let outcome = self.dhcp.push(bytes, &MAC, &self.search, &mut self.outbox);
        let reply = self.outbox.take(|frame, _| {
            let packet = ip::Packet::read(&frame[14..]).unwrap();
            assert!(packet.has_valid_transport_checksum());
            let datagram = udp::Datagram::read(packet.payload()).unwrap();
            assert_eq!((datagram.src_port, datagram.dst_port), (67, 68));
            Reply {
                eth_dst: frame[..6].try_into().unwrap(),
                dst: packet.dst,
                bytes: datagram.payload.to_vec(),
            }
        });
        (outcome, reply)
    }
}

fn request(kind: u8, ciaddr: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; FIXED_LEN];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[12..16].copy_from_slice(&ciaddr);
    bytes[28..34].copy_from_slice(&MAC);
    bytes[236..240].copy_from_slice(&COOKIE.to_be_bytes());
    bytes.extend([option::MESSAGE_TYPE, 1, kind, option::PAD]);
    for (code, value) in options {
        bytes.extend([*code, value.len() as u8]);
        bytes.extend(*value);
    }
    bytes.push(option::END);
    bytes
}

#[test]
fn discover_is_offered_the_guest_s_address_with_all_options() {
    let mut server = Server::new(|config| {
        config.domain = Some("build.test".into());
        config.hostname = Some("baker".into());
        config.mtu = 9000;
    });
    let id = [1, 2, 3, 4];
    let (outcome, reply) = server.send(&request(1, [0; 4], &[(option::CLIENT_ID, &id)]));
    let reply = reply.unwrap();
    assert_eq!(outcome, Ok(Outcome::Offered));
    assert_eq!(reply.kind(), message::OFFER);
    assert_eq!((reply.eth_dst, reply.dst), (MAC, Ipv4Addr::from(GUEST).into()));
    assert_eq!(reply.bytes[4..8], [0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(reply.bytes[16..20], GUEST);
    let expected: [(u8, &[u8]); 12] = [
        (option::SERVER, &[10, 0, 2, 2]),
        (option::MASK, &[255, 255, 255, 0]),
        (option::BROADCAST, &[10, 0, 2, 255]),
        (option::ROUTER, &[10, 0, 2, 2]),
        (option::DNS, &[10, 0, 2, 3]),
        (option::MTU, &[0x23, 0x28]),
        (option::LEASE, &86_400u32.to_be_bytes()),
        (option::RENEWAL, &43_200u32.to_be_bytes()),
        (option::REBINDING, &75_600u32.to_be_bytes()),
        (option::DOMAIN, b"build.test"),
        (option::HOSTNAME, b"baker"),
        (option::CLIENT_ID, &id),
    ];
    for (code, value) in expected {
        assert_eq!(reply.option(code).as_deref(), Some(value), "option {code}");
    }
}

#[test]
fn the_domains_that_are_searched_are_given_and_the_first_is_the_guest_s_own() {
    let mut server = Server::new(|config| {
        config.search = Some(vec!["a.test".into(), "b.example".into()]);
    });
    let reply = server.send(&request(1, [0; 4], &[])).1.unwrap();
    assert_eq!(reply.option(option::DOMAIN).as_deref(), Some(&b"a.test"[..]));
    // RFC 3397 with the names of RFC 1035, section 3.1.
    let expected = b"\x01a\x04test\0\x01b\x07example\0";
    assert_eq!(reply.option(option::SEARCH).as_deref(), Some(&expected[..]));
}

#[test]
fn a_client_that_cannot_take_unicast_yet_is_answered_by_broadcast() {
    let mut server = Server::new(|_| {});
    let mut bytes = request(1, [0; 4], &[]);
    bytes[10] = 0x80;
    let reply = server.send(&bytes).1.unwrap();
    assert_eq!((reply.eth_dst, reply.dst), (ethernet::BROADCAST, Ipv4Addr::BROADCAST.into()));
}

#[test]
fn request_and_renewal_are_acknowledged() {
    let mut server = Server::new(|_| {});
    let select: [(u8, &[u8]); 2] = [(option::REQUESTED, &GUEST), (option::SERVER, &[10, 0, 2, 2])];
    let (outcome, reply) = server.send(&request(3, [0; 4], &select));
    assert_eq!(outcome, Ok(Outcome::Acknowledged));
    assert_eq!(reply.unwrap().kind(), message::ACK);

    let (outcome, reply) = server.send(&request(3, GUEST, &[]));
    let reply = reply.unwrap();
    assert_eq!(outcome, Ok(Outcome::Acknowledged));
    assert_eq!((reply.kind(), reply.dst), (message::ACK, Ipv4Addr::from(GUEST).into()));
}

#[test]
fn a_request_for_another_address_is_refused_aloud() {
    let mut server = Server::new(|_| {});
    let wrong = [192, 168, 1, 7];
    let (outcome, reply) = server.send(&request(3, [0; 4], &[(option::REQUESTED, &wrong)]));
    let reply = reply.unwrap();
    assert_eq!(outcome, Ok(Outcome::Refused));
    assert_eq!((reply.kind(), reply.dst), (message::NAK, Ipv4Addr::BROADCAST.into()));
    assert_eq!(reply.option(option::LEASE), None);
}

#[test]
fn a_request_to_another_server_is_left_to_it() {
    let mut server = Server::new(|_| {});
    let other = [(option::SERVER, &[10, 0, 2, 99][..])];
    let (outcome, reply) = server.send(&request(3, [0; 4], &other));
    assert_eq!(outcome, Ok(Outcome::Unchanged));
    assert!(reply.is_none());
}

#[test]
fn inform_is_told_the_options_without_a_lease() {
    let mut server = Server::new(|_| {});
    let (outcome, reply) = server.send(&request(8, GUEST, &[]));
    let reply = reply.unwrap();
    assert_eq!((outcome, reply.kind()), (Ok(Outcome::Unchanged), message::ACK));
    assert_eq!(reply.option(option::LEASE), None);
    assert_eq!(reply.bytes[16..20], [0; 4]);
    assert_eq!(reply.option(option::DNS).unwrap(), [10, 0, 2, 3]);
}

#[test]
fn release_ends_the_lease_without_an_answer() {
    let mut server = Server::new(|_| {});
    let (outcome, reply) = server.send(&request(7, GUEST, &[]));
    assert_eq!(outcome, Ok(Outcome::Released));
    assert!(reply.is_none());
}

#[test]
fn malformed_messages_are_dropped() {
    let mut server = Server::new(|_| {});
    let good = request(1, [0; 4], &[]);
    let mut other_station = good.clone();
    other_station[30] ^= 1;
    let mut no_cookie = good.clone();
    no_cookie[239] = 0;
    let mut overlong = good.clone();
    overlong.truncate(good.len() - 1);
    overlong.extend([option::CLIENT_ID, 200, 1]);
    let no_type = [&good[..FIXED_LEN], &[option::END]].concat();
    for bytes in [&good[..100], &other_station, &no_cookie, &overlong, &no_type] {
        assert_eq!(server.send(bytes).0, Err(DropReason::BadDhcp));
    }
}

#[test]
fn the_longest_names_and_identifiers_stay_within_a_reply() {
    let long = vec!["a".repeat(49); 5].join(".");
    let mut server = Server::new(|config| {
        config.domain = Some(long.clone());
        config.hostname = Some(long.clone());
        config.search = Some(vec![long.clone(); 6]);
    });
    let reply = server.send(&request(1, [0; 4], &[(option::CLIENT_ID, &[9; 255])])).1.unwrap();
    assert!(reply.bytes.len() <= MAX_LEN);
    assert_eq!(reply.option(option::DNS).unwrap(), [10, 0, 2, 3]);
}
