//! UDP flows: one connected socket of the host for each guest port and destination.
//!
//! A flow ends when nothing has passed for a while, or when the table is full and it is the one idle
//! for longest. What the host learns of a destination by ICMP comes back to the guest as ICMP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::host::errors::{self, Reported};
use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::idle::IdleFlows;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::DNS_PORT;
use crate::slab::Slot;
use crate::timers::Micros;
use crate::watch::{Bytes, Ended, Outcome, Protocol};
use crate::wire::{icmp, ip, udp};

/// How long a flow lives without traffic.
const IDLE: Micros = 60_000_000;
/// The same for a flow to a name server, which is over with its answer.
const IDLE_DNS: Micros = 15_000_000;

/// Names a flow: the guest's end, and the destination as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: (IpAddr, u16),
    remote: (IpAddr, u16),
}

impl Key {
    fn of(packet: &ip::Packet<'_>, datagram: &udp::Datagram<'_>) -> Key {
        Key { guest: (packet.src, datagram.src_port), remote: (packet.dst, datagram.dst_port) }
    }
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: Socket,
    /// Whether the host must not fragment the guest's datagrams either.
    whole: bool,
    /// The name that the guest had looked the destination up by.
    name: Option<Arc<str>>,
    opened: Micros,
    bytes: Bytes,
}

impl Flow {
    /// Returns what there is to tell of the flow.
    fn ended(&self, outcome: Outcome) -> Ended {
        let Key { guest: (_, guest_port), remote } = self.key;
        Ended {
            protocol: Protocol::Udp,
            inbound: false,
            guest_port,
            peer: remote.into(),
            name: self.name.clone(),
            opened: self.opened,
            bytes: self.bytes,
            outcome,
        }
    }
}

/// The table of flows.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    flows: IdleFlows<Key, Flow>,
    mtu: usize,
    /// Flows that have ended and are yet to be told.
    pub(crate) ended: Vec<Ended>,
}

impl UdpFlows {
    pub(crate) fn new(limit: usize, mtu: u16) -> UdpFlows {
        UdpFlows { flows: IdleFlows::new(limit), mtu: usize::from(mtu), ended: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether a datagram belongs to a flow that is open.
    pub(crate) fn is_open(&self, packet: &ip::Packet<'_>, datagram: &udp::Datagram<'_>) -> bool {
        self.flows.find(&Key::of(packet, datagram)).is_some()
    }

    /// Sends a datagram of the guest's on to `target`.
    #[expect(clippy::too_many_arguments, reason = "a datagram, where it goes, and the network")]
    pub(crate) fn push(
        &mut self,
        packet: &ip::Packet<'_>,
        datagram: &udp::Datagram<'_>,
        target: SocketAddr,
        name: Option<Arc<str>>,
        poller: &Poller,
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        let key = Key::of(packet, datagram);
        let opened = match self.flows.find(&key) {
            Some(slot) => Ok(slot),
            None => self.open(key, target, name, poller, now),
        };
        let sent = opened.and_then(|slot| {
            let flow = self.flows.used(slot, now + idle(&key)).ok_or(io::ErrorKind::NotFound)?;
            let whole = packet.forbids_fragments();
            if whole != flow.whole && flow.socket.forbid_fragments(target.ip(), whole).is_ok() {
                flow.whole = whole;
            }
            let mut result = flow.socket.send(datagram.payload);
            // An ICMP error that is pending is reported once, in place of a send.
            if let Err(error) = &result
                && take_errors(flow, outbox)
                && !is_too_long(error)
            {
                result = flow.socket.send(datagram.payload);
            }
            flow.bytes.from_guest += result.as_ref().map_or(0, |sent| *sent as u64);
            result
        });
        match sent {
            Ok(_) => Ok(()),
            Err(error) if is_too_long(&error) => Err(DropReason::TooLong),
            Err(error) => {
                if let Some(why) = icmp::Unreachable::from_host_error(&error) {
                    report(outbox, key.guest, key.remote, why);
                }
                Err(DropReason::HostError)
            }
        }
    }

    fn open(
        &mut self,
        key: Key,
        target: SocketAddr,
        name: Option<Arc<str>>,
        poller: &Poller,
        now: Micros,
    ) -> io::Result<Slot> {
        if let Some(oldest) = self.flows.make_room() {
            self.ended.push(oldest.ended(Outcome::Closed));
        }
        let socket = Socket::connect_udp(target)?;
        poller.watch(socket.as_fd(), Token::Udp(self.flows.next_slot()))?;
        let (bytes, opened) = (Bytes::default(), now);
        let flow = Flow { key, socket, whole: false, name, opened, bytes };
        Ok(self.flows.insert(key, flow))
    }

    /// Returns what there is to tell of the flows that are open.
    pub(crate) fn open_flows(&self) -> Vec<Ended> {
        self.flows.iter().map(|flow| flow.ended(Outcome::Open)).collect()
    }

    /// Notes that a flow's socket has something to read.
    pub(crate) fn readable(&mut self, slot: Slot) {
        self.flows.readable(slot);
    }

    /// Moves datagrams from the host to the outbox, as far as it has room.
    pub(crate) fn receive(&mut self, outbox: &mut Outbox, now: Micros) {
        let mtu = self.mtu;
        self.flows.receive(|flow| drain(flow, outbox, mtu).then(|| now + idle(&flow.key)));
    }

    /// Whether [`receive`](UdpFlows::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        self.flows.has_backlog()
    }

    /// Ends the flows that have been idle for too long.
    pub(crate) fn expire(&mut self, now: Micros) {
        while let Some(flow) = self.flows.pop_idle(now) {
            self.ended.push(flow.ended(Outcome::Closed));
        }
    }

    /// Returns when the next flow may expire.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.flows.deadline()
    }
}

/// Empties a flow's socket into the outbox; `false` when the outbox is full.
fn drain(flow: &mut Flow, outbox: &mut Outbox, mtu: usize) -> bool {
    let max_payload = mtu - ip::header_len(flow.key.remote.0) - udp::HEADER_LEN;
    loop {
        let mut received = Ok(0);
        let key = flow.key;
        let room = outbox.has_room(mtu + 64);
        if !room {
            return false;
        }
        outbox.queue_udp(key.remote, key.guest, max_payload, |payload| {
            received = flow.socket.receive(payload, libc::MSG_TRUNC);
            let len = *received.as_ref().ok()?;
            // A datagram beyond the MTU is dropped, as there is no one to fragment it.
            (len <= payload.len()).then_some(len)
        });
        match received {
            Ok(len) => flow.bytes.to_guest += len as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => {
                take_errors(flow, outbox);
            }
        }
    }
}

/// Tells the guest what the host has learnt of a flow's destination; returns whether it has.
fn take_errors(flow: &Flow, outbox: &mut Outbox) -> bool {
    let Key { guest, remote } = flow.key;
    let mut any = false;
    errors::drain(&flow.socket, |Reported { why, by }| {
        any = true;
        let by = by.filter(|by| by.is_ipv4() == remote.0.is_ipv4());
        report_from(outbox, by.unwrap_or(remote.0), guest, remote, why);
    });
    any
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Tells the guest that its datagrams to `remote` do not get there.
pub(crate) fn report(
    outbox: &mut Outbox,
    guest: (IpAddr, u16),
    remote: (IpAddr, u16),
    why: icmp::Unreachable,
) {
    report_from(outbox, remote.0, guest, remote, why);
}

fn report_from(
    outbox: &mut Outbox,
    by: IpAddr,
    guest: (IpAddr, u16),
    remote: (IpAddr, u16),
    why: icmp::Unreachable,
) {
    let mut transport = [0; 8];
    transport[..2].copy_from_slice(&guest.1.to_be_bytes());
    transport[2..4].copy_from_slice(&remote.1.to_be_bytes());
    transport[5] = udp::HEADER_LEN as u8;
    let quote = icmp::Quote { src: guest.0, dst: remote.0, protocol: ip::UDP, transport };
    // Without room the message is lost, as ICMP may be.
    let _ = outbox.queue_unreachable(by, why, &quote);
}

fn idle(key: &Key) -> Micros {
    match key.remote.1 {
        DNS_PORT => IDLE_DNS,
        _ => IDLE,
    }
}
