//! Dialling into the guest, as the build does for SSH.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use kvmbake_net::{DialError, DialOutcome, NatConfig, Silence};

use crate::world::{Namespace, PATIENCE, World};

const PORT: u16 = 22;

/// Runs a server in the guest that greets and sends back what it is told.
pub fn greet(guest: &Namespace) {
    let listener = guest.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                assert_eq!(stream.peer_addr().unwrap().ip(), Ipv4Addr::new(10, 0, 2, 2));
                stream.write_all(b"hello ").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
            });
        }
    });
}

pub fn converse(world: &World, timeout: Duration) {
    let mut stream = world.handle.dial(PORT, timeout).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"world").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello world");
}

#[test]
fn a_server_in_the_guest_is_reached_without_a_port_on_the_host() {
    let world = World::new(NatConfig::default());
    greet(&world.guest);
    converse(&world, PATIENCE);
    world.wait_for("the flow to be removed", |activity| activity.tcp_flows == 0);
    let (port, outcome, _) = world.handle.activity().last_dial.unwrap();
    assert_eq!((port, outcome), (PORT, DialOutcome::Connected));
}

#[test]
fn a_port_that_nothing_listens_on_is_refused_at_once() {
    let world = World::new(NatConfig::default());
    let start = Instant::now();
    let error = world.handle.dial(PORT, PATIENCE).unwrap_err();
    assert_eq!(error, DialError::Refused { port: PORT });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_guest_that_gets_its_address_late_is_waited_for() {
    let world = World::without_address(NatConfig::default(), true);
    greet(&world.guest);
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| converse(&world, PATIENCE));
        world.wait_for("the guest to be looked for", |activity| activity.frames_to_guest > 1);
        world.configure_guest();
        dialling.join().unwrap();
    });
}

#[test]
fn silence_is_explained_by_how_far_the_guest_has_come() {
    let world = World::without_address(NatConfig::default(), true);
    let timeout = Duration::from_millis(800);
    let silence = |world: &World| match world.handle.dial(PORT, timeout) {
        Err(DialError::NoAnswer { silence, .. }) => silence,
        other => panic!("{other:?}"),
    };
    assert!(matches!(silence(&world), Silence::NoFrames | Silence::NoDhcp));
    world.configure_guest();
    world.guest.run("ping", &["-c", "1", "-W", "5", "10.0.2.2"]);
    // With the route back gone, the guest answers ARP and nothing else.
    world.guest.run("ip", &["route", "del", "10.0.2.0/24", "dev", "tap0"]);
    world.guest.run("ip", &["route", "del", "default"]);
    assert_eq!(silence(&world), Silence::NoTcp);
    world.wait_for("the dial to be let go", |activity| activity.tcp_flows == 0);
}

#[test]
fn a_firewall_that_opens_late_is_waited_for() {
    let world = World::new(NatConfig::default());
    greet(&world.guest);
    world.guest.run("ping", &["-c", "1", "-W", "5", "10.0.2.2"]);
    world.guest.run("ip", &["route", "add", "blackhole", "10.0.2.2/32"]);
    world.guest.run("ip", &["addr", "flush", "dev", "tap0"]);
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| converse(&world, PATIENCE));
        world.wait_for("a second SYN", |activity| activity.tcp_flows_total > 1);
        world.guest.run("ip", &["route", "del", "blackhole", "10.0.2.2/32"]);
        world.configure_guest();
        dialling.join().unwrap();
    });
}

#[test]
fn a_dial_ends_when_the_network_does() {
    let world = World::without_address(NatConfig::default(), true);
    let handle = world.handle.clone();
    let dialling = std::thread::spawn(move || handle.dial(PORT, PATIENCE).unwrap_err());
    world.wait_for("the guest to be looked for", |activity| activity.frames_to_guest > 0);
    let handle = world.handle.clone();
    drop(world);
    assert_eq!(dialling.join().unwrap(), DialError::Closed);
    assert_eq!(handle.dial(PORT, PATIENCE).unwrap_err(), DialError::Closed);
}
