//! The network behind one guest's link: takes its frames apart and hands them to their protocols.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arp::{self, Arp};
use crate::config::NatConfig;
use crate::dhcp::{self, Dhcp, Outcome};
use crate::dial::Ticket;
use crate::dns::judge::Judge;
use crate::dns::{Client, Dns};
use crate::handle::{Activity, Lease, NatHandle, Shared};
use crate::host::poller::{BATCH, Poller, Token};
use crate::inbound::Ports;
use crate::link::{DropReason, Gso, GuestOffloads, Link, MAX_FRAME, Offload, Pulled};
use crate::ndp::Router;
use crate::outbox::{Addresses, Outbox};
use crate::ping::{ECHO_PORT, Pings};
use crate::policy::{Denial, Policy, Refusal, Route};
use crate::saved::Saved;
use crate::tcp::{Surroundings, TcpFlows};
use crate::timers::Micros;
use crate::udp::{self, UdpFlows};
use crate::watch::{Protocol, Reporter};
use crate::wire::ethernet::{self, Mac};
use crate::wire::{icmp, ip, ipv4, ipv6, udp as udp_wire};

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

    fn push_frame(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        if frame.len() > MAX_FRAME {
            return Err(DropReason::TooLong);
        }
        let header = ethernet::read(frame)?;
        if header.src == self.config.gateway_mac {
            return Err(DropReason::BadMac);
        }
        if header.dst != self.config.gateway_mac && !ethernet::is_group(&header.dst) {
            return Err(DropReason::NotForUs);
        }
        let payload = &frame[ethernet::HEADER_LEN..];
        match header.ether_type {
            ethernet::TYPE_IPV4 => self.push_ipv4(payload, &header.src, offload),
            ethernet::TYPE_ARP => self.push_arp(payload, &header.src),
            ethernet::TYPE_IPV6 => self.push_ipv6(payload, &header.src, offload),
            _ => Err(DropReason::UnknownEtherType),
        }
    }

    /// Learns where the guest is from a frame whose sender has been checked.
    fn learn(&mut self, station: &Mac) {
        self.outbox.addresses.guest_mac = *station;
        self.activity.guest_mac = Some(*station);
    }

    fn push_arp(&mut self, bytes: &[u8], station: &Mac) -> Result<(), DropReason> {
        let packet = arp::read(bytes, station, self.config.guest)?;
        self.learn(station);
        let knows_itself = match packet {
            Arp::Announces => true,
            Arp::Asks { knows_itself, .. } => knows_itself,
        };
        if knows_itself {
            self.activity.arp_seen = Some(self.now);
            self.activity.address_seen.get_or_insert(self.now);
        }
        match packet {
            Arp::Asks { target, .. } if self.policy.is_ours(target.into()) => {
                arp::reply(&mut self.outbox, target, knows_itself).ok_or(DropReason::NoRoom)
            }
            // Nobody else is there, and silence says so.
            Arp::Asks { .. } | Arp::Announces => Ok(()),
        }
    }

    fn push_ipv4(
        &mut self,
        bytes: &[u8],
        station: &Mac,
        offload: Offload,
    ) -> Result<(), DropReason> {
        let packet = ipv4::read(bytes)?;
        let trusted = self.check(&packet, offload)?;
        if packet.src.is_unspecified() {
            return self.push_addressless(&packet, station, trusted);
        }
        if packet.src != self.config.guest {
            return Err(DropReason::SpoofedSource);
        }
        self.learn(station);
        self.activity.address_seen.get_or_insert(self.now);
        if packet.protocol == ipv4::ICMP {
            return self.push_icmp(&packet, station, trusted);
        }
        self.push_transport(&packet, station, trusted)
    }

    fn push_ipv6(
        &mut self,
        bytes: &[u8],
        station: &Mac,
        offload: Offload,
    ) -> Result<(), DropReason> {
        let router = self.router.as_ref().ok_or(DropReason::Ipv6)?;
        let packet = ipv6::read(bytes)?;
        let IpAddr::V6(src) = packet.src else {
            return Err(DropReason::BadIpv6);
        };
        // A guest without an address has a use for neighbour discovery only.
        let is_guest = match src.is_unspecified() {
            true => packet.protocol == ipv6::ICMP,
            false => router.may_be_guest(src, &self.policy),
        };
        if !is_guest {
            return Err(DropReason::SpoofedSource);
        }
        let trusted = self.check(&packet, offload)?;
        self.learn(station);
        // RFC 4291, section 2.5.6: no router passes on what comes from a link-local address.
        let stays = packet.dst.is_multicast() || self.policy.is_ours(packet.dst);
        if src.is_unicast_link_local() && !stays {
            return Err(DropReason::UnroutableDestination);
        }
        if packet.protocol == ipv6::ICMP {
            return self.push_icmp(&packet, station, trusted);
        }
        self.push_transport(&packet, station, trusted)
    }

    /// Checks a packet against what its frame leaves to us, and returns whether its checksums are
    /// not to be looked at.
    fn check(&self, packet: &ip::Packet<'_>, offload: Offload) -> Result<bool, DropReason> {
        check_offload(packet, offload)?;
        if offload.gso == Gso::None && packet.bytes.len() > usize::from(self.config.mtu) {
            return Err(DropReason::TooLong);
        }
        Ok(offload.needs_csum || offload.data_valid)
    }

    fn push_icmp(
        &mut self,
        packet: &ip::Packet<'_>,
        station: &Mac,
        trusted: bool,
    ) -> Result<(), DropReason> {
        if !trusted && !icmp::has_valid_checksum(packet) {
            return Err(DropReason::BadIcmp);
        }
        let (kind, now) = (packet.payload().first().copied(), self.micros());
        let outbox = &mut self.outbox;
        let is_echo = kind == Some(icmp::echo_types(packet.src).0);
        match &mut self.router {
            Some(router) if packet.src.is_ipv6() && !is_echo => {
                router.push(packet, station, &self.policy, self.dns.search(), outbox, now)
            }
            _ if packet.src.is_unspecified() => Err(DropReason::SpoofedSource),
            _ => {
                let pushed = self.pings.push(packet, &self.policy, &self.poller, outbox, now);
                let route = self.policy.udp(packet.dst, ECHO_PORT, now);
                if let (Err(DropReason::Denied), Err(Refusal::Denied(denial))) = (pushed, route) {
                    let (peer, name) = ((packet.dst, 0).into(), self.policy.name_of(packet.dst));
                    let why = (&self.policy, denial);
                    self.reporter.denied(Protocol::Icmp, 0, peer, name, why, now);
                }
                pushed
            }
        }
    }

    fn push_transport(
        &mut self,
        packet: &ip::Packet<'_>,
        station: &Mac,
        trusted: bool,
    ) -> Result<(), DropReason> {
        match packet.protocol {
            ip::TCP => {
                let (tcp, mut around) = self.tcp_and_surroundings();
                tcp.push(packet, trusted, &mut around)
            }
            ip::UDP => self.push_udp(packet, station, trusted),
            _ => Err(DropReason::UnknownProtocol),
        }
    }

    /// Takes a packet of a guest without an address, which only DHCP has a use for.
    fn push_addressless(
        &mut self,
        packet: &ip::Packet<'_>,
        station: &Mac,
        trusted: bool,
    ) -> Result<(), DropReason> {
        if packet.protocol != ip::UDP {
            return Err(DropReason::SpoofedSource);
        }
        let datagram = read_udp(packet, trusted)?;
        if datagram.dst_port != dhcp::SERVER_PORT {
            return Err(DropReason::SpoofedSource);
        }
        self.push_dhcp(&datagram, station)
    }

    fn push_udp(
        &mut self,
        packet: &ip::Packet<'_>,
        station: &Mac,
        trusted: bool,
    ) -> Result<(), DropReason> {
        let datagram = read_udp(packet, trusted)?;
        let to_server = match packet.dst {
            IpAddr::V4(dst) => dst == self.config.gateway || dst.is_broadcast(),
            IpAddr::V6(_) => false,
        };
        if to_server && datagram.dst_port == dhcp::SERVER_PORT {
            return self.push_dhcp(&datagram, station);
        }
        let now = self.micros();
        if packet.dst == IpAddr::V4(self.config.gateway) && self.ports.answer(&datagram, now) {
            return Ok(());
        }
        let route = match self.policy.udp(packet.dst, datagram.dst_port, now) {
            // What a name has opened goes on when the name has lapsed, as connections do.
            Err(Refusal::Denied(Denial::Restricted)) if self.udp.is_open(packet, &datagram) => {
                Ok(Route::Host((packet.dst, datagram.dst_port).into()))
            }
            route => route,
        };
        let (poller, outbox) = (&self.poller, &mut self.outbox);
        match route {
            Ok(Route::Resolver) => {
                self.activity.dns_queries += 1;
                let payload = datagram.payload;
                let client = Client { guest: (packet.src, datagram.src_port), server: packet.dst };
                self.may_ask(payload, client)?;
                let (poller, outbox) = (&self.poller, &mut self.outbox);
                self.dns.push(payload, client, poller, outbox, now)
            }
            Ok(Route::Host(target)) => {
                let name = self.policy.name_of(packet.dst);
                self.udp.push(packet, &datagram, target, name, poller, outbox, now)
            }
            Ok(Route::Service(_)) => Err(DropReason::Denied),
            Err(refusal) => {
                if let Refusal::Denied(denial) = refusal {
                    let guest = (packet.src, datagram.src_port);
                    let remote = (packet.dst, datagram.dst_port);
                    udp::report(outbox, guest, remote, icmp::Unreachable::Prohibited);
                    let name = self.policy.name_of(packet.dst);
                    let why = (&self.policy, denial);
                    self.reporter.denied(Protocol::Udp, guest.1, remote.into(), name, why, now);
                }
                Err(refusal.into())
            }
        }
    }

    /// Refuses a query for a name that the guest may not ask for.
    fn may_ask(&mut self, query: &[u8], client: Client) -> Result<(), DropReason> {
        let own = self.dns.own_answer(query);
        if self.dns_and_judge().1.may_ask(query, own, client) {
            return Ok(());
        }
        self.dns.refuse(query, client, &mut self.outbox);
        Err(DropReason::Denied)
    }

    fn dns_and_judge(&mut self) -> (&mut Dns, Judge<'_>, &Poller, &mut Outbox) {
        let now = self.micros();
        let judge = Judge { policy: &mut self.policy, reporter: &mut self.reporter, now };
        (&mut self.dns, judge, &self.poller, &mut self.outbox)
    }

    fn push_dhcp(
        &mut self,
        datagram: &udp_wire::Datagram<'_>,
        station: &Mac,
    ) -> Result<(), DropReason> {
        let outcome =
            self.dhcp.push(datagram.payload, station, self.dns.search(), &mut self.outbox)?;
        self.learn(station);
        let lease = match outcome {
            Outcome::Offered => Lease::Offered,
            Outcome::Acknowledged => Lease::Bound,
            Outcome::Refused => Lease::Refused,
            Outcome::Released => Lease::Released,
            Outcome::Unchanged => return Ok(()),
        };
        if self.activity.lease != lease {
            tracing::debug!(?lease, address = %self.config.guest, "DHCP");
            self.activity.lease = lease;
            self.activity.lease_since = Some(self.now);
        }
        Ok(())
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

/// Checks that what a frame leaves to us is something its packet has.
fn check_offload(packet: &ip::Packet<'_>, offload: Offload) -> Result<(), DropReason> {
    let field = match packet.protocol {
        ip::TCP => Some(16),
        ip::UDP => Some(udp_wire::CHECKSUM_OFFSET as u16),
        _ => None,
    };
    let start = ethernet::HEADER_LEN + packet.header_len;
    let fits_csum = !offload.needs_csum
        || (usize::from(offload.csum_start) == start && Some(offload.csum_offset) == field);
    let fits_gso = match offload.gso {
        Gso::None => true,
        Gso::TcpV4 | Gso::TcpV6 => {
            let is_v6 = offload.gso == Gso::TcpV6;
            packet.src.is_ipv6() == is_v6
                && packet.protocol == ip::TCP
                && offload.needs_csum
                && offload.gso_size > 0
        }
    };
    match fits_csum && fits_gso {
        true => Ok(()),
        false => Err(DropReason::BadOffload),
    }
}

/// Reads the datagram in a packet; `trusted` skips its checksum.
fn read_udp<'a>(
    packet: &ip::Packet<'a>,
    trusted: bool,
) -> Result<udp_wire::Datagram<'a>, DropReason> {
    let datagram = udp_wire::Datagram::read(packet.payload()).ok_or(DropReason::BadUdp)?;
    // RFC 8200, section 8.1: over IPv6 there is always one.
    let has_none = datagram.has_no_checksum && packet.src.is_ipv4();
    if trusted || has_none || packet.has_valid_transport_checksum() {
        Ok(datagram)
    } else {
        Err(DropReason::BadUdp)
    }
}

#[cfg(test)]
mod tests;
