//! A guest that goes on with another NAT, as after a machine snapshot's restore.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvmbake_net::{Lease, NatConfig};

use crate::dialling::{converse, greet};
use crate::services::{environment, script};
use crate::tcp::connect;
use crate::world::{PATIENCE, WORLD, World};

/// How long "at once" may take.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A world whose servers answer a byte with as many as it says, times 1000, and stay.
fn serve(world: &World) -> std::net::SocketAddr {
    world.serve(WORLD, |mut stream| {
        let mut count = [0];
        while let Ok(1) = stream.read(&mut count) {
            let _ = stream.write_all(&vec![7; usize::from(count[0]) * 1000]);
        }
    })
}

fn assert_reset(stream: &mut TcpStream, since: Instant) {
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
}

#[test]
fn programs_of_the_guest_see_their_connections_reset_and_make_new_ones() {
    let mut world = World::new(NatConfig::default());
    let server = serve(&world);
    // One has just been opened, and one has been spoken over.
    let mut opened = connect(&world, server).unwrap();
    let mut spoken = connect(&world, server).unwrap();
    spoken.write_all(&[3]).unwrap();
    spoken.read_exact(&mut [0; 3000]).unwrap();
    world.wait_for("two flows", |activity| activity.tcp_flows_total == 2);

    world.replace(NatConfig::default());
    let since = Instant::now();
    assert_reset(&mut opened, since);
    assert_reset(&mut spoken, since);
    assert_eq!(world.handle.activity().tcp_flows, 0);

    let mut stream = connect(&world, server).unwrap();
    stream.write_all(&[9]).unwrap();
    stream.read_exact(&mut [0; 9000]).unwrap();
}

/// Waits until no byte has passed for a while.
fn wait_for_standstill(world: &World) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = (world.handle.activity().bytes_to_guest, Instant::now());
    while last.1.elapsed() < Duration::from_millis(300) {
        assert!(Instant::now() < deadline, "bytes keep passing");
        std::thread::sleep(Duration::from_millis(10));
        let bytes = world.handle.activity().bytes_to_guest;
        if bytes != last.0 {
            last = (bytes, Instant::now());
        }
    }
}

#[test]
fn a_transfer_that_was_cut_is_reset_whatever_was_under_way() {
    let mut world = World::new(NatConfig::default());
    let server = world.serve(WORLD, |mut stream| {
        let chunk = vec![7; 1 << 16];
        while stream.write_all(&chunk).is_ok() {}
    });
    for round in 0..5 {
        let mut stream = connect(&world, server).unwrap();
        // In even rounds the guest's buffers are full and the flow stands still, window closed.
        if round % 2 == 1 {
            let mut buf = vec![0; 1 << 20];
            stream.read_exact(&mut buf).unwrap();
        } else {
            wait_for_standstill(&world);
        }
        world.replace(NatConfig::default());
        let since = Instant::now();
        let mut buf = vec![0; 1 << 20];
        let error = loop {
            match stream.read(&mut buf) {
                Ok(0) => panic!("an end of file where the connection was cut"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "round {round}");
        assert!(since.elapsed() < AT_ONCE, "round {round}: {:?}", since.elapsed());
    }
}

#[test]
fn curl_fails_at_once_and_succeeds_when_run_again() {
    let mut world = World::new(NatConfig::default());
    let (asked, wait) = mpsc::channel();
    let server = world.serve(WORLD, move |mut stream| {
        let mut request = [0; 4096];
        let len = stream.read(&mut request).unwrap();
        if request[..len].starts_with(b"GET /slow ") {
            asked.send(()).unwrap();
            // Never answered: the connection's other end goes first.
            let _ = stream.read(&mut request);
            return;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        let _ = stream.read(&mut request);
    });
    let url = format!("http://{server}/slow");
    let curl = world.guest.spawn("curl", &["-sS", "--max-time", "20", &url]);
    wait.recv_timeout(PATIENCE).unwrap();
    let since = Instant::now();
    world.replace(NatConfig::default());
    let output = curl.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("Connection reset by peer"), "{error}");
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    let url = format!("http://{server}/fast");
    assert_eq!(world.guest.run("curl", &["-sS", "--max-time", "20", &url]), "hello");
}

#[test]
fn the_guest_s_server_loses_its_session_and_is_dialled_anew_at_once() {
    let mut world = World::new(NatConfig::default());
    let listener = world.guest.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2222))).unwrap();
    let (ended, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let error = (&stream).read(&mut [0; 16]).map_err(|error| error.kind());
            ended.send(error).unwrap();
        }
    });
    greet(&world.guest);
    let session = world.handle.dial(2222, PATIENCE).unwrap();
    world.replace(NatConfig::default());
    let since = Instant::now();
    converse(&world, PATIENCE);
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    let outcome = outcome.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome, Err(io::ErrorKind::ConnectionReset));
    drop(session);
}

#[test]
fn a_dhcp_client_goes_on_with_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let (script, log) = script(dir.path(), "exit 0");
    let mut world = World::without_address(NatConfig::default(), true);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (leases, pid, config) = (file("leases"), file("pid"), file("dhclient.conf"));
    fs::write(&config, "timeout 15;\n").unwrap();
    fs::write(&leases, "").unwrap();
    let client = ["-v", "-sf", &script, "-lf", &leases, "-pf", &pid, "-cf", &config];
    world.guest.run("dhclient", &[&client[..], &["-1", "tap0"]].concat());
    world.wait_for("a lease", |activity| activity.lease == Lease::Bound);
    world.guest.run("dhclient", &[&client[..], &["-x", "tap0"]].concat());

    world.replace(NatConfig::default());
    assert_eq!(world.handle.activity().lease, Lease::Bound);
    // The client asks for the address it had, and is told that it has it.
    world.guest.run("dhclient", &[&client[..], &["-1", "tap0"]].concat());
    assert_eq!(environment(&log)["reason"], "REBOOT");
    assert_eq!(world.handle.activity().lease, Lease::Bound);
    world.guest.run("dhclient", &[&client[..], &["-x", "tap0"]].concat());
}
