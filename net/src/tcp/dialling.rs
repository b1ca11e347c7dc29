//! Connections that the host opens to the guest: for the dials of handles, and for those who call
//! at a port of the host that leads to the guest.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use smoltcp::socket::tcp::{ConnectError, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use crate::dial::{DialError, Ticket};
use crate::handle::DialOutcome;
use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::inbound::Caller;
use crate::slab::Slot;
use crate::watch::Outcome;

use super::flow::{Flow, Key, Stage};
use super::{Surroundings, TcpFlows};

/// How long the guest may take to answer a caller.
const INVITATION: Duration = Duration::from_secs(10);
/// The ports that dials come from (RFC 6335, section 6).
pub(super) const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

impl TcpFlows {
    /// Starts to connect to the guest for a dial.
    pub(crate) fn dial(&mut self, ticket: Ticket, gateway: Ipv4Addr, around: &Surroundings<'_>) {
        if self.flows.len() >= self.limits.tcp_flows {
            ticket.answer(Err(DialError::Busy));
            return;
        }
        let key = self.next_key(ticket.port, gateway, around);
        let mut flow = match Flow::new(key, Stage::Inviting, None, self.buffer(), around.now) {
            Ok(flow) => flow,
            Err(error) => {
                ticket.answer(Err(DialError::Host { message: error.to_string() }));
                return;
            }
        };
        flow.stage = Stage::Dialling { ticket, since: around.now };
        flow.is_dial = true;
        let connecting = self.connect(&mut flow);
        self.dialling += 1;
        let slot = self.insert(flow);
        match connecting {
            Ok(()) => self.make_ready(slot),
            // Port 0 alone comes here.
            Err(_) => self.remove(slot),
        }
    }

    /// Returns the ends of a new connection from a port of the gateway's that is free.
    fn next_key(&mut self, guest_port: u16, gateway: Ipv4Addr, around: &Surroundings<'_>) -> Key {
        let guest = IpAddr::V4(around.outbox.addresses.guest);
        let remote = IpAddr::V4(gateway);
        let mut key = Key { guest, guest_port, remote, remote_port: self.next_port };
        while self.by_key.contains_key(&key) {
            key.remote_port = next_ephemeral(key.remote_port);
        }
        self.next_port = next_ephemeral(key.remote_port);
        key
    }

    /// Has a flow's socket connect to the guest.
    fn connect(&mut self, flow: &mut Flow) -> Result<(), ConnectError> {
        let key = flow.key;
        let guest = IpAddress::from(key.guest);
        let local = IpListenEndpoint { addr: Some(key.remote.into()), port: key.remote_port };
        flow.socket().connect(self.engine.context(), (guest, key.guest_port), local)
    }

    /// Starts to connect a caller to the guest. Without a guest, or room, it is reset.
    pub(crate) fn invite(
        &mut self,
        caller: Caller,
        is_there: bool,
        gateway: Ipv4Addr,
        around: &Surroundings<'_>,
    ) {
        let Caller { stream, address, guest_port } = caller;
        let Ok(host) = Socket::try_from(stream) else { return };
        let watched = around.poller.watch(host.as_fd(), Token::Tcp(self.flows.next_slot()));
        if !is_there || self.flows.len() >= self.limits.tcp_flows || watched.is_err() {
            host.reset_on_close();
            return;
        }
        let key = self.next_key(guest_port, gateway, around);
        // Without memory the caller is let go with the socket.
        let buffer = self.buffer();
        let Ok(mut flow) = Flow::new(key, Stage::Inviting, Some(host), buffer, around.now) else {
            return;
        };
        flow.caller = Some(address);
        flow.failed = Some(Outcome::Refused);
        flow.socket().set_timeout(Some(INVITATION));
        let connecting = self.connect(&mut flow);
        let slot = self.insert(flow);
        match connecting {
            Ok(()) => self.make_ready(slot),
            Err(_) => self.remove(slot),
        }
    }

    /// Takes a flow's dial from it, so that its end is not the dial's.
    pub(super) fn take_ticket(&mut self, slot: Slot) -> Option<Ticket> {
        let flow = self.flows.get_mut(slot)?;
        if !matches!(flow.stage, Stage::Dialling { .. }) {
            return None;
        }
        self.dialling -= 1;
        match std::mem::replace(&mut flow.stage, Stage::Open) {
            Stage::Dialling { ticket, .. } => Some(ticket),
            Stage::Connecting { .. } | Stage::Inviting | Stage::Open => None,
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

    /// Hands a dial its stream when the guest has taken the connection.
    pub(super) fn dialled(&mut self, slot: Slot, poller: &Poller) {
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
}

fn next_ephemeral(port: u16) -> u16 {
    match port.checked_add(1) {
        Some(next) if EPHEMERAL.contains(&next) => next,
        _ => *EPHEMERAL.start(),
    }
}
