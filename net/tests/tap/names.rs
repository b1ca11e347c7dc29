//! DNS through the network's name server, asked by dig.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kvmbake_net::{NatConfig, Resolvers, Rules};

use crate::world::{PATIENCE, WORLD, World};

/// Writes the answer to a query: a record for the name's address, or many for a long name.
fn answer(query: &[u8], over_tcp: bool) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += 1 + usize::from(query[end]);
    }
    let many = query[13..].starts_with(b"large");
    let question = &query[12..end + 5];
    let mut answer = query[..2].to_vec();
    let count: u16 = match (many, over_tcp) {
        (false, _) => 1,
        (true, true) => 200,
        (true, false) => 150,
    };
    answer.extend([0x81, 0x80, 0, 1]);
    answer.extend(count.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(question);
    for index in 0..count {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, index as u8]);
    }
    answer
}

/// Where the resolver listens: like a stub, on the loopback of the world only.
const STUB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// Runs a resolver in the world, over UDP, that answers each query with one address.
pub fn resolve_as(world: &World, address: impl Fn(&[u8]) -> [u8; 4] + Send + 'static) {
    let socket = world.host.within(|| UdpSocket::bind(STUB)).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let mut answer = answer(&buf[..len], true);
            let at = answer.len() - 4;
            answer[at..].copy_from_slice(&address(&buf[..len]));
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// Runs a resolver in the world, over UDP and TCP.
fn resolve(world: &World) {
    world.serve_at(STUB, |mut stream| {
        let mut len = [0; 2];
        while stream.read_exact(&mut len).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let answer = answer(&query, true);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    let socket = world.host.within(|| UdpSocket::bind(STUB)).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&answer(&buf[..len], false), from);
        }
    });
}

fn world(resolvers: Vec<SocketAddr>) -> World {
    let resolvers = Resolvers::Fixed(resolvers);
    World::new(NatConfig { resolvers, hosts: None, ..NatConfig::default() })
}

fn dig(world: &World, arguments: &[&str]) -> String {
    let common = ["@10.0.2.3", "+tries=1", "+time=15"];
    world.guest.run("dig", &[&common[..], arguments].concat())
}

#[test]
fn queries_are_answered_by_a_resolver_on_the_host_s_loopback() {
    let world = world(vec![STUB]);
    resolve(&world);
    for arguments in [&["+short", "deb.test"][..], &["+short", "+tcp", "deb.test"]] {
        assert_eq!(dig(&world, arguments), "192.0.2.0\n");
    }
    assert_eq!(world.handle.activity().dns_queries, 2);
    world.wait_for("flows to be removed", |activity| activity.tcp_flows == 0);
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_again_over_tcp() {
    let world = world(vec![STUB]);
    resolve(&world);
    let text = dig(&world, &["large.test"]);
    assert!(text.contains("Truncated, retrying in TCP mode"), "{text}");
    assert!(text.contains("ANSWER: 200"), "{text}");
}

#[test]
fn without_a_working_resolver_the_answer_is_servfail_and_comes_at_once() {
    // No resolver at all, one that refuses, and one that cannot be reached.
    let unreachable = SocketAddr::from(([198, 51, 100, 1], 53));
    for resolvers in [vec![], vec![STUB], vec![unreachable]] {
        let world = world(resolvers);
        let start = Instant::now();
        let text = dig(&world, &["deb.test"]);
        assert!(text.contains("status: SERVFAIL"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn the_next_resolver_is_asked_where_the_first_refuses_or_is_silent() {
    let refusing = SocketAddr::from(([127, 0, 0, 2], 53));
    let silent = SocketAddr::from(([127, 0, 0, 3], 53));
    let world = world(vec![refusing, silent, STUB]);
    resolve(&world);
    let _silence = world.host.within(move || UdpSocket::bind(silent)).unwrap();
    assert_eq!(dig(&world, &["+short", "deb.test"]), "192.0.2.0\n");
    assert_eq!(dig(&world, &["+short", "+tcp", "deb.test"]), "192.0.2.0\n");
}

#[test]
fn names_of_the_configuration_and_of_the_hosts_file_are_answered_without_a_resolver() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let text = "127.0.1.1 host\n192.0.2.7 mirror.test mirror\n2001:db8::7 mirror.test\n";
    std::fs::write(&hosts, text).unwrap();
    let world = World::new(NatConfig {
        resolvers: Resolvers::Fixed(vec![]),
        names: vec![
            ("Fixed.Test".into(), IpAddr::from([192, 0, 2, 1])),
            ("fixed.test".into(), IpAddr::from([192, 0, 2, 2])),
        ],
        hosts: Some(hosts),
        ..NatConfig::default()
    });
    for (arguments, answer) in [
        (&["fixed.test"][..], "192.0.2.1\n192.0.2.2\n"),
        (&["+noedns", "FIXED.test"], "192.0.2.1\n192.0.2.2\n"),
        (&["mirror"], "192.0.2.7\n"),
        (&["mirror.test", "AAAA"], "2001:db8::7\n"),
        (&["localhost"], "127.0.0.1\n"),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let arguments = [&["+short", transport], arguments].concat();
            assert_eq!(dig(&world, &arguments), answer, "{arguments:?}");
        }
    }
    // A name of ours has no address of the other family, which is not an error.
    let text = dig(&world, &["mirror", "AAAA"]);
    assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 0"), "{text}");
    // What dig finds wrong with a message it says in capitals.
    assert!(text.contains("EDNS: version: 0") && !text.contains("WARNING"), "{text}");
    // The host's own name and other types are the resolver's.
    for arguments in [&["host"][..], &["mirror", "MX"]] {
        assert!(dig(&world, arguments).contains("status: SERVFAIL"), "{arguments:?}");
    }
}

#[test]
fn a_resolver_that_speaks_nonsense_is_given_up() {
    let world = world(vec![STUB]);
    let socket = world.host.within(|| UdpSocket::bind(STUB)).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buf) {
            for at in 0..100 {
                let _ = socket.send_to(&[at; 40], from);
            }
        }
    });
    let start = Instant::now();
    assert!(dig(&world, &["deb.test"]).contains("status: SERVFAIL"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Connects the guest to its name server.
fn connect(world: &World) -> TcpStream {
    let stream = world.guest.within(|| TcpStream::connect("10.0.2.3:53")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A query for the address of `name`, behind its length.
fn framed_query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    [&(query.len() as u16).to_be_bytes()[..], &query].concat()
}

/// Returns the id and the count of answers of the next message.
fn next_answer(stream: &mut TcpStream) -> (u16, u16) {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).unwrap();
    (u16::from_be_bytes([answer[0], answer[1]]), u16::from_be_bytes([answer[6], answer[7]]))
}

#[test]
fn queries_in_one_connection_are_answered_in_turn_however_they_are_cut() {
    let resolvers = Resolvers::Fixed(vec![STUB]);
    let names = vec![("fixed.test".into(), IpAddr::from([192, 0, 2, 1]))];
    let world = World::new(NatConfig { resolvers, names, hosts: None, ..NatConfig::default() });
    resolve(&world);
    let mut stream = connect(&world);
    // All at once, and the guest's direction ended before the first answer (RFC 7766, section 6.2.1).
    let names = ["deb.test", "fixed.test", "large.test", "fixed.test"];
    let queries: Vec<Vec<u8>> =
        names.iter().enumerate().map(|(id, name)| framed_query(id as u16, name)).collect();
    stream.write_all(&queries.concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = [(0, 1), (1, 1), (2, 200), (3, 1)];
    assert_eq!(answers.map(|_| next_answer(&mut stream)), answers);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // Byte by byte.
    let mut stream = connect(&world);
    stream.set_nodelay(true).unwrap();
    for byte in framed_query(7, "fixed.test") {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(next_answer(&mut stream), (7, 1));
    // What is no query ends the connection.
    for nonsense in [&[0xff, 0xff][..], &[0, 0], &[0, 12, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut stream = connect(&world);
        stream.write_all(nonsense).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "{nonsense:?}");
    }
    drop(stream);
    world.wait_for("flows to be removed", |activity| activity.tcp_flows == 0);
    assert_eq!(world.handle.activity().dns_queries, 4 + 1 + 2);
}

#[test]
fn rules_hold_for_queries_over_tcp() {
    let rules = Rules {
        restrict: true,
        allow: vec!["deb.test".parse().unwrap(), "inside.test".parse().unwrap()],
        deny: Vec::new(),
    };
    let resolvers = Resolvers::Fixed(vec![STUB]);
    let world = World::new(NatConfig { resolvers, rules, hosts: None, ..NatConfig::default() });
    world.serve_at(STUB, |mut stream| {
        let mut len = [0; 2];
        while stream.read_exact(&mut len).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let mut answer = answer(&query, true);
            let at = answer.len() - 4;
            let is_inside = query[13..].starts_with(b"inside");
            answer[at..].copy_from_slice(&if is_inside { [127, 0, 0, 1] } else { WORLD.octets() });
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    let server = world.serve(WORLD, |mut stream| stream.write_all(b"open").unwrap());
    let reach = || world.guest.within(move || TcpStream::connect(server)).is_ok();
    assert!(!reach());
    assert!(dig(&world, &["+tcp", "evil.test"]).contains("status: REFUSED"));
    // An answer that leads to the host is not passed on.
    assert!(dig(&world, &["+tcp", "inside.test"]).contains("status: REFUSED"));
    assert!(!reach());
    assert_eq!(dig(&world, &["+short", "+tcp", "deb.test"]), "192.0.2.1\n");
    assert!(reach(), "the answer has opened its address");
}
