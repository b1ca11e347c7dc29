//! The network behind one guest's link: its protocols, what they share, and when each has its turn.

mod intake;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arp;
use crate::config::NatConfig;
use crate::dhcp::Dhcp;
use crate::dial::Ticket;
use crate::dns::Dns;
use crate::dns::judge::Judge;
use crate::handle::{Activity, Lease, NatHandle, Shared};
use crate::host::poller::{BATCH, Poller, Token};
use crate::inbound::Ports;
use crate::link::{DropReason, GuestOffloads, Link, Offload, Pulled};
use crate::ndp::Router;
use crate::outbox::{Addresses, Outbox};
use crate::ping::Pings;
use crate::policy::Policy;
use crate::saved::Saved;
use crate::tcp::{Surroundings, TcpFlows};
use crate::timers::Micros;
use crate::udp::UdpFlows;
use crate::watch::Reporter;
use crate::wire::ipv6;

/// How often a guest that has not been seen is asked for its address while a dial waits.
const ARP_INTERVAL: Micros = 250_000;
/// How many batches of host events one poll takes, so that it always ends.
const MAX_BATCHES: usize = 16;

/// A userspace NAT: the guest's network, ended in this process.
///
/// See [`NatConfig`] for what it offers and [`Link`] for how a device drives it.
pub struct Nat {
    config: Arc<NatConfig>,
    policy: Policy,
    poller: Poller,
    shared: Arc<Shared>,
    outbox: Outbox,
    dhcp: Dhcp,
    dns: Dns,
    udp: UdpFlows,
    tcp: TcpFlows,
    pings: Pings,
    /// The IPv6 side, where there is one.
    router: Option<Router>,
    ports: Ports,
    /// Dials that wait for the guest to be seen on the network.
    waiting: VecDeque<Ticket>,
    /// When the guest is next asked for its address; meaningful while dials wait.
    next_arp: Micros,
    activity: Activity,
    reporter: Reporter,
    /// A guest has been restored, and its device has not polled yet.
    restored: bool,
    start: Instant,
    now: Instant,
}

impl Nat {
    /// Makes a network and a handle to it.
    ///
    /// # Errors
    /// `InvalidInput` when the configuration does not fit together; else what the host refused.
    pub fn new(config: NatConfig) -> io::Result<(Nat, NatHandle)> {
        Nat::starting_at(config, Instant::now())
    }

    /// Makes a network whose time begins at `start`.
    pub(crate) fn starting_at(config: NatConfig, start: Instant) -> io::Result<(Nat, NatHandle)> {
        config.validate()?;
        let config = Arc::new(config);
        let (shared, handle) = Shared::new()?;
        let poller = Poller::new()?;
        poller.watch(shared.wake_fd(), Token::Wake)?;
        let limits = config.limits;
        let seed = RandomState::new().hash_one(config.guest_mac);
        let nat = Nat {
            policy: Policy::new(Arc::clone(&config)),
            outbox: Outbox::new(Addresses {
                gateway_mac: config.gateway_mac,
                guest_mac: config.guest_mac,
                guest: config.guest,
            }),
            dhcp: Dhcp::new(Arc::clone(&config)),
            dns: Dns::new(&config),
            udp: UdpFlows::new(limits.udp_flows, config.mtu),
            tcp: TcpFlows::new(limits, config.mtu, seed),
            pings: Pings::new(limits.pings, config.mtu),
            router: config
                .ipv6
                .filter(|_| config.mtu >= ipv6::MIN_MTU)
                .map(|ipv6| Router::new(ipv6, config.mtu)),
            ports: Ports::new(config.inbound.clone(), config.mtu, &poller)?,
            waiting: VecDeque::new(),
            next_arp: 0,
            activity: Activity::default(),
            reporter: Reporter::new(config.watch.clone()),
            restored: false,
            poller,
            shared,
            config,
            start,
            now: start,
        };
        Ok((nat, handle))
    }

    fn micros(&self) -> Micros {
        let elapsed = self.now.saturating_duration_since(self.start);
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
    }

    fn dns_and_judge(&mut self) -> (&mut Dns, Judge<'_>, &Poller, &mut Outbox) {
        let now = self.micros();
        let judge = Judge { policy: &mut self.policy, reporter: &mut self.reporter, now };
        (&mut self.dns, judge, &self.poller, &mut self.outbox)
    }

    fn tcp_and_surroundings(&mut self) -> (&mut TcpFlows, Surroundings<'_>) {
        let now = self.micros();
        let around = Surroundings {
            policy: &self.policy,
            dns: &mut self.dns,
            poller: &self.poller,
            outbox: &mut self.outbox,
            reporter: &mut self.reporter,
            now,
        };
        (&mut self.tcp, around)
    }

    /// Takes what has happened on the host's side.
    fn take_events(&mut self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        for _ in 0..MAX_BATCHES {
            let mut count = 0;
            for event in self.poller.wait(&mut events) {
                count += 1;
                match event.token {
                    Token::Wake => self.take_requests(),
                    Token::Udp(slot) => self.udp.readable(slot),
                    Token::Dns(slot) => self.dns.readable(slot),
                    Token::DnsStream(slot) => {
                        let (dns, mut judge, poller, _) = self.dns_and_judge();
                        dns.advance_stream(slot, poller, &mut judge);
                    }
                    Token::Ping(slot) => self.pings.readable(slot),
                    Token::Inbound(index) => self.take_callers(index),
                    Token::Tcp(slot) => {
                        let (tcp, mut around) = self.tcp_and_surroundings();
                        tcp.event(slot, &event, &mut around);
                    }
                }
            }
            if count < BATCH {
                return;
            }
        }
    }

    /// Takes those who have connected to a port of the host's that leads to the guest.
    fn take_callers(&mut self, index: u32) {
        while let Some(caller) = self.ports.call(index) {
            let is_there = self.activity.address_seen.is_some();
            let gateway = self.config.gateway;
            let (tcp, around) = self.tcp_and_surroundings();
            tcp.invite(caller, is_there, gateway, &around);
        }
    }

    /// Passes datagrams from ports of the host's on, as far as the outbox has room.
    fn receive_inbound(&mut self, now: Micros) {
        let is_there = self.activity.address_seen.is_some();
        let ends = (self.config.gateway, self.config.guest);
        self.ports.receive(ends, is_there, &mut self.outbox, now);
    }

    /// Takes the dials that handles have asked for, and lets go of those given up.
    fn take_requests(&mut self) {
        self.shared.woken();
        if self.waiting.is_empty() {
            self.next_arp = self.micros();
        }
        self.waiting.extend(self.shared.take_dials());
        self.waiting.retain(|ticket| !ticket.is_given_up());
        self.tcp.drop_given_up_dials();
    }

    /// Starts the dials that wait once the guest has been seen, and looks for it until then.
    fn serve_dials(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.activity.address_seen.is_some() {
            let waiting = std::mem::take(&mut self.waiting);
            let gateway = self.config.gateway;
            let (tcp, around) = self.tcp_and_surroundings();
            for ticket in waiting {
                tcp.dial(ticket, gateway, &around);
            }
        } else if self.next_arp <= self.micros() {
            self.next_arp = self.micros() + ARP_INTERVAL;
            // Without room the next one does.
            let _ = arp::ask(&mut self.outbox, self.config.gateway);
        }
    }

    /// Copies the next frame for the guest into `buf`.
    fn next_frame(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        let now = self.micros();
        loop {
            let taken = self.outbox.take(|frame, offload| {
                let len = frame.len();
                buf.get_mut(..len)?.copy_from_slice(frame);
                Some(Pulled { len, offload })
            });
            return match taken {
                // Longer than the buffer.
                Some(None) => continue,
                Some(Some(pulled)) => Some(pulled),
                None if self.tcp.has_orphans() => {
                    self.tcp.reset_orphans(&mut self.outbox);
                    continue;
                }
                None if self.has_backlog() => {
                    self.receive(now);
                    if self.outbox.is_empty() {
                        self.tcp.pull(&self.outbox, buf, now)
                    } else {
                        continue;
                    }
                }
                None => self.tcp.pull(&self.outbox, buf, now),
            };
        }
    }

    /// Moves datagrams from the host to the outbox, as far as it has room.
    fn receive(&mut self, now: Micros) {
        let (dns, mut judge, poller, outbox) = self.dns_and_judge();
        dns.receive(poller, outbox, &mut judge);
        self.receive_inbound(now);
        self.udp.receive(&mut self.outbox, now);
        self.pings.receive(&mut self.outbox, now);
    }

    /// Whether [`receive`](Nat::receive) has left something for want of room.
    fn has_backlog(&self) -> bool {
        self.udp.has_backlog()
            || self.dns.has_backlog()
            || self.pings.has_backlog()
            || self.ports.has_backlog()
    }

    fn publish(&mut self) {
        let now = self.micros();
        let ended = self.tcp.ended.drain(..).chain(self.udp.ended.drain(..));
        self.reporter.ended(ended, now);
        self.activity.dns_queries += self.dns.take_asked_in_streams();
        self.activity.tcp_flows = self.tcp.len();
        self.activity.tcp_flows_total = self.tcp.opened();
        self.activity.udp_flows = self.udp.len();
        if let Some((port, outcome)) = self.tcp.take_last_dial() {
            self.activity.last_dial = Some((port, outcome, self.now));
        }
        self.shared.publish(&self.activity);
    }
}

impl Link for Nat {
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        self.activity.frames_from_guest += 1;
        self.activity.bytes_from_guest += frame.len() as u64;
        self.push_frame(frame, offload).inspect_err(|reason| self.activity.count_drop(*reason))
    }

    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        let Some(pulled) = self.next_frame(buf) else {
            // Flows are removed when they have nothing left to send, and the next poll may be far.
            if self.activity.tcp_flows != self.tcp.len() {
                self.publish();
            }
            return None;
        };
        self.activity.frames_to_guest += 1;
        self.activity.bytes_to_guest += pulled.len as u64;
        Some(pulled)
    }

    fn poll(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.restored = false;
        self.tcp.reset_orphans(&mut self.outbox);
        let micros = self.micros();
        self.take_events();
        let (dns, mut judge, poller, outbox) = self.dns_and_judge();
        dns.expire(poller, outbox, &mut judge);
        self.receive(micros);
        self.udp.expire(micros);
        self.pings.expire(micros);
        if let Some(router) = &mut self.router {
            router.expire(self.dns.search(), &mut self.outbox, micros);
        }
        self.serve_dials();
        let gateway = self.config.gateway;
        let (tcp, around) = self.tcp_and_surroundings();
        tcp.expire(gateway, &around);
        tcp.pump(&around);
        self.publish();
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.tcp.is_touched() {
            return Some(now);
        }
        let arp = (!self.waiting.is_empty()).then_some(self.next_arp);
        let router = self.router.as_ref().and_then(Router::deadline);
        let datagrams = [self.udp.deadline(), self.dns.deadline(), self.pings.deadline()];
        [self.tcp.deadline(), arp, router]
            .into_iter()
            .chain(datagrams)
            .flatten()
            .min()
            .and_then(|at| self.start.checked_add(Duration::from_micros(at)))
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    fn set_guest_offloads(&mut self, accepted: GuestOffloads) {
        let none = accepted == GuestOffloads::default();
        // A device that was only paused goes on, and what waits for its guest is whole.
        if none || accepted != self.outbox.guest {
            self.outbox.guest = accepted;
            self.outbox.clear();
            self.tcp.set_guest_offloads(accepted);
        }
        self.activity.driver_up = !none || (self.restored && self.activity.driver_up);
        if !self.activity.driver_up {
            // A device reset: the guest has forgotten its flows and its address.
            let dials = self.tcp.clear();
            self.waiting.extend(dials);
            self.next_arp = self.micros();
            self.activity.lease = Lease::None;
            self.activity.lease_since = None;
            self.activity.address_seen = None;
            if let Some(router) = &mut self.router {
                router.stop();
            }
        }
        self.publish();
    }

    fn mac(&self) -> [u8; 6] {
        self.config.guest_mac
    }

    fn mtu(&self) -> u16 {
        self.config.mtu
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved {
            gateway: self.config.gateway,
            guest: self.config.guest,
            gateway_mac: self.config.gateway_mac,
            guest_mac: self.activity.guest_mac,
            lease: self.activity.lease,
            driver_up: self.activity.driver_up,
            address_seen: self.activity.address_seen.is_some(),
            router_asked: self.router.as_ref().is_some_and(Router::is_asked),
            next_port: self.tcp.next_port(),
            orphans: self.tcp.orphans(),
        };
        saved.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        let saved = Saved::from_bytes(state)?;
        let config = &self.config;
        let was = (saved.gateway, saved.guest, saved.gateway_mac);
        if was != (config.gateway, config.guest, config.gateway_mac) {
            let message = format!(
                "Saved network had the guest at {} behind {}, not at {} behind {}, or another MAC \
                 address of the gateway",
                saved.guest, saved.gateway, config.guest, config.gateway,
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if let Some(station) = saved.guest_mac {
            self.learn(&station);
        }
        self.activity.driver_up = saved.driver_up;
        self.activity.lease = saved.lease;
        self.activity.lease_since = (saved.lease != Lease::None).then_some(self.now);
        self.activity.address_seen = saved.address_seen.then_some(self.now);
        self.tcp.adopt(saved.orphans, saved.next_port);
        let now = self.micros();
        if let Some(router) = &mut self.router
            && saved.router_asked
        {
            router.resume(now);
        }
        self.restored = true;
        self.publish();
        Ok(())
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.publish();
        let open = self.tcp.open_flows().into_iter().chain(self.udp.open_flows());
        self.reporter.ended(open, self.micros());
        self.shared.close();
    }
}

#[cfg(test)]
mod tests;
