//! IPv6, with the addresses and routes that Linux makes for itself from the router's advertisements.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kvmbake_net::{DropReason, NatConfig};

use crate::device::Tap;
use crate::world::{PATIENCE, World};

/// An address of the world's, from the range kept for documentation.
const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A world with IPv6: an address, and a default route to where nobody reads.
fn world(config: NatConfig) -> (World, Tap) {
    let world = World::without_address(config, true);
    let hole = world.host.within(|| Tap::open("hole", true)).unwrap();
    world.host.run("ip", &["-6", "addr", "add", "2001:db8::1/128", "dev", "lo"]);
    world.host.run("ip", &["link", "set", "hole", "up"]);
    world.host.run("ip", &["-6", "route", "add", "default", "dev", "hole"]);
    configure_itself(&world);
    (world, hole)
}

/// Has the guest ask for a router again, as when a driver comes up, and waits for its address.
fn configure_itself(world: &World) {
    world.guest.run("ip", &["link", "set", "tap0", "down"]);
    world.guest.run("ip", &["link", "set", "tap0", "up"]);
    let deadline = Instant::now() + PATIENCE;
    let has_address = || {
        let text = world.guest.run("ip", &["-6", "addr", "show", "dev", "tap0", "scope", "global"]);
        text.contains("inet6 fd00::") && !text.contains("tentative")
    };
    while !has_address() {
        assert!(Instant::now() < deadline, "no address: {:#?}", world.handle.activity());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn connect(world: &World, to: SocketAddr) -> io::Result<TcpStream> {
    world.guest.within(move || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

#[test]
fn linux_makes_its_address_and_route_and_reaches_the_world() {
    let (world, _hole) = world(NatConfig::default());
    let route = world.guest.run("ip", &["-6", "route", "show", "default"]);
    assert!(route.contains("via fe80::2 dev tap0 proto ra"), "{route}");
    let server = world.serve_at(SocketAddr::from((WORLD6, 0)), |mut stream| {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        stream.write_all(&text).unwrap();
    });
    let mut stream = connect(&world, server).unwrap();
    let sent: Vec<u8> = (0..10 << 20).map(|at: u32| (at / 3) as u8).collect();
    let mut reader = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        stream.write_all(&copy).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == sent);
    let activity = world.handle.activity();
    let per_frame = activity.bytes_from_guest / activity.frames_from_guest;
    // Without offload no frame is longer than the MTU and its Ethernet header; the mean counts ACKs too.
    assert!(per_frame > 1514, "no segmentation offload: {activity:#?}");

    drop(reader);
    world.wait_for("the flow to be removed", |activity| activity.tcp_flows == 0);
    let closed = SocketAddr::from((WORLD6, 9));
    let error = connect(&world, closed).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    world.wait_for("the other flow to be removed", |activity| activity.tcp_flows == 0);
    for reason in [DropReason::BadIcmp, DropReason::BadNdp, DropReason::BadIpv6] {
        assert_eq!(world.handle.activity().dropped(reason), 0, "{reason}");
    }
}

#[test]
fn udp_goes_out_and_errors_come_back() {
    let (world, _hole) = world(NatConfig::default());
    let server = world.host.within(|| UdpSocket::bind((WORLD6, 0))).unwrap();
    let to = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((len, from)) = server.recv_from(&mut buf) {
            let _ = server.send_to(&buf[..len], from);
        }
    });
    let socket = |to: SocketAddr| {
        world.guest.within(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    };
    let open = socket(to);
    for len in [0, 1, 1452] {
        open.send(&vec![3; len]).unwrap();
        assert_eq!(open.recv(&mut [0; 2048]).unwrap(), len);
    }
    let closed = socket(SocketAddr::from((WORLD6, 9)));
    closed.send(b"anyone?").unwrap();
    let error = closed.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn pings_of_the_world_are_answered_where_the_host_allows_them() {
    let (world, _hole) = world(NatConfig::default());
    let ping = ["-6", "-c", "2", "-i", "0.05", "-W", "5", "2001:db8::1"];
    let output = world.guest.output("ping", &ping);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("prohibited"), "{text}");
    world.allow_pings();
    let text = world.guest.run("ping", &ping);
    assert!(text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn a_host_without_ipv6_leaves_the_guest_without_a_default_route_and_answers_at_once() {
    let world = World::without_address(NatConfig::default(), true);
    configure_itself(&world);
    let route = world.guest.run("ip", &["-6", "route", "show", "default"]);
    assert_eq!(route, "");
    let start = Instant::now();
    let error = connect(&world, SocketAddr::from((WORLD6, 80))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    // Also when someone has given it the route by hand.
    world.guest.run("ip", &["-6", "route", "add", "default", "via", "fe80::2", "dev", "tap0"]);
    let error = connect(&world, SocketAddr::from((WORLD6, 80))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // The network itself is there.
    world.guest.run("ping", &["-6", "-c", "1", "-W", "5", "fd00::2"]);
    let text = world.guest.run("dig", &["@fd00::3", "+tries=1", "+time=10", "deb.test"]);
    assert!(text.contains("status: SERVFAIL"), "{text}");
}

#[test]
fn a_prefix_of_one_s_own_is_advertised() {
    let mut config = NatConfig::default();
    let ipv6 = config.ipv6.as_mut().unwrap();
    ipv6.prefix = "fdab:cdef:0:7::".parse().unwrap();
    let gateway = ipv6.gateway();
    assert_eq!(IpAddr::V6(gateway), "fdab:cdef:0:7::2".parse::<IpAddr>().unwrap());
    let world = World::without_address(config, true);
    world.guest.run("ip", &["link", "set", "tap0", "down"]);
    world.guest.run("ip", &["link", "set", "tap0", "up"]);
    let deadline = Instant::now() + PATIENCE;
    let ping = ["-6", "-c", "1", "-W", "1", "fdab:cdef:0:7::2"];
    while !world.guest.output("ping", &ping).status.success() {
        assert!(Instant::now() < deadline, "no address: {:#?}", world.handle.activity());
        std::thread::sleep(Duration::from_millis(50));
    }
}
