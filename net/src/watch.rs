//! What a network tells of its flows: each one that ends, with its peer, its bytes and its outcome,
//! and each one that is denied, with the reason.
//!
//! A guest that is denied over and over tells no more than one line for each flow, and only so many
//! lines in a second; how many were left out is told with the next.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::policy::{Denial, Policy};
use crate::timers::Micros;

/// Denied flows told at once, and how long each takes to be earned back.
const BURST: u32 = 50;
const INTERVAL: Micros = 200_000;
/// How long a denied flow is one flow.
const SAME: Micros = 60_000_000;
const MAX_RECENT: usize = 1024;

/// Hears of flows.
pub trait Watcher: Send + Sync {
    /// Takes a flow that has ended or was denied. Called on the network's own thread, so it must not
    /// block.
    fn flow(&self, flow: &Flow);

    /// Takes the address of a forward that the guest is being connected to. Called likewise.
    fn opened(&self, peer: SocketAddr) {
        let _ = peer;
    }
}

/// A watcher, or none.
#[derive(Clone, Default)]
pub struct Watch(pub Option<Arc<dyn Watcher>>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watch(Some)" } else { "Watch(None)" })
    }
}

/// What a flow was carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams between two ports.
    Udp,
    /// One query to the network's name server.
    Dns,
    /// Echo requests; only denied ones are told, with port 0.
    Icmp,
}

impl Protocol {
    /// Returns the protocol's name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Dns => "dns",
            Protocol::Icmp => "icmp",
        }
    }
}

/// A flow that has ended, or that was denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What carried it.
    pub protocol: Protocol,
    /// Whether it was opened to the guest and not by it.
    pub inbound: bool,
    /// The guest's port.
    pub guest_port: u16,
    /// The other end as the guest saw it.
    pub peer: SocketAddr,
    /// The name that the guest had looked the peer up by, or that it asked for.
    pub name: Option<Arc<str>>,
    /// How long ago it began.
    pub age: Duration,
    /// Bytes that the guest has sent, without headers.
    pub from_guest: u64,
    /// Bytes that the guest was sent, without headers.
    pub to_guest: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Denied flows before this one that were not told.
    pub untold: u64,
}

/// How a flow ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides ended it, or it fell silent.
    Closed,
    /// It was open when the network went.
    Open,
    /// It was broken off.
    Reset,
    /// The other end refused it.
    Refused,
    /// The other end cannot be reached.
    Unreachable,
    /// The other end did not answer.
    TimedOut,
    /// The host could not serve it.
    Failed,
    /// A DNS query was answered, with this response code (RFC 1035, section 4.1.1).
    Answered(u8),
    /// The guest may not reach that: why.
    Denied(String),
}

impl Outcome {
    /// Returns the outcome in one word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Outcome::Closed => "closed",
            Outcome::Open => "open",
            Outcome::Reset => "reset",
            Outcome::Refused => "refused",
            Outcome::Unreachable => "unreachable",
            Outcome::TimedOut => "timed out",
            Outcome::Failed => "failed",
            Outcome::Answered(0) => "answered",
            Outcome::Answered(3) => "no such name",
            Outcome::Answered(_) => "failed",
            Outcome::Denied(_) => "denied",
        }
    }
}

/// A flow as the tables of flows hand it over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) protocol: Protocol,
    pub(crate) inbound: bool,
    pub(crate) guest_port: u16,
    pub(crate) peer: SocketAddr,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) opened: Micros,
    pub(crate) bytes: Bytes,
    pub(crate) outcome: Outcome,
}

/// Bytes of payload that a flow has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) from_guest: u64,
    pub(crate) to_guest: u64,
}

/// Tells the watcher.
#[derive(Debug)]
pub(crate) struct Reporter {
    watch: Watch,
    /// When each of the flows denied lately was told.
    recent: HashMap<(Protocol, u16, IpAddr, u16), Micros>,
    tokens: u32,
    earned: Micros,
    untold: u64,
}

impl Reporter {
    pub(crate) fn new(watch: Watch) -> Reporter {
        Reporter { watch, recent: HashMap::new(), tokens: BURST, earned: 0, untold: 0 }
    }

    /// Tells that the guest is being connected to a forward.
    pub(crate) fn opened(&self, peer: SocketAddr) {
        if let Some(watcher) = &self.watch.0 {
            watcher.opened(peer);
        }
    }

    /// Tells of flows that have ended.
    pub(crate) fn ended(&self, flows: impl Iterator<Item = Ended>, now: Micros) {
        // Taken in any case, so that nothing heaps up.
        flows.for_each(|flow| self.tell(flow, now, 0));
    }

    fn tell(&self, flow: Ended, now: Micros, untold: u64) {
        let Some(watcher) = &self.watch.0 else { return };
        watcher.flow(&Flow {
            protocol: flow.protocol,
            inbound: flow.inbound,
            guest_port: flow.guest_port,
            peer: flow.peer,
            name: flow.name,
            age: Duration::from_micros(now.saturating_sub(flow.opened)),
            from_guest: flow.bytes.from_guest,
            to_guest: flow.bytes.to_guest,
            outcome: flow.outcome,
            untold,
        });
    }

    /// Tells that a flow was denied, unless it was told already or too much is.
    pub(crate) fn denied(
        &mut self,
        protocol: Protocol,
        guest_port: u16,
        peer: SocketAddr,
        name: Option<Arc<str>>,
        why: (&Policy, Denial),
        now: Micros,
    ) {
        if self.watch.0.is_none() {
            return;
        }
        // Each query is about a name of its own, which is what is denied.
        if protocol != Protocol::Dns {
            if self.recent.len() >= MAX_RECENT {
                self.recent.retain(|_, told| *told + SAME > now);
            }
            let key = (protocol, guest_port, peer.ip(), peer.port());
            let is_same = self.recent.get(&key).is_some_and(|told| *told + SAME > now);
            if is_same {
                return;
            }
            if self.recent.len() < MAX_RECENT {
                self.recent.insert(key, now);
            }
        }
        let earned = now.saturating_sub(self.earned) / INTERVAL;
        self.earned += earned * INTERVAL;
        self.tokens = BURST.min(self.tokens.saturating_add(earned.min(u64::from(BURST)) as u32));
        if self.tokens == 0 {
            self.untold += 1;
            return;
        }
        self.tokens -= 1;
        let untold = std::mem::take(&mut self.untold);
        let (policy, denial) = why;
        let outcome = Outcome::Denied(policy.reason(denial));
        let bytes = Bytes::default();
        let flow =
            Ended { protocol, inbound: false, guest_port, peer, name, opened: now, bytes, outcome };
        self.tell(flow, now, untold);
    }
}

/// A watcher that keeps what it hears.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Kept(pub(crate) std::sync::Mutex<Vec<Flow>>);

#[cfg(test)]
impl Watcher for Kept {
    fn flow(&self, flow: &Flow) {
        self.0.lock().unwrap().push(flow.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NatConfig;

    fn bench() -> (Arc<Kept>, Reporter, Policy) {
        let kept = Arc::new(Kept::default());
        let reporter = Reporter::new(Watch(Some(Arc::clone(&kept) as _)));
        (kept, reporter, Policy::new(Arc::new(NatConfig::default())))
    }

    #[test]
    fn a_denied_flow_is_told_once_a_minute_however_often_it_is_tried() {
        let (kept, mut reporter, policy) = bench();
        let peer = "192.0.2.1:53".parse().unwrap();
        for second in 0..60 {
            let why = (&policy, Denial::Restricted);
            reporter.denied(Protocol::Udp, 7, peer, None, why, second * 1_000_000);
        }
        assert_eq!(kept.0.lock().unwrap().len(), 1);
        reporter.denied(Protocol::Udp, 7, peer, None, (&policy, Denial::Restricted), SAME);
        reporter.denied(Protocol::Udp, 8, peer, None, (&policy, Denial::Restricted), SAME);
        reporter.denied(Protocol::Tcp, 8, peer, None, (&policy, Denial::Restricted), SAME);
        assert_eq!(kept.0.lock().unwrap().len(), 4);
    }

    #[test]
    fn a_flood_of_denied_flows_is_counted_and_not_told_one_by_one() {
        let (kept, mut reporter, policy) = bench();
        for number in 0..100_000u64 {
            let peer = SocketAddr::from(([192, 0, 2, 1], (number % 60_000) as u16 + 1));
            let why = (&policy, Denial::Restricted);
            reporter.denied(Protocol::Tcp, (number / 60_000) as u16, peer, None, why, number);
        }
        assert_eq!(kept.0.lock().unwrap().len(), BURST as usize);
        assert!(reporter.recent.len() <= MAX_RECENT);
        let peer = "192.0.2.2:1".parse().unwrap();
        reporter.denied(Protocol::Tcp, 9, peer, None, (&policy, Denial::Restricted), 10_000_000);
        let kept = kept.0.lock().unwrap();
        assert_eq!(kept.last().unwrap().untold, 100_000 - u64::from(BURST));
    }
}
