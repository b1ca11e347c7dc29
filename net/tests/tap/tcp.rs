//! TCP out of the guest.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kvmbake_net::{DropReason, NatConfig};

use crate::device::Tap;
use crate::world::{PATIENCE, WORLD, World};

pub fn connect(world: &World, to: SocketAddr) -> io::Result<TcpStream> {
    world.guest.within(move || {
        // Not with a time-out: std waits by poll(2) then, which Linux may wake for an ICMP message
        // before the socket has its error.
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// A stream of bytes that no shift, loss or repetition leaves alike.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            chunk.copy_from_slice(&(self.0 ^ self.0 >> 29).to_le_bytes()[..chunk.len()]);
        }
    }
}

const TRANSFER: usize = 100 << 20;
const CHUNK: usize = 1 << 16;

fn send_pattern(stream: &mut TcpStream, seed: u64) {
    let mut pattern = Pattern(seed);
    let mut buf = vec![0; CHUNK];
    for _ in 0..TRANSFER / CHUNK {
        pattern.fill(&mut buf);
        stream.write_all(&buf).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn check_pattern(stream: &mut TcpStream, seed: u64) {
    let mut pattern = Pattern(seed);
    let (mut buf, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    for at in 0..TRANSFER / CHUNK {
        stream.read_exact(&mut buf).unwrap();
        pattern.fill(&mut expected);
        assert!(buf == expected, "wrong bytes after {} KiB", at * CHUNK / 1024);
    }
    assert_eq!(stream.read(&mut buf).unwrap(), 0);
}

/// Moves 100 MiB up and then down one connection, every byte compared.
fn transfer(world: &World) {
    let server = world.serve(WORLD, |mut stream| {
        check_pattern(&mut stream, 1);
        send_pattern(&mut stream, 2);
    });
    let mut stream = connect(world, server).unwrap();
    send_pattern(&mut stream, 1);
    check_pattern(&mut stream, 2);
    drop(stream);
    world.wait_for("the flow to be removed", |activity| activity.tcp_flows == 0);
}

#[test]
fn a_hundred_mebibytes_arrive_both_ways_in_large_segments() {
    let world = World::new(NatConfig::default());
    transfer(&world);
    let activity = world.handle.activity();
    for (frames, bytes) in [
        (activity.frames_from_guest, activity.bytes_from_guest),
        (activity.frames_to_guest, activity.bytes_to_guest),
    ] {
        assert!(bytes > TRANSFER as u64);
        assert!(bytes / frames > 4000, "no segmentation offload: {activity:#?}");
    }
}

#[test]
fn a_hundred_mebibytes_arrive_both_ways_without_offloads() {
    let world = World::without_address(NatConfig::default(), false);
    world.configure_guest();
    transfer(&world);
    assert_eq!(world.handle.activity().dropped(DropReason::BadTcp), 0);
}

#[test]
fn curl_fetches_from_a_server_in_the_world() {
    let world = World::new(NatConfig::default());
    let server = world.serve(WORLD, |mut stream| {
        let mut request = [0; 4096];
        let len = stream.read(&mut request).unwrap();
        assert!(request[..len].starts_with(b"GET /file HTTP/1.1\r\n"));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        let _ = stream.read(&mut request);
    });
    let url = format!("http://{server}/file");
    assert_eq!(world.guest.run("curl", &["-sS", "--max-time", "20", &url]), "hello");
}

#[test]
fn refused_is_refused_and_unreachable_is_unreachable() {
    let world = World::new(NatConfig::default());
    let start = Instant::now();
    let error = connect(&world, SocketAddr::from((WORLD, 9))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    // The world has no route to this one.
    let error = connect(&world, SocketAddr::from(([198, 51, 100, 1], 80))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable, "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    world.wait_for("both flows to be removed", |activity| activity.tcp_flows == 0);
}

#[test]
fn a_server_that_does_not_answer_does_not_answer() {
    let world = World::new(NatConfig::default());
    // Behind a device that nobody reads, a SYN is never answered.
    let _hole = world.host.within(|| Tap::open("hole", true)).unwrap();
    world.host.run("ip", &["addr", "add", "203.0.113.1/24", "dev", "hole"]);
    world.host.run("ip", &["link", "set", "hole", "up"]);
    let error = world.guest.within(|| {
        let address = SocketAddr::from(([203, 0, 113, 7], 80));
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn the_host_s_loopback_is_reached_only_where_the_configuration_says_so() {
    for host_loopback in [false, true] {
        let world = World::new(NatConfig { host_loopback, ..NatConfig::default() });
        let server = world.serve(Ipv4Addr::LOCALHOST, |mut stream| {
            stream.write_all(b"private").unwrap();
        });
        let gateway = SocketAddr::from(([10, 0, 2, 2], server.port()));
        match connect(&world, gateway) {
            Ok(mut stream) => {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                assert_eq!((host_loopback, text.as_str()), (true, "private"));
            }
            Err(error) => {
                assert!(!host_loopback);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                world.wait_for("a denial by name", |activity| {
                    activity.dropped(DropReason::Denied) == 1
                });
            }
        }
    }
}

#[test]
fn each_half_closes_on_its_own() {
    let world = World::new(NatConfig::default());
    // The guest ends first and still hears the answer.
    let server = world.serve(WORLD, |mut stream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut stream = connect(&world, server).unwrap();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "QUESTION");
    // The world ends first and still hears the guest.
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = world.serve(WORLD, move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        sender.send(text).unwrap();
    });
    let mut stream = connect(&world, server).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    stream.write_all(b"not yet").unwrap();
    drop(stream);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "not yet");
    world.wait_for("both flows to be removed", |activity| activity.tcp_flows == 0);
}

/// Makes closing a stream reset it.
fn reset(stream: TcpStream) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the pointer and length describe `linger`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn resets_pass_both_ways() {
    let world = World::new(NatConfig::default());
    let (sender, receiver) = std::sync::mpsc::channel();
    let observer = world.serve(WORLD, move |mut stream| {
        let mut buf = [0; 16];
        stream.read_exact(&mut buf[..1]).unwrap();
        let error = stream.read(&mut buf).unwrap_err();
        sender.send(error.kind()).unwrap();
    });
    let mut stream = connect(&world, observer).unwrap();
    stream.write_all(b"x").unwrap();
    reset(stream);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), io::ErrorKind::ConnectionReset);

    let resetting = world.serve(WORLD, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
    });
    let mut stream = connect(&world, resetting).unwrap();
    stream.write_all(b"x").unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.wait_for("all flows to be removed", |activity| activity.tcp_flows == 0);
}

/// Sends bytes of which the last one is urgent.
fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    // SAFETY: the pointer and length describe `bytes`, which outlive the call.
    let sent = unsafe {
        libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_OOB)
    };
    assert_eq!(sent, bytes.len() as isize);
}

#[test]
fn urgent_bytes_stay_where_they_are_in_the_stream_and_a_close_may_follow_at_once() {
    let world = World::new(NatConfig::default());
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = world.serve(WORLD, move |mut stream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        sender.send(text).unwrap();
        stream.write_all(b"down").unwrap();
        send_urgent(&stream, b"!");
        send_urgent(&stream, b"last!");
    });
    let mut stream = connect(&world, server).unwrap();
    stream.write_all(b"up").unwrap();
    send_urgent(&stream, b"!");
    send_urgent(&stream, b"last!");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), "up!last!");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "down!last!");
    world.wait_for("the flow to be removed", |activity| activity.tcp_flows == 0);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn hundreds_of_flows_at_once_and_one_after_another_leave_nothing_behind() {
    let world = World::new(NatConfig::default());
    let server = world.serve(WORLD, |mut stream| {
        let mut buf = [0; 64];
        while let Ok(len @ 1..) = stream.read(&mut buf) {
            if stream.write_all(&buf[..len]).is_err() {
                return;
            }
        }
    });
    let mut streams: Vec<TcpStream> = world.guest.within(move || {
        (0..300).map(|_| TcpStream::connect_timeout(&server, PATIENCE).unwrap()).collect()
    });
    assert_eq!(world.handle.activity().tcp_flows_total, 300);
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(index as u64).to_be_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut buf = [0; 8];
        stream.read_exact(&mut buf).unwrap();
        assert_eq!(u64::from_be_bytes(buf), index as u64);
    }
    drop(streams);
    world.wait_for("all flows to be removed", |activity| activity.tcp_flows == 0);
    for _ in 0..300 {
        let mut stream = connect(&world, server).unwrap();
        stream.write_all(b"12345678").unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
    }
    world.wait_for("all flows to be removed", |activity| activity.tcp_flows == 0);
    assert!(open_descriptors() < 1000, "{} descriptors", open_descriptors());
}
