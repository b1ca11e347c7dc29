//! One TCP connection of the guest and what it leads to on the host.
//!
//! Bytes move straight between the host's socket and smoltcp's two ring buffers. The halves close
//! apart: the guest's FIN becomes a shutdown of the host's socket, the host's end of file becomes a
//! FIN, and a reset on either side becomes one on the other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{RecvError, Socket as TcpSocket, SocketBuffer, State};
use smoltcp::time::Duration;

use crate::dial::Ticket;
use crate::host::socket::Socket;
use crate::timers::Micros;
use crate::watch::{Bytes, Ended, Outcome, Protocol};

use super::orphans::Numbers;
use super::pages::Pages;

/// Names a flow: both ends as the guest sees them, with addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) guest: IpAddr,
    pub(crate) guest_port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) remote_port: u16,
}

/// How far a flow has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The host's connection is being made; the guest's SYN is held.
    Connecting {
        /// The sequence number of the guest's SYN, which an ICMP error quotes.
        syn: u32,
        /// Where else to try, last first.
        others: Vec<SocketAddr>,
    },
    /// A connection to the guest is being made for a dial.
    Dialling { ticket: Ticket, since: Micros },
    /// A connection to the guest is being made for somebody who has connected to a port of the host.
    Inviting,
    /// Both ends are there.
    Open,
}

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    pub(crate) stage: Stage,
    pub(crate) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// What the socket's buffers lie in: dropped after it, as fields are in their order.
    _pages: Pages,
    pub(crate) host: Option<Socket>,
    /// Whether the host's socket may have bytes, and may take some.
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Reading the host's socket comes to an end.
    pub(crate) ended: bool,
    /// The guest has ended its direction and the host has been told.
    guest_done: bool,
    /// The host has ended its direction and the guest has been, or will be, told.
    host_done: bool,
    /// The host takes no more: what the guest sends is thrown away.
    deaf: bool,
    /// Whether the flow waits to be pumped, and to send.
    pub(crate) touched: bool,
    pub(crate) ready: bool,
    /// Bytes of both buffers, for the budget.
    pub(crate) buffers: usize,
    /// Where the connection stands, once the guest has been given a segment of it.
    pub(crate) numbers: Option<Numbers>,
    /// The name that the guest had looked its peer up by.
    pub(crate) name: Option<Arc<str>>,
    opened: Micros,
    bytes: Bytes,
    /// Who has opened it from outside.
    pub(crate) caller: Option<SocketAddr>,
    /// Whether it is nobody's but ours: a dial.
    pub(crate) is_dial: bool,
    /// How an attempt to connect has failed.
    pub(crate) failed: Option<Outcome>,
}

/// How long a guest may stay silent to keep-alives before its flow is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(300);

impl Flow {
    /// Makes a flow with two buffers of `buffer` bytes.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub(crate) fn new(
        key: Key,
        stage: Stage,
        host: Option<Socket>,
        buffer: usize,
        now: Micros,
    ) -> io::Result<Flow> {
        let mut pages = Pages::new(2 * buffer)?;
        // SAFETY: the only call; the flow drops its socket, which alone has them, before its pages.
        let (received, sent) = unsafe { pages.halves() };
        let mut socket = TcpSocket::new(SocketBuffer::new(received), SocketBuffer::new(sent));
        socket.set_nagle_enabled(false);
        // Acknowledgements are batched already: they are made when the guest's frames are in.
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Ok(Flow {
            key,
            stage,
            sockets,
            handle,
            _pages: pages,
            host,
            readable: false,
            writable: false,
            ended: false,
            guest_done: false,
            host_done: false,
            deaf: false,
            touched: false,
            ready: false,
            buffers: 2 * buffer,
            numbers: None,
            name: None,
            opened: now,
            bytes: Bytes::default(),
            caller: None,
            is_dial: false,
            failed: None,
        })
    }

    pub(crate) fn socket(&mut self) -> &mut TcpSocket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Begins to move bytes.
    pub(crate) fn open(&mut self) {
        self.stage = Stage::Open;
        let socket = self.socket();
        socket.pause_synack(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(TIMEOUT));
        self.readable = true;
        self.writable = true;
    }

    /// Begins to move bytes once the guest has taken a caller's connection.
    pub(crate) fn open_if_taken(&mut self) {
        if !matches!(self.socket().state(), State::SynSent | State::SynReceived | State::Closed) {
            self.failed = None;
            self.open();
        }
    }

    /// Moves what can be moved both ways.
    pub(crate) fn pump(&mut self) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        self.pump_to_host();
        self.pump_to_guest();
        self.settle();
    }

    fn pump_to_host(&mut self) {
        let Some(host) = &self.host else { return };
        let socket = self.sockets.get_mut::<TcpSocket>(self.handle);
        while !self.guest_done && (self.writable || self.deaf) {
            let deaf = self.deaf;
            let moved = socket.recv(|data| match data {
                [] => (0, Ok(0)),
                _ if deaf => (data.len(), Ok(data.len())),
                _ => match host.send(data) {
                    Ok(sent) => (sent, Ok(sent)),
                    Err(error) => (0, Err(error)),
                },
            });
            match moved {
                Ok(Ok(0)) => return,
                Ok(Ok(moved)) => self.bytes.from_guest += moved as u64,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => self.deaf = true,
                Err(RecvError::Finished) => {
                    self.guest_done = true;
                    host.shutdown_write();
                }
                Err(RecvError::InvalidState) => return,
            }
        }
    }

    fn pump_to_guest(&mut self) {
        let Some(host) = &self.host else { return };
        let socket = self.sockets.get_mut::<TcpSocket>(self.handle);
        while self.readable && !self.host_done && socket.can_send() {
            let mut room = 0;
            let moved = socket.send(|buf| {
                room = buf.len();
                match host.receive(buf, 0) {
                    Ok(received) => (received, Ok(received)),
                    Err(error) => (0, Err(error)),
                }
            });
            match moved {
                Ok(Ok(0)) if room > 0 => {
                    self.host_done = true;
                    socket.close();
                }
                // A short read has emptied the socket, unless it is at its end.
                Ok(Ok(received)) => {
                    self.bytes.to_guest += received as u64;
                    self.readable = received == room || self.ended;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => {
                    // A reset on the host's side, or a time-out: the guest sees it as a reset.
                    self.host_done = true;
                    self.deaf = true;
                    socket.abort();
                }
                Err(_) => return,
            }
        }
    }

    /// Resets a guest that keeps sending to a host that has gone.
    fn settle(&mut self) {
        if self.deaf && self.host_done && self.socket().state() == State::FinWait2 {
            self.socket().abort();
        }
    }

    /// Whether nothing is left to do for the flow once its socket has nothing to send.
    pub(crate) fn is_over(&mut self) -> bool {
        let socket = self.sockets.get_mut::<TcpSocket>(self.handle);
        let unread = socket.recv_queue() > 0;
        let state = socket.state();
        match (&self.stage, state) {
            (Stage::Open, State::Closed | State::TimeWait | State::Listen) => {
                self.deaf || !unread || self.host.is_none()
            }
            (Stage::Connecting { .. }, State::Closed | State::Listen) => true,
            (Stage::Dialling { .. } | Stage::Inviting, State::Closed) => true,
            _ => false,
        }
    }

    /// Returns what there is to tell of the flow at its end; nothing of a dial, which is our own.
    pub(crate) fn ended(&self) -> Option<Ended> {
        if self.is_dial {
            return None;
        }
        let is_whole = self.guest_done && self.host_done && !self.deaf;
        let outcome = match &self.failed {
            Some(failed) => failed.clone(),
            None if is_whole => Outcome::Closed,
            None => Outcome::Reset,
        };
        let Key { guest_port, remote, remote_port, .. } = self.key;
        Some(Ended {
            protocol: Protocol::Tcp,
            inbound: self.caller.is_some(),
            guest_port,
            peer: self.caller.unwrap_or((remote, remote_port).into()),
            name: self.name.clone(),
            opened: self.opened,
            bytes: self.bytes,
            outcome,
        })
    }

    /// Prepares the host's socket for being closed with the flow.
    pub(crate) fn finish(&mut self) {
        if !self.guest_done
            && let Some(host) = &self.host
        {
            host.reset_on_close();
        }
    }
}
