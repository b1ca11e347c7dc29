//! ICMP: echo to the world, and what routers say of the guest's packets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use kvmbake_net::{DropReason, NatConfig};

use crate::udp::report_errors;
use crate::world::{Namespace, PATIENCE, World};

/// Puts a router behind the world's host: 203.0.113.1 is its near end, and 198.51.100.1 lies behind
/// it. 198.51.100.7 is nobody, 198.51.100.8 is forbidden, and the router says so.
fn router(world: &World) -> Namespace {
    let router = Namespace::new();
    world.host.run("ip", &["link", "add", "near", "type", "veth", "peer", "name", "far"]);
    let target = router.target();
    world.host.run("ip", &["link", "set", "far", "netns", &target]);
    world.host.run("ip", &["addr", "add", "203.0.113.2/24", "dev", "near"]);
    world.host.run("ip", &["link", "set", "near", "up"]);
    world.host.run("ip", &["route", "add", "198.51.100.0/24", "via", "203.0.113.1"]);
    router.run("ip", &["addr", "add", "203.0.113.1/24", "dev", "far"]);
    router.run("ip", &["link", "set", "far", "up"]);
    router.run("ip", &["addr", "add", "198.51.100.1/32", "dev", "lo"]);
    router.run("ip", &["route", "add", "unreachable", "198.51.100.7/32"]);
    router.run("ip", &["route", "add", "198.51.100.9/32", "via", "203.0.113.2"]);
    router.run("ip", &["route", "add", "prohibit", "198.51.100.8/32"]);
    router.write("/proc/sys/net/ipv4/ip_forward", "1");
    // The kernel sends errors sparingly.
    router.write("/proc/sys/net/ipv4/icmp_ratelimit", "0");
    router
}

#[test]
fn pings_of_the_world_come_back_whole_and_by_their_own_numbers() {
    let world = World::new(NatConfig::default());
    world.allow_pings();
    for size in ["0", "56", "1472"] {
        let ping = ["-c", "5", "-i", "0.01", "-W", "5", "-s", size, "192.0.2.1"];
        let text = world.guest.run("ping", &ping);
        assert!(text.contains("5 received, 0% packet loss"), "{text}");
    }
    // Two at once are two flows.
    let both: Vec<_> = (0..2)
        .map(|_| world.guest.spawn("ping", &["-c", "20", "-i", "0.01", "-W", "5", "192.0.2.1"]))
        .collect();
    for ping in both {
        let output = ping.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("20 received, 0% packet loss"), "{text}");
        assert!(!text.contains("DUP"), "{text}");
    }
}

#[test]
fn where_the_host_forbids_pings_the_guest_is_told_so() {
    let world = World::new(NatConfig::default());
    let output = world.guest.output("ping", &["-c", "1", "-W", "5", "192.0.2.1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Packet filtered"), "{text}");
    world.wait_for("a drop by name", |activity| activity.dropped(DropReason::PingForbidden) == 1);
}

#[test]
fn what_routers_say_of_pings_reaches_the_guest_in_their_name() {
    let world = World::new(NatConfig::default());
    world.allow_pings();
    let _router = router(&world);
    let ping = |arguments: &[&str]| {
        let output = world.guest.output("ping", &[&["-c", "1", "-W", "5"], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = ping(&["198.51.100.1"]);
    assert!(text.contains("1 received"), "{text}");
    let text = ping(&["198.51.100.7"]);
    assert!(text.contains("From 203.0.113.1 icmp_seq=1 Destination Host Unreachable"), "{text}");
    let text = ping(&["198.51.100.8"]);
    assert!(text.contains("From 203.0.113.1 icmp_seq=1 Packet filtered"), "{text}");
    let text = ping(&["-t", "1", "198.51.100.9"]);
    assert!(text.contains("From 203.0.113.1 icmp_seq=1 Time to live exceeded"), "{text}");
}

#[test]
fn what_routers_say_of_datagrams_and_connections_reaches_the_guest() {
    let world = World::new(NatConfig::default());
    let _router = router(&world);
    // Linux tells a program of passing errors as of unreachable hosts where it has asked for them.
    let udp = |to: [u8; 4]| {
        let to = SocketAddr::from((to, 9));
        let socket = world.guest.within(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            report_errors(&socket);
            socket
        });
        // The router's kernel says it sparingly.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = socket.send(b"anyone?").and_then(|_| socket.recv(&mut [0; 16]));
            match result.unwrap_err() {
                error if error.kind() != io::ErrorKind::WouldBlock => return error,
                error => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    let tcp = |to: [u8; 4]| crate::tcp::connect(&world, SocketAddr::from((to, 9))).unwrap_err();
    for (host, kind) in [(1, io::ErrorKind::ConnectionRefused), (7, io::ErrorKind::HostUnreachable)]
    {
        let error = udp([198, 51, 100, host]);
        assert_eq!(error.kind(), kind, "a datagram: {error}");
        let error = tcp([198, 51, 100, host]);
        assert_eq!(error.kind(), kind, "a connection: {error}");
    }
}

#[test]
fn a_narrow_way_is_found_out_by_those_who_look_for_it() {
    let world = World::new(NatConfig::default());
    let router = router(&world);
    // Behind the router the way is narrow, and an end that answers lies behind it.
    let end = Namespace::new();
    router.run("ip", &["link", "add", "right", "type", "veth", "peer", "name", "left"]);
    router.run("ip", &["link", "set", "left", "netns", &end.target()]);
    router.run("ip", &["addr", "add", "10.9.9.1/24", "dev", "right"]);
    router.run("ip", &["link", "set", "right", "up", "mtu", "1000"]);
    end.run("ip", &["addr", "add", "10.9.9.2/24", "dev", "left"]);
    end.run("ip", &["link", "set", "left", "up", "mtu", "1000"]);
    end.run("ip", &["route", "add", "default", "via", "10.9.9.1"]);
    world.host.run("ip", &["route", "add", "10.9.9.0/24", "via", "203.0.113.1"]);
    let server = end.within(|| UdpSocket::bind("10.9.9.2:0")).unwrap();
    let to = server.local_addr().unwrap();
    let socket = world.guest.within(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(to).unwrap();
        socket
    });
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    // Linux forbids fragments, learns of the way's width from the error, and fragments by itself
    // from then on, which this network does not carry: so a program sends less.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let _ = socket.send(&[7; 1200]);
        let route = world.guest.run("ip", &["route", "get", "10.9.9.2"]);
        if route.contains("mtu 1000") {
            break;
        }
        assert!(Instant::now() < deadline, "{route}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The errors of the datagrams before.
    while socket.send(&[7; 972]).is_err() {}
    let mut buf = [0; 2048];
    assert_eq!(server.recv(&mut buf).unwrap(), 972);
}
