//! UDP out of the guest.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use kvmbake_net::{Limits, NatConfig};

use crate::world::{PATIENCE, WORLD, World};

/// Runs a server in the world that sends every datagram back.
fn echo(world: &World) -> SocketAddr {
    let socket = world.host.within(|| UdpSocket::bind((WORLD, 0))).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..len], from);
        }
    });
    address
}

fn socket(world: &World, to: SocketAddr) -> UdpSocket {
    world.guest.within(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        report_errors(&socket);
        socket
    })
}

/// Asks Linux for all ICMP errors, as it keeps the passing ones to itself (ip(7), IP_RECVERR).
pub fn report_errors(socket: &UdpSocket) {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length describe `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn datagrams_of_any_length_go_out_and_come_back() {
    let world = World::new(NatConfig::default());
    let server = echo(&world);
    let socket = socket(&world, server);
    for len in [0, 1, 2, 99, 512, 1471, 1472] {
        let sent: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
        socket.send(&sent).unwrap();
        let mut buf = [0; 2048];
        let received = socket.recv(&mut buf).unwrap();
        assert_eq!(buf[..received], sent);
    }
    assert_eq!(world.handle.activity().udp_flows, 1);
}

#[test]
fn a_closed_port_is_reported_by_icmp() {
    let world = World::new(NatConfig::default());
    for (address, kind) in [
        (SocketAddr::from((WORLD, 9)), io::ErrorKind::ConnectionRefused),
        (SocketAddr::from(([198, 51, 100, 1], 9)), io::ErrorKind::NetworkUnreachable),
        (SocketAddr::from(([10, 0, 2, 2], 9)), io::ErrorKind::HostUnreachable),
    ] {
        let socket = socket(&world, address);
        socket.send(b"anyone?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), kind, "{address}: {error}");
    }
}

#[test]
fn flows_beyond_the_limit_push_out_the_oldest() {
    let world = World::new(NatConfig {
        limits: Limits { udp_flows: 8, ..Limits::default() },
        ..NatConfig::default()
    });
    let server = echo(&world);
    let sockets: Vec<UdpSocket> = (0..20).map(|_| socket(&world, server)).collect();
    for (index, socket) in sockets.iter().enumerate() {
        socket.send(&[index as u8]).unwrap();
        let mut buf = [0; 16];
        assert_eq!(socket.recv(&mut buf).unwrap(), 1);
        assert_eq!(buf[0], index as u8);
    }
    world.wait_for("the table to be full", |activity| activity.udp_flows == 8);
    // The first flow was pushed out, and comes back by being used.
    sockets[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    sockets[0].send(b"again").unwrap();
    assert_eq!(sockets[0].recv(&mut [0; 16]).unwrap(), 5);
}
