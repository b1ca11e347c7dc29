//! Whether a query may be asked and its answer passed on, and who hears of either.

use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::{Denial, Policy};
use crate::timers::Micros;
use crate::watch::{Bytes, Ended, Outcome, Protocol, Reporter};

use super::{Client, addresses};

/// The rules, and who is told of what they let through and what not.
pub(crate) struct Judge<'a> {
    pub(crate) policy: &'a mut Policy,
    pub(crate) reporter: &'a mut Reporter,
    pub(crate) now: Micros,
}

impl Judge<'_> {
    /// Whether the guest may ask for a query's name. `own` are the addresses that it is answered with
    /// here, if it is.
    pub(crate) fn may_ask(
        &mut self,
        query: &[u8],
        own: Option<Vec<IpAddr>>,
        client: Client,
    ) -> bool {
        let Some(name) = addresses::question(query) else { return true };
        let denial = match self.policy.ask(&name) {
            // What is answered here carries nothing out.
            Err(Denial::Restricted) if own.is_some() => None,
            asked => asked.err(),
        };
        let name: Arc<str> = name.into();
        if let Some(denial) = denial {
            self.denied(client, name, denial);
            return false;
        }
        for address in own.into_iter().flatten() {
            self.policy.learn_own(&name, address, self.now);
        }
        true
    }

    /// Whether the guest may have a resolver's answer.
    pub(crate) fn may_pass(&mut self, answer: &[u8], client: Client) -> bool {
        let name: Arc<str> = addresses::question(answer).unwrap_or_default().into();
        if let Err(denial) = self.policy.learn(&name, answer, self.now) {
            self.denied(client, name, denial);
            return false;
        }
        let flow = Ended {
            protocol: Protocol::Dns,
            inbound: false,
            guest_port: client.guest.1,
            peer: client.peer(),
            name: Some(name),
            opened: self.now,
            bytes: Bytes { from_guest: 0, to_guest: answer.len() as u64 },
            outcome: Outcome::Answered(answer[3] & 0x0f),
        };
        self.reporter.ended(std::iter::once(flow), self.now);
        true
    }

    fn denied(&mut self, client: Client, name: Arc<str>, denial: Denial) {
        let why = (&*self.policy, denial);
        let (guest_port, peer) = (client.guest.1, client.peer());
        self.reporter.denied(Protocol::Dns, guest_port, peer, Some(name), why, self.now);
    }
}
