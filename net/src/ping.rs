//! ICMP echo of both families (RFC 792, and RFC 4443, section 4).
//!
//! The network's own addresses answer here. Echo to the world goes through the host's unprivileged
//! ping sockets (icmp(7), `ping_group_range`): one for each destination and identifier of the guest's,
//! so that the kernel hands each reply to the flow that asked. Where the host lets nobody have such a
//! socket, the guest is told that its administrator forbids it. What the host learns of a
//! destination, a hop limit that ran out included, comes back as ICMP.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use crate::host::errors::{self, Reported};
use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::idle::IdleFlows;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::{Policy, Refusal, Route};
use crate::slab::Slot;
use crate::timers::Micros;
use crate::wire::icmp::{self, Quote, Unreachable};
use crate::wire::{be16, ip, put16};

/// How long a flow lives without traffic: longer than any reply takes.
const IDLE: Micros = 30_000_000;

/// Names a flow: who asks whom, with which identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    remote: IpAddr,
    ident: u16,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: Socket,
    /// The hop limit that the socket sends with.
    hops: u8,
    /// The sequence number of the last request, which an error quotes.
    sequence: u16,
}

/// The table of flows.
#[derive(Debug)]
pub(crate) struct Pings {
    flows: IdleFlows<Key, Flow>,
    mtu: usize,
}

impl Pings {
    pub(crate) fn new(limit: usize, mtu: u16) -> Pings {
        Pings { flows: IdleFlows::new(limit), mtu: usize::from(mtu) }
    }

    /// Deals with an ICMP message from the guest whose checksum has been checked.
    pub(crate) fn push(
        &mut self,
        packet: &ip::Packet<'_>,
        policy: &Policy,
        poller: &Poller,
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        let message = packet.payload();
        let (request, _) = icmp::echo_types(packet.dst);
        if message.len() < icmp::HEADER_LEN || message[0] != request || message[1] != 0 {
            return Err(DropReason::BadIcmp);
        }
        if policy.is_ours(packet.dst) {
            let queued = reply(outbox, packet.dst, packet.src, message.len(), |reply| {
                reply.copy_from_slice(message);
            });
            return queued.ok_or(DropReason::NoRoom);
        }
        // Any port will do, as the rules for UDP are those for addresses.
        let sent = match policy.udp(packet.dst, ECHO_PORT, now) {
            Ok(Route::Host(target)) => self.send(packet, target.ip(), poller, now),
            Ok(Route::Resolver | Route::Service(_)) => Err(Refused(DropReason::Denied, None)),
            Err(Refusal::Denied(_)) => {
                Err(Refused(DropReason::Denied, Some(Unreachable::Prohibited)))
            }
            Err(refusal) => Err(Refused(refusal.into(), None)),
        };
        sent.map_err(|Refused(reason, why)| {
            if let Some(why) = why {
                // Without room the message is lost, as ICMP may be.
                let _ = outbox.queue_unreachable(packet.dst, why, &Quote::of(packet));
            }
            reason
        })
    }

    fn send(
        &mut self,
        packet: &ip::Packet<'_>,
        target: IpAddr,
        poller: &Poller,
        now: Micros,
    ) -> Result<(), Refused> {
        let message = packet.payload();
        let key = Key { guest: packet.src, remote: packet.dst, ident: be16(message, 4) };
        let slot = match self.flows.find(&key) {
            Some(slot) => slot,
            None => self.open(key, target, poller)?,
        };
        let flow = self.flows.used(slot, now + IDLE).ok_or(Refused(DropReason::HostError, None))?;
        flow.sequence = be16(message, 6);
        let hops = packet.hops();
        if hops != flow.hops && flow.socket.set_hops(target, hops).is_ok() {
            flow.hops = hops;
        }
        // A pending ICMP error is reported once, in place of a send.
        let sent = match flow.socket.send(message) {
            Err(error) if Unreachable::from_host_error(&error).is_some() => {
                flow.socket.send(message)
            }
            result => result,
        };
        let Err(error) = sent else { return Ok(()) };
        let mut why = Unreachable::from_host_error(&error);
        errors::drain(&flow.socket, |reported| why = Some(reported.why));
        Err(Refused(DropReason::HostError, why))
    }

    fn open(&mut self, key: Key, target: IpAddr, poller: &Poller) -> Result<Slot, Refused> {
        self.flows.make_room();
        let token = Token::Ping(self.flows.next_slot());
        let opened = Socket::connect_ping(target).and_then(|socket| {
            poller.watch(socket.as_fd(), token)?;
            Ok(socket)
        });
        let socket = opened.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Refused(DropReason::PingForbidden, Some(Unreachable::Prohibited))
            }
            _ => Refused(DropReason::HostError, Unreachable::from_host_error(&error)),
        })?;
        let flow = Flow { key, socket, hops: 64, sequence: 0 };
        Ok(self.flows.insert(key, flow))
    }

    /// Notes that a flow's socket has something to read.
    pub(crate) fn readable(&mut self, slot: Slot) {
        self.flows.readable(slot);
    }

    /// Moves replies from the host to the outbox, as far as it has room.
    pub(crate) fn receive(&mut self, outbox: &mut Outbox, now: Micros) {
        let mtu = self.mtu;
        self.flows.receive(|flow| drain(flow, outbox, mtu).then(|| now + IDLE));
    }

    /// Whether [`receive`](Pings::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        self.flows.has_backlog()
    }

    /// Ends the flows that have been idle for too long.
    pub(crate) fn expire(&mut self, now: Micros) {
        while self.flows.pop_idle(now).is_some() {}
    }

    /// Returns when the next flow may expire.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.flows.deadline()
    }
}

/// The port that stands for echo where the rules ask for one (RFC 862).
pub(crate) const ECHO_PORT: u16 = 7;

/// Why a request goes nowhere, and what the guest is told.
struct Refused(DropReason, Option<Unreachable>);

/// Queues an echo reply of `len` bytes whose content `fill` writes; its type is set here.
fn reply(
    outbox: &mut Outbox,
    from: IpAddr,
    to: IpAddr,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Option<()> {
    outbox.queue_icmp(from, to, len, |message| {
        fill(message);
        message[0] = icmp::echo_types(from).1;
        icmp::fill_checksum(message, from, to);
        Some(len)
    })
}

/// Empties a flow's socket into the outbox; `false` when the outbox is full.
fn drain(flow: &mut Flow, outbox: &mut Outbox, mtu: usize) -> bool {
    let Key { guest, remote, ident } = flow.key;
    let (_, echo_reply) = icmp::echo_types(remote);
    let max = mtu - ip::header_len(remote);
    loop {
        if !outbox.has_room(mtu + 64) {
            return false;
        }
        let mut received = Ok(0);
        outbox.queue_icmp(remote, guest, max, |message| {
            received = flow.socket.receive(message, libc::MSG_TRUNC);
            let len = *received.as_ref().ok()?;
            let message = message.get_mut(..len)?;
            if len < icmp::HEADER_LEN || message[0] != echo_reply {
                return None;
            }
            put16(message, 4, ident);
            icmp::fill_checksum(message, remote, guest);
            Some(len)
        });
        match received {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => {
                let quote = quote(flow);
                errors::drain(&flow.socket, |reported| report(outbox, reported, &quote));
            }
        }
    }
}

/// Quotes a flow's last request as its guest has sent it, but for its data.
fn quote(flow: &Flow) -> Quote {
    let Key { guest, remote, ident } = flow.key;
    let mut transport = [0; 8];
    transport[0] = icmp::echo_types(remote).0;
    put16(&mut transport, 4, ident);
    put16(&mut transport, 6, flow.sequence);
    Quote { src: guest, dst: remote, protocol: icmp::protocol(remote), transport }
}

/// Tells the guest what the host has been told, in the name of who said it.
fn report(outbox: &mut Outbox, reported: Reported, quote: &Quote) {
    let from = match reported.by {
        Some(by) if by.is_ipv4() == quote.dst.is_ipv4() => by,
        _ => quote.dst,
    };
    let _ = outbox.queue_unreachable(from, reported.why, quote);
}
