//! What is put between a device and its network: a bad wire, a limit, a capture.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmbake_net::{Capture, Captured, Faults, Faulty, NatConfig, Shaped};

use crate::world::{WORLD, World};

/// Bytes that no compression and no repetition could stand for.
fn content(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Sends bytes through the guest's curl to a server in the world and back, and compares them.
fn survives(world: &World, len: usize) {
    let sent = content(len);
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::write(&from, &sent).unwrap();
    let echo = world.serve(WORLD, move |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            head.extend(byte);
        }
        let mut body = vec![0; len];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n");
        let _ = stream.write_all(&body);
        let _ = stream.shutdown(Shutdown::Write);
        // Until the client has closed, so that nothing is reset.
        let _ = stream.read(&mut [0]);
    });
    let data = format!("@{}", from.display());
    let out = to.to_str().unwrap();
    let url = format!("http://{echo}/");
    let curl = ["-sS", "--max-time", "120", "-H", "Expect:", "--data-binary", &data, "-o", out];
    world.guest.run("curl", &[&curl[..], &[&url]].concat());
    assert!(std::fs::read(&to).unwrap() == sent, "the bytes are not the same");
}

fn faulty(faults: Faults, offloads: bool) -> World {
    let wire = move |nat| Box::new(Faulty::new(nat, faults, Instant::now())) as _;
    World::through(NatConfig::default(), offloads, Box::new(wire))
}

#[test]
fn a_transfer_survives_loss_and_delay() {
    let (delay, jitter) = (Duration::from_millis(2), Duration::from_millis(1));
    let faults = Faults { seed: 1, loss: 10, delay, jitter, ..Faults::default() };
    survives(&faulty(faults, true), 1_000_000);
}

#[test]
fn a_transfer_survives_corruption() {
    let faults = Faults { seed: 2, corrupt: 10, ..Faults::default() };
    survives(&faulty(faults, false), 1_000_000);
}

#[test]
fn a_transfer_survives_reordering_and_duplicates() {
    let delay = Duration::from_millis(1);
    let faults = Faults { seed: 3, reorder: 30, duplicate: 50, delay, ..Faults::default() };
    survives(&faulty(faults, true), 1_000_000);
}

#[test]
fn a_transfer_survives_all_of_it_at_once() {
    let delay = Duration::from_millis(1);
    let (loss, corrupt, duplicate, reorder, jitter) = (5, 5, 10, 10, delay);
    let faults = Faults { seed: 4, loss, corrupt, duplicate, reorder, delay, jitter };
    survives(&faulty(faults, false), 500_000);
}

#[test]
fn a_limited_link_keeps_its_rate_both_ways() {
    const RATE: u64 = 2_000_000;
    let wire = |nat| Box::new(Shaped::new(nat, RATE)) as _;
    let world = World::through(NatConfig::default(), true, Box::new(wire));
    let begun = Instant::now();
    survives(&world, 3_000_000);
    // 3 MB there and 3 MB back, one after the other; only a lower bound, as the machine may be busy.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(2800), "{took:?}");
}

#[test]
fn a_capture_reads_as_both_directions_of_what_passed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pcap");
    let capture = Arc::new(Capture::create(&path).unwrap());
    let captured = Arc::clone(&capture);
    let wire = move |nat| Box::new(Captured::new(nat, captured)) as _;
    let world = World::through(NatConfig::default(), true, Box::new(wire));
    survives(&world, 200_000);
    drop(world);
    assert!(!capture.finish().unwrap());
    let file = path.to_str().unwrap();
    let read = |filter: &str| -> usize {
        let output = Command::new("tcpdump").args(["-n", "-r", file, filter]).output();
        let output = output.expect("tcpdump is missing: install the Debian package tcpdump");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("truncated"), "{errors}");
        output.stdout.iter().filter(|byte| **byte == b'\n').count()
    };
    assert!(read("tcp[tcpflags] == tcp-syn and src host 10.0.2.15") == 1);
    assert!(read("tcp[tcpflags] == tcp-syn|tcp-ack and dst host 10.0.2.15") == 1);
    assert!(read("src host 10.0.2.15 and greater 500") > 1);
    assert!(read("dst host 10.0.2.15 and greater 500") > 1);
    assert!(read("arp") >= 2);
    let verbose = Command::new("tcpdump").args(["-n", "-vv", "-r", file, "tcp"]).output().unwrap();
    let text = String::from_utf8_lossy(&verbose.stdout);
    assert!(text.contains("(correct)") && !text.contains("incorrect"), "a checksum is wrong");
}
