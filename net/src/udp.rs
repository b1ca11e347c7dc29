//! UDP flows: one connected socket of the host for each guest port and destination.
//!
//! A flow ends when nothing has passed for a while, or when the table is full and it is the one idle
//! for longest. What the host learns of a destination by ICMP comes back to the guest as ICMP.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::DNS_PORT;
use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};
use crate::wire::{icmp, ipv4, udp};

/// How long a flow lives without traffic.
const IDLE: Micros = 60_000_000;
/// The same for a flow to a name server, which is over with its answer.
const IDLE_DNS: Micros = 15_000_000;

/// Names a flow: the guest's port, and the destination as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest_port: u16,
    remote: Ipv4Addr,
    remote_port: u16,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: Socket,
    /// Whether the flow waits in the backlog.
    queued: bool,
}

/// The table of flows.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    flows: Slab<Flow>,
    by_key: HashMap<Key, Slot>,
    timers: Timers,
    /// Flows whose sockets may hold datagrams for the guest.
    backlog: VecDeque<Slot>,
    limit: usize,
    max_payload: usize,
}

impl UdpFlows {
    pub(crate) fn new(limit: usize, mtu: u16) -> UdpFlows {
        UdpFlows {
            flows: Slab::new(),
            by_key: HashMap::new(),
            timers: Timers::default(),
            backlog: VecDeque::new(),
            limit: limit.max(1),
            max_payload: usize::from(mtu) - ipv4::HEADER_LEN - udp::HEADER_LEN,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Sends a datagram of the guest's on to `target`.
    pub(crate) fn push(
        &mut self,
        remote: Ipv4Addr,
        datagram: &udp::Datagram<'_>,
        target: SocketAddr,
        poller: &Poller,
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        let key = Key { guest_port: datagram.src_port, remote, remote_port: datagram.dst_port };
        let opened = match self.by_key.get(&key) {
            Some(slot) => Ok(*slot),
            None => self.open(key, target, poller),
        };
        let sent = opened.and_then(|slot| {
            let flow = self.flows.get_mut(slot).ok_or(io::ErrorKind::NotFound)?;
            self.timers.set(slot, Some(now + idle(&key)));
            // A pending ICMP error is reported once, in place of a send.
            match flow.socket.send(datagram.payload) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    unreachable(outbox, &key, &error);
                    flow.socket.send(datagram.payload)
                }
                result => result,
            }
        });
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                unreachable(outbox, &key, &error);
                Err(DropReason::HostError)
            }
        }
    }

    fn open(&mut self, key: Key, target: SocketAddr, poller: &Poller) -> io::Result<Slot> {
        if self.flows.len() >= self.limit
            && let Some((_, oldest)) = self.timers.first()
        {
            self.close(oldest);
        }
        let socket = Socket::connect_udp(target)?;
        poller.watch(socket.as_fd(), Token::Udp(self.flows.next_slot()))?;
        let slot = self.flows.insert(Flow { key, socket, queued: false });
        self.by_key.insert(key, slot);
        Ok(slot)
    }

    fn close(&mut self, slot: Slot) {
        self.timers.set(slot, None);
        if let Some(flow) = self.flows.remove(slot) {
            self.by_key.remove(&flow.key);
        }
    }

    /// Notes that a flow's socket has something to read.
    pub(crate) fn readable(&mut self, slot: Slot) {
        if let Some(flow) = self.flows.get_mut(slot)
            && !flow.queued
        {
            flow.queued = true;
            self.backlog.push_back(slot);
        }
    }

    /// Moves datagrams from the host to the outbox, as far as it has room.
    pub(crate) fn receive(&mut self, outbox: &mut Outbox, now: Micros) {
        while let Some(&slot) = self.backlog.front() {
            if let Some(flow) = self.flows.get_mut(slot) {
                if !drain(flow, outbox, self.max_payload) {
                    return;
                }
                flow.queued = false;
                self.timers.set(slot, Some(now + idle(&flow.key)));
            }
            self.backlog.pop_front();
        }
    }

    /// Whether [`receive`](UdpFlows::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Ends the flows that have been idle for too long.
    pub(crate) fn expire(&mut self, now: Micros) {
        while let Some(slot) = self.timers.pop_due(now) {
            self.close(slot);
        }
    }

    /// Returns when the next flow may expire.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.timers.first().map(|(deadline, _)| deadline)
    }
}

/// Empties a flow's socket into the outbox; `false` when the outbox is full.
fn drain(flow: &mut Flow, outbox: &mut Outbox, max_payload: usize) -> bool {
    loop {
        let mut received = Ok(0);
        let key = flow.key;
        let from = (key.remote, key.remote_port);
        let room = outbox.has_room(max_payload + 64);
        if !room {
            return false;
        }
        outbox.queue_udp(from, key.guest_port, max_payload, |payload| {
            received = flow.socket.receive(payload, libc::MSG_TRUNC);
            let len = *received.as_ref().ok()?;
            // A datagram beyond the MTU is dropped, as there is no one to fragment it.
            (len <= payload.len()).then_some(len)
        });
        match received {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) => {
                unreachable(outbox, &key, &error);
            }
        }
    }
}

/// Tells the guest what the host has learnt of a destination.
fn unreachable(outbox: &mut Outbox, key: &Key, error: &io::Error) {
    if let Some(why) = icmp::Unreachable::from_host_error(error) {
        report(outbox, (key.remote, key.remote_port), key.guest_port, why);
    }
}

/// Tells the guest that its datagrams to `remote` do not get there.
pub(crate) fn report(
    outbox: &mut Outbox,
    remote: (Ipv4Addr, u16),
    guest_port: u16,
    why: icmp::Unreachable,
) {
    let mut transport = [0; 8];
    transport[..2].copy_from_slice(&guest_port.to_be_bytes());
    transport[2..4].copy_from_slice(&remote.1.to_be_bytes());
    transport[5] = udp::HEADER_LEN as u8;
    let quote =
        icmp::Quote { src: outbox.addresses.guest, dst: remote.0, protocol: ipv4::UDP, transport };
    // Without room the message is lost, as ICMP may be.
    let _ = outbox.queue_unreachable(remote.0, why, &quote);
}

fn idle(key: &Key) -> Micros {
    match key.remote_port {
        DNS_PORT => IDLE_DNS,
        _ => IDLE,
    }
}
