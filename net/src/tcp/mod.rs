//! TCP: the table of flows, and their ways in and out.
//!
//! A SYN from the guest opens a flow: the host's connection is made first and the SYN is only
//! answered when it stands, so the guest learns the truth: refused is refused, unreachable is
//! unreachable (by ICMP), and no answer is no answer. Closed flows are removed as soon as they have
//! nothing left to send.
//!
//! Work comes to a flow through two queues. A *touched* flow has something to move between its host
//! socket and its buffers; a *ready* flow may have segments for the guest. Only flows in a queue, or
//! whose timer is due, cost anything.

mod engine;
mod flow;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use crate::config::Limits;
use crate::dial::{DialError, Ticket};
use crate::dns::Dns;
use crate::handle::DialOutcome;
use crate::host::poller::{Event, Poller, Token};
use crate::host::socket::{Connect, Socket};
use crate::link::{DropReason, GuestOffloads, Pulled};
use crate::outbox::Outbox;
use crate::policy::{Policy, Route};
use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};
use crate::wire::{be16, be32, icmp, ipv4};

use engine::Engine;
use flow::{Flow, Key, Stage};

const HEADER_LEN: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Bytes of one buffer: as much as pays, and as little as works.
const MAX_BUFFER: usize = 256 << 10;
const MIN_BUFFER: usize = 16 << 10;
/// How long a dial's SYN has before it is sent anew.
const REDIAL: Micros = 1_000_000;
/// The least time to a timer, so that none can spin.
const TICK: Micros = 1_000;
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// What opening and serving flows needs from the rest of the network.
pub(crate) struct Surroundings<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) dns: &'a mut Dns,
    pub(crate) poller: &'a Poller,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) now: Micros,
}

/// The table of flows.
pub(crate) struct TcpFlows {
    engine: Engine,
    flows: Slab<Flow>,
    by_key: HashMap<Key, Slot>,
    timers: Timers,
    touched: VecDeque<Slot>,
    ready: VecDeque<Slot>,
    limits: Limits,
    mtu: u16,
    seed: u64,
    /// Flows in [`Stage::Connecting`].
    connecting: usize,
    /// Flows in [`Stage::Dialling`].
    dialling: usize,
    /// Bytes of all buffers.
    buffered: usize,
    next_port: u16,
    opened: u64,
    last_dial: Option<(u16, DialOutcome)>,
}

/// The fields of a TCP header that the table itself reads.
struct Header {
    src_port: u16,
    dst_port: u16,
    seq: u32,
    flags: u8,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        let header_len = usize::from(bytes[12] >> 4) * 4;
        if header_len < HEADER_LEN || header_len > bytes.len() {
            return None;
        }
        let header = Header {
            src_port: be16(bytes, 0),
            dst_port: be16(bytes, 2),
            seq: be32(bytes, 4),
            flags: bytes[13],
        };
        (header.src_port != 0 && header.dst_port != 0).then_some(header)
    }
}

impl TcpFlows {
    pub(crate) fn new(limits: Limits, mtu: u16, seed: u64) -> TcpFlows {
        TcpFlows {
            engine: Engine::new(mtu, GuestOffloads::default(), seed),
            flows: Slab::new(),
            by_key: HashMap::new(),
            timers: Timers::default(),
            touched: VecDeque::new(),
            ready: VecDeque::new(),
            limits,
            mtu,
            seed,
            connecting: 0,
            dialling: 0,
            buffered: 0,
            next_port: *EPHEMERAL.start(),
            opened: 0,
            last_dial: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns how many flows there have been.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Takes how the last dial ended, if one has since the last call.
    pub(crate) fn take_last_dial(&mut self) -> Option<(u16, DialOutcome)> {
        self.last_dial.take()
    }

    /// Makes segments as the guest takes them from now on.
    pub(crate) fn set_guest_offloads(&mut self, guest: GuestOffloads) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.engine = Engine::new(self.mtu, guest, self.seed);
    }

    /// Ends every flow without a word to the guest, which has forgotten them all, and returns the
    /// dials that were being made.
    pub(crate) fn clear(&mut self) -> Vec<Ticket> {
        let slots: Vec<Slot> = self.flows.iter().map(|(slot, _)| slot).collect();
        let mut tickets = Vec::new();
        for slot in slots {
            tickets.extend(self.take_ticket(slot));
            self.remove(slot);
        }
        tickets
    }

    /// Takes a flow's dial from it, so that its end is not the dial's.
    fn take_ticket(&mut self, slot: Slot) -> Option<Ticket> {
        let flow = self.flows.get_mut(slot)?;
        if !matches!(flow.stage, Stage::Dialling { .. }) {
            return None;
        }
        self.dialling -= 1;
        match std::mem::replace(&mut flow.stage, Stage::Open) {
            Stage::Dialling { ticket, .. } => Some(ticket),
            Stage::Connecting { .. } | Stage::Open => None,
        }
    }

    /// Takes a segment from the guest; `trusted` skips its checksum.
    pub(crate) fn push(
        &mut self,
        packet: &ipv4::Packet<'_>,
        trusted: bool,
        around: &mut Surroundings<'_>,
    ) -> Result<(), DropReason> {
        let header = Header::read(packet.payload()).ok_or(DropReason::BadTcp)?;
        if !trusted && !packet.has_valid_transport_checksum() {
            return Err(DropReason::BadTcp);
        }
        let key =
            Key { guest_port: header.src_port, remote: packet.dst, remote_port: header.dst_port };
        if let Some(&slot) = self.by_key.get(&key)
            && let Some(flow) = self.flows.get_mut(slot)
        {
            let sockets = Some(&mut flow.sockets);
            self.engine.push(packet.bytes, sockets, around.outbox, around.now)?;
            self.touch(slot);
            return Ok(());
        }
        match header.flags & (SYN | ACK | RST | FIN) {
            SYN => self.accept(packet, &header, key, around),
            flags if flags & RST != 0 => Err(DropReason::NoFlow),
            _ => {
                self.reset(packet, around);
                Err(DropReason::NoFlow)
            }
        }
    }

    /// Answers a segment with a reset.
    fn reset(&mut self, packet: &ipv4::Packet<'_>, around: &mut Surroundings<'_>) {
        // Without room the guest sends again and is reset then.
        let _ = self.engine.push(packet.bytes, None, around.outbox, around.now);
    }

    /// Opens a flow for a SYN from the guest.
    fn accept(
        &mut self,
        packet: &ipv4::Packet<'_>,
        header: &Header,
        key: Key,
        around: &mut Surroundings<'_>,
    ) -> Result<(), DropReason> {
        let route = match around.policy.tcp(key.remote, key.remote_port) {
            Ok(route) => route,
            Err(reason) => {
                if reason == DropReason::Denied {
                    self.reset(packet, around);
                }
                return Err(reason);
            }
        };
        if self.flows.len() >= self.limits.tcp_flows
            || self.connecting >= self.limits.tcp_connecting
        {
            return Err(DropReason::NoRoom);
        }
        let mut others = Vec::new();
        let opened = match route {
            Route::Service(service) => {
                service.connect().and_then(Socket::try_from).map(|socket| (socket, Connect::Done))
            }
            Route::Host(address) => Socket::connect_tcp(address),
            Route::Resolver => {
                others = around.dns.resolvers().iter().rev().copied().collect();
                connect_any(&mut others)
            }
        };
        let (host, connect) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(to = %key.remote, port = key.remote_port, %error, "no TCP flow");
                match Failure::of(&error) {
                    Failure::Refused => self.reset(packet, around),
                    Failure::Unreachable(why) => {
                        unreachable(around.outbox, &key, header.seq, why);
                    }
                    Failure::Silent => {}
                }
                return Err(DropReason::HostError);
            }
        };
        let token = Token::Tcp(self.flows.next_slot());
        if let Err(error) = around.poller.watch(host.as_fd(), token) {
            tracing::warn!(%error, "cannot watch a socket");
            return Err(DropReason::HostError);
        }
        let stage = Stage::Connecting { syn: header.seq, others };
        let mut flow = Flow::new(key, stage, Some(host), self.buffer());
        let socket = flow.socket();
        socket.pause_synack(true);
        let endpoint =
            IpListenEndpoint { addr: Some(IpAddress::Ipv4(key.remote)), port: key.remote_port };
        if socket.listen(endpoint).is_err() {
            return Err(DropReason::BadTcp);
        }
        let sockets = Some(&mut flow.sockets);
        self.engine.push(packet.bytes, sockets, around.outbox, around.now)?;
        match connect {
            Connect::Done => flow.open(),
            Connect::InProgress => self.connecting += 1,
        }
        let slot = self.insert(flow);
        self.touch(slot);
        Ok(())
    }

    /// Returns the size of one buffer of a new flow: an eighth of what the budget has left.
    fn buffer(&self) -> usize {
        let left = self.limits.tcp_buffers.saturating_sub(self.buffered);
        (left / 8 / 2).clamp(MIN_BUFFER, MAX_BUFFER)
    }

    fn insert(&mut self, flow: Flow) -> Slot {
        let key = flow.key;
        self.buffered += flow.buffers;
        self.opened += 1;
        let slot = self.flows.insert(flow);
        self.by_key.insert(key, slot);
        slot
    }

    fn remove(&mut self, slot: Slot) {
        self.timers.set(slot, None);
        let Some(mut flow) = self.flows.remove(slot) else {
            return;
        };
        self.by_key.remove(&flow.key);
        self.buffered -= flow.buffers;
        flow.finish();
        match flow.stage {
            Stage::Connecting { .. } => self.connecting -= 1,
            Stage::Dialling { ticket, .. } => {
                self.dialling -= 1;
                let outcome = match ticket.is_given_up() {
                    true => DialOutcome::GivenUp,
                    false => DialOutcome::Refused,
                };
                let port = ticket.port;
                self.last_dial = Some((port, outcome));
                ticket.answer(Err(DialError::Refused { port }));
            }
            Stage::Open => {}
        }
    }

    fn touch(&mut self, slot: Slot) {
        if let Some(flow) = self.flows.get_mut(slot)
            && !flow.touched
        {
            flow.touched = true;
            self.touched.push_back(slot);
        }
    }

    fn make_ready(&mut self, slot: Slot) {
        if let Some(flow) = self.flows.get_mut(slot)
            && !flow.ready
        {
            flow.ready = true;
            self.ready.push_back(slot);
        }
    }

    /// Notes what has happened on the host socket of a flow.
    pub(crate) fn event(&mut self, slot: Slot, event: &Event, around: &mut Surroundings<'_>) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        flow.readable |= event.readable;
        flow.writable |= event.writable;
        flow.ended |= event.ended;
        if matches!(flow.stage, Stage::Connecting { .. }) && event.writable {
            self.connected(slot, around);
        }
        self.touch(slot);
    }

    /// Deals with the end of a connection attempt of the host's.
    fn connected(&mut self, slot: Slot, around: &mut Surroundings<'_>) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        let Stage::Connecting { syn, others } = &mut flow.stage else {
            return;
        };
        let syn = *syn;
        let mut result = match &flow.host {
            Some(host) => host.take_error(),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if result.is_err() && !others.is_empty() {
            // Closing the failed socket ends its watch, so the new one takes its token over.
            result = connect_any(others).and_then(|(host, connect)| {
                around.poller.watch(host.as_fd(), Token::Tcp(slot))?;
                flow.host = Some(host);
                match connect {
                    Connect::Done => Ok(()),
                    Connect::InProgress => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
        }
        match result {
            Ok(()) => {
                flow.open();
                self.connecting -= 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match Failure::of(&error) {
                Failure::Refused => flow.socket().abort(),
                Failure::Unreachable(why) => {
                    let key = flow.key;
                    unreachable(around.outbox, &key, syn, why);
                    self.remove(slot);
                }
                Failure::Silent => self.remove(slot),
            },
        }
    }

    /// Starts to connect to the guest for a dial.
    pub(crate) fn dial(&mut self, ticket: Ticket, gateway: Ipv4Addr, around: &Surroundings<'_>) {
        if self.flows.len() >= self.limits.tcp_flows {
            ticket.answer(Err(DialError::Busy));
            return;
        }
        let mut key = Key { guest_port: ticket.port, remote: gateway, remote_port: self.next_port };
        while self.by_key.contains_key(&key) {
            key.remote_port = next_ephemeral(key.remote_port);
        }
        self.next_port = next_ephemeral(key.remote_port);
        let stage = Stage::Dialling { ticket, since: around.now };
        let mut flow = Flow::new(key, stage, None, self.buffer());
        let guest = IpAddress::Ipv4(around.outbox.addresses.guest);
        let local =
            IpListenEndpoint { addr: Some(IpAddress::Ipv4(gateway)), port: key.remote_port };
        let connecting =
            flow.socket().connect(self.engine.context(), (guest, key.guest_port), local);
        self.dialling += 1;
        let slot = self.insert(flow);
        match connecting {
            Ok(()) => self.make_ready(slot),
            // Port 0 alone comes here.
            Err(_) => self.remove(slot),
        }
    }

    /// Lets go of the dials that nobody waits for any more.
    pub(crate) fn drop_given_up_dials(&mut self) {
        if self.dialling == 0 {
            return;
        }
        let given_up = |flow: &Flow| match &flow.stage {
            Stage::Dialling { ticket, .. } => ticket.is_given_up(),
            _ => false,
        };
        let slots: Vec<Slot> =
            self.flows.iter().filter(|(_, flow)| given_up(flow)).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove(slot);
        }
    }

    /// Moves bytes between the host and every touched flow.
    pub(crate) fn pump(&mut self, around: &Surroundings<'_>) {
        while let Some(slot) = self.touched.pop_front() {
            let Some(flow) = self.flows.get_mut(slot) else {
                continue;
            };
            flow.touched = false;
            if matches!(flow.stage, Stage::Dialling { .. }) {
                self.dialled(slot, around.poller);
            }
            if let Some(flow) = self.flows.get_mut(slot) {
                flow.pump();
                self.make_ready(slot);
            }
        }
    }

    /// Hands a dial its stream when the guest has taken the connection.
    fn dialled(&mut self, slot: Slot, poller: &Poller) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        if matches!(flow.socket().state(), State::SynSent | State::SynReceived | State::Closed) {
            return;
        }
        let made = UnixStream::pair().and_then(|(ours, theirs)| {
            let ours = Socket::try_from(ours)?;
            poller.watch(ours.as_fd(), Token::Tcp(slot))?;
            Ok((ours, theirs))
        });
        let result = match made {
            Ok((ours, theirs)) => {
                flow.host = Some(ours);
                Ok(theirs)
            }
            Err(error) => {
                flow.socket().abort();
                Err(DialError::Host { message: error.to_string() })
            }
        };
        let ticket = self.take_ticket(slot);
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.open();
        }
        if let Some(ticket) = ticket {
            self.last_dial = Some((ticket.port, DialOutcome::Connected));
            ticket.answer(result);
        }
    }

    /// Whether a flow waits to be pumped.
    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Writes the next segment for the guest to `buf`; the ready flows take turns.
    pub(crate) fn pull(&mut self, outbox: &Outbox, buf: &mut [u8], now: Micros) -> Option<Pulled> {
        while let Some(slot) = self.ready.pop_front() {
            let Some(flow) = self.flows.get_mut(slot) else {
                continue;
            };
            if let Some(pulled) = self.engine.pull(&mut flow.sockets, outbox, buf, now) {
                self.ready.push_back(slot);
                return Some(pulled);
            }
            flow.ready = false;
            if flow.is_over() {
                self.remove(slot);
                continue;
            }
            let deadline = match &flow.stage {
                Stage::Connecting { .. } => None,
                Stage::Dialling { since, .. } => Some(since + REDIAL),
                Stage::Open => self.engine.deadline(&flow.sockets, now),
            };
            self.timers.set(slot, deadline.map(|at| at.max(now + TICK)));
        }
        None
    }

    /// Makes the flows ready whose timers are due, and dials anew where there was no answer.
    pub(crate) fn expire(&mut self, gateway: Ipv4Addr, around: &Surroundings<'_>) {
        while let Some(slot) = self.timers.pop_due(around.now) {
            let Some(flow) = self.flows.get_mut(slot) else {
                continue;
            };
            if let Stage::Dialling { since, .. } = &flow.stage
                && since + REDIAL <= around.now
            {
                let ticket = self.take_ticket(slot);
                self.remove(slot);
                if let Some(ticket) = ticket {
                    self.dial(ticket, gateway, around);
                }
                continue;
            }
            self.make_ready(slot);
        }
    }

    /// Returns when the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.timers.first().map(|(deadline, _)| deadline)
    }
}

/// Starts to connect to the last of `addresses` that can be tried at all, removing those tried.
fn connect_any(addresses: &mut Vec<SocketAddr>) -> io::Result<(Socket, Connect)> {
    let mut result = Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    while result.is_err()
        && let Some(address) = addresses.pop()
    {
        result = Socket::connect_tcp(address);
    }
    result
}

/// What a failed connection of the host's means for the guest.
enum Failure {
    Refused,
    Unreachable(icmp::Unreachable),
    Silent,
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        match (error.kind(), icmp::Unreachable::from_host_error(error)) {
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset, _) => {
                Failure::Refused
            }
            (_, Some(why)) => Failure::Unreachable(why),
            (io::ErrorKind::TimedOut, None) => Failure::Silent,
            // The host lacks something, or a service does not serve.
            (_, None) => Failure::Refused,
        }
    }
}

/// Tells the guest that the destination of its SYN cannot be reached.
fn unreachable(outbox: &mut Outbox, key: &Key, syn: u32, why: icmp::Unreachable) {
    let mut transport = [0; 8];
    transport[..2].copy_from_slice(&key.guest_port.to_be_bytes());
    transport[2..4].copy_from_slice(&key.remote_port.to_be_bytes());
    transport[4..].copy_from_slice(&syn.to_be_bytes());
    let quote = icmp::Quote {
        src: outbox.addresses.guest,
        dst: key.remote,
        protocol: ipv4::TCP,
        transport,
    };
    // Without room the guest's SYN comes again.
    let _ = outbox.queue_unreachable(key.remote, why, &quote);
}

fn next_ephemeral(port: u16) -> u16 {
    match port.checked_add(1) {
        Some(next) if EPHEMERAL.contains(&next) => next,
        _ => *EPHEMERAL.start(),
    }
}
