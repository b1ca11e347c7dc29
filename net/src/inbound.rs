//! Ports of the host that lead to ports of the guest.
//!
//! A port is bound once and outlives the networks of a guest's boots. The guest sees all who come
//! through one as the gateway. TCP connections are [`tcp`](crate::tcp)'s; for UDP each sender of the
//! host's has a port of the gateway's, to which the guest answers.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::host::poller::{Poller, Token};
use crate::outbox::Outbox;
use crate::timers::Micros;
use crate::watch::Protocol;
use crate::wire::{ipv4, udp};

/// Senders of UDP that are known at a time; the one idle for longest makes room.
const MAX_SENDERS: usize = 256;
/// How long a sender is known without traffic.
const IDLE: Micros = 60_000_000;
/// The first of the gateway's ports that stand for senders (RFC 6335, section 6).
const FIRST_PORT: u16 = 49_152;

/// A port of the host that leads to the guest. Clones are the same port.
#[derive(Clone, Debug)]
pub struct Inbound {
    socket: Arc<Socket>,
    guest_port: u16,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Inbound {
    /// Binds a port of the host; port 0 is one of its choice.
    ///
    /// # Errors
    /// What the host says; `InvalidInput` for another protocol than TCP and UDP.
    pub fn bind(protocol: Protocol, host: SocketAddr, guest_port: u16) -> io::Result<Inbound> {
        let socket = match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(host)?;
                listener.set_nonblocking(true)?;
                Socket::Tcp(listener)
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(host)?;
                socket.set_nonblocking(true)?;
                Socket::Udp(socket)
            }
            Protocol::Dns | Protocol::Icmp => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Inbound { socket: Arc::new(socket), guest_port })
    }

    /// Returns the host's address and port.
    ///
    /// # Errors
    /// What the host says.
    pub fn host(&self) -> io::Result<SocketAddr> {
        match &*self.socket {
            Socket::Tcp(listener) => listener.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// A connection that somebody has made to a port of the host.
pub(crate) struct Caller {
    pub(crate) stream: TcpStream,
    pub(crate) address: SocketAddr,
    pub(crate) guest_port: u16,
}

#[derive(Debug)]
struct Sender {
    /// Which port of the host it sends to, by index.
    port: usize,
    address: SocketAddr,
    seen: Micros,
}

/// All ports of the host that lead to one guest.
#[derive(Debug)]
pub(crate) struct Ports {
    ports: Vec<Inbound>,
    /// Ports whose sockets may hold datagrams, by index.
    readable: Vec<usize>,
    by_address: HashMap<(usize, SocketAddr), u16>,
    by_port: HashMap<u16, Sender>,
    next_port: u16,
    buf: Vec<u8>,
    max_payload: usize,
}

impl Ports {
    pub(crate) fn new(ports: Vec<Inbound>, mtu: u16, poller: &Poller) -> io::Result<Ports> {
        for (index, port) in ports.iter().enumerate() {
            poller.watch(port.as_fd(), Token::Inbound(index as u32))?;
        }
        let max_payload = usize::from(mtu) - ipv4::HEADER_LEN - udp::HEADER_LEN;
        // A byte more, so that a longer datagram shows.
        let buf = if ports.is_empty() { Vec::new() } else { vec![0; max_payload + 1] };
        Ok(Ports {
            ports,
            readable: Vec::new(),
            by_address: HashMap::new(),
            by_port: HashMap::new(),
            next_port: FIRST_PORT,
            buf,
            max_payload,
        })
    }

    /// Notes that a port has something to take; returns its next caller.
    pub(crate) fn call(&mut self, index: u32) -> Option<Caller> {
        let index = index as usize;
        let port = self.ports.get(index)?;
        match &*port.socket {
            Socket::Udp(_) => {
                if !self.readable.contains(&index) {
                    self.readable.push(index);
                }
                None
            }
            Socket::Tcp(listener) => loop {
                match listener.accept() {
                    Ok((stream, address)) => {
                        return Some(Caller { stream, address, guest_port: port.guest_port });
                    }
                    // Those who have gone again while they waited.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return None,
                }
            },
        }
    }

    /// Moves datagrams to the outbox, as far as it has room; throws them away for a guest that is not
    /// there.
    pub(crate) fn receive(
        &mut self,
        (gateway, guest): (Ipv4Addr, Ipv4Addr),
        is_there: bool,
        outbox: &mut Outbox,
        now: Micros,
    ) {
        while let Some(&index) = self.readable.last() {
            if !outbox.has_room(self.max_payload + 64) {
                return;
            }
            let Socket::Udp(socket) = &*self.ports[index].socket else {
                self.readable.pop();
                continue;
            };
            let guest_port = self.ports[index].guest_port;
            match socket.recv_from(&mut self.buf) {
                Ok((len, address)) if is_there && len <= self.max_payload => {
                    let port = self.port_of(index, address, now);
                    let payload = &self.buf[..len];
                    let (from, to) = ((gateway.into(), port), (guest.into(), guest_port));
                    outbox.queue_udp(from, to, len, |room| {
                        room[..len].copy_from_slice(payload);
                        Some(len)
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable.pop();
                }
                // What an earlier answer met on its way.
                Err(_) => {}
            }
        }
    }

    /// Whether [`receive`](Ports::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Returns the gateway's port that stands for a sender.
    fn port_of(&mut self, index: usize, address: SocketAddr, now: Micros) -> u16 {
        if let Some(port) = self.by_address.get(&(index, address)) {
            if let Some(sender) = self.by_port.get_mut(port) {
                sender.seen = now;
            }
            return *port;
        }
        if self.by_port.len() >= MAX_SENDERS {
            let least = self.by_port.iter().min_by_key(|(_, sender)| sender.seen);
            let oldest = least.map(|(port, _)| *port);
            self.by_port.retain(|port, s| s.seen + IDLE > now && Some(*port) != oldest);
            let known = &self.by_port;
            self.by_address.retain(|_, port| known.contains_key(port));
        }
        while self.by_port.contains_key(&self.next_port) {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        }
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
        self.by_address.insert((index, address), port);
        self.by_port.insert(port, Sender { port: index, address, seen: now });
        port
    }

    /// Sends the guest's answer to the sender that a port of the gateway's stands for; `false` when it
    /// stands for none.
    pub(crate) fn answer(&mut self, datagram: &udp::Datagram<'_>, now: Micros) -> bool {
        let Some(sender) = self.by_port.get_mut(&datagram.dst_port) else { return false };
        let port = &self.ports[sender.port];
        // Only from where the sender has sent to.
        if sender.seen + IDLE <= now || port.guest_port != datagram.src_port {
            return false;
        }
        sender.seen = now;
        if let Socket::Udp(socket) = &*port.socket {
            // A datagram may be lost.
            let _ = socket.send_to(datagram.payload, sender.address);
        }
        true
    }
}
