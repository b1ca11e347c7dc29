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
//!
//! Flows are not saved: what is left of them in a saved network are [`orphans`], which are reset.

mod accept;
mod dialling;
mod engine;
mod flow;
pub(crate) mod orphans;
mod pages;

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use crate::config::Limits;
use crate::dial::{DialError, Ticket};
use crate::dns::Dns;
use crate::handle::DialOutcome;
use crate::host::poller::{Event, Poller};
use crate::link::{DropReason, GuestOffloads, Pulled};
use crate::outbox::Outbox;
use crate::policy::Policy;
use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};
use crate::watch::{Ended, Outcome, Reporter};
use crate::wire::{be16, be32, ip};

use dialling::EPHEMERAL;
use engine::Engine;
pub(crate) use flow::Key;
use flow::{Flow, Stage};
use orphans::{Numbers, Orphan, Orphans};

const HEADER_LEN: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Bytes of one buffer: as much as pays, and as little as works. A buffer is a window, and each
/// window costs a round through the guest: with 64 KiB a flow has half of its throughput, with 16
/// KiB a fifth. Idle flows pay for it with addresses only, as [`pages`] never touched are never there.
const MAX_BUFFER: usize = 256 << 10;
const MIN_BUFFER: usize = 64 << 10;
/// The most flows whatever the configuration says: fewer than there are ports to dial from.
const MAX_FLOWS: usize = 16_000;
/// How long a dial's SYN has before it is sent anew.
const REDIAL: Micros = 1_000_000;
/// The least time to a timer, so that none can spin.
const TICK: Micros = 1_000;

/// What opening and serving flows needs from the rest of the network.
pub(crate) struct Surroundings<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) dns: &'a mut Dns,
    pub(crate) poller: &'a Poller,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) reporter: &'a mut Reporter,
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
    /// Connections of a restored guest's, which go before all others.
    orphans: Orphans,
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
    /// Flows that have ended and are yet to be told.
    pub(crate) ended: Vec<Ended>,
}

/// The fields of a TCP header that the table itself reads.
struct Header {
    src_port: u16,
    dst_port: u16,
    seq: u32,
    ack: u32,
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
            ack: be32(bytes, 8),
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
            orphans: Orphans::default(),
            limits: Limits { tcp_flows: limits.tcp_flows.min(MAX_FLOWS), ..limits },
            mtu,
            seed,
            connecting: 0,
            dialling: 0,
            buffered: 0,
            next_port: *EPHEMERAL.start(),
            opened: 0,
            last_dial: None,
            ended: Vec::new(),
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
        self.orphans.clear();
        let slots: Vec<Slot> = self.flows.iter().map(|(slot, _)| slot).collect();
        let mut tickets = Vec::new();
        for slot in slots {
            tickets.extend(self.take_ticket(slot));
            self.remove(slot);
        }
        tickets
    }

    /// Returns what there is to tell of the flows that are open.
    pub(crate) fn open_flows(&self) -> Vec<Ended> {
        let open = |flow: &Flow| Some(Ended { outcome: Outcome::Open, ..flow.ended()? });
        self.flows.iter().filter_map(|(_, flow)| open(flow)).collect()
    }

    /// Returns what a saved guest still has of its connections. One that has not been answered yet
    /// is none of them: the guest asks for it again.
    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        let open = self
            .flows
            .iter()
            .filter_map(|(_, flow)| flow.numbers.map(|numbers| Orphan { key: flow.key, numbers }));
        self.orphans.iter().copied().chain(open).collect()
    }

    /// Returns the port that the next dial comes from.
    pub(crate) fn next_port(&self) -> u16 {
        self.next_port
    }

    /// Takes over the connections of a restored guest, to reset them, and goes on with the ports
    /// that dials come from, so that none is one the guest still knows.
    pub(crate) fn adopt(&mut self, orphans: Vec<Orphan>, next_port: u16) {
        self.orphans.extend(orphans);
        self.next_port = next_port.max(*EPHEMERAL.start());
    }

    /// Whether connections of a restored guest are yet to be reset.
    pub(crate) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Queues resets for connections of a restored guest, as far as the outbox has room.
    pub(crate) fn reset_orphans(&mut self, outbox: &mut Outbox) {
        self.orphans.reset(outbox);
    }

    /// Takes a segment from the guest; `trusted` skips its checksum.
    pub(crate) fn push(
        &mut self,
        packet: &ip::Packet<'_>,
        trusted: bool,
        around: &mut Surroundings<'_>,
    ) -> Result<(), DropReason> {
        let header = Header::read(packet.payload()).ok_or(DropReason::BadTcp)?;
        if !trusted && !packet.has_valid_transport_checksum() {
            return Err(DropReason::BadTcp);
        }
        let key = Key {
            guest: packet.src,
            guest_port: header.src_port,
            remote: packet.dst,
            remote_port: header.dst_port,
        };
        if let Some(&slot) = self.by_key.get(&key)
            && let Some(flow) = self.flows.get_mut(slot)
        {
            let sockets = Some(&mut flow.sockets);
            self.engine.push(packet.bytes, sockets, around.outbox, around.now)?;
            if header.flags & ACK != 0
                && let Some(numbers) = &mut flow.numbers
            {
                numbers.acknowledge(header.ack);
            }
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
    fn reset(&mut self, packet: &ip::Packet<'_>, around: &mut Surroundings<'_>) {
        // Without room the guest sends again and is reset then.
        let _ = self.engine.push(packet.bytes, None, around.outbox, around.now);
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
        self.ended.extend(flow.ended());
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
            Stage::Inviting | Stage::Open => {}
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

    /// Moves bytes between the host and every touched flow.
    pub(crate) fn pump(&mut self, around: &Surroundings<'_>) {
        while let Some(slot) = self.touched.pop_front() {
            let Some(flow) = self.flows.get_mut(slot) else {
                continue;
            };
            flow.touched = false;
            match flow.stage {
                Stage::Dialling { .. } => self.dialled(slot, around.poller),
                Stage::Inviting => flow.open_if_taken(),
                Stage::Connecting { .. } | Stage::Open => {}
            }
            if let Some(flow) = self.flows.get_mut(slot) {
                flow.pump();
                self.make_ready(slot);
            }
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
                flow.numbers = Numbers::after(flow.numbers, &buf[..pulled.len]);
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
                Stage::Inviting | Stage::Open => self.engine.deadline(&flow.sockets, now),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_flows_have_the_largest_buffers_and_as_many_as_may_be_enough_to_work_with() {
        let mut flows = TcpFlows::new(Limits::default(), 1500, 1);
        let mut sizes = Vec::new();
        for _ in 0..Limits::default().tcp_flows {
            let buffer = flows.buffer();
            flows.buffered += 2 * buffer;
            sizes.push(buffer);
        }
        assert!(sizes[..1000].iter().all(|size| *size == MAX_BUFFER));
        assert_eq!(sizes.last(), Some(&MIN_BUFFER));
        // What docs/limits.md says of a guest that fills them all.
        assert!(flows.buffered <= 640 << 20, "{}", flows.buffered);
    }
}
