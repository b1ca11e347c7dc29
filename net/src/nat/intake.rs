//! The guest's frames: checked layer by layer, and handed to their protocols. A frame that is not taken
//! has a [`DropReason`].

use std::net::IpAddr;

use super::Nat;
use crate::arp::{self, Arp};
use crate::dhcp::{self, Outcome};
use crate::dns::Client;
use crate::handle::Lease;
use crate::link::{DropReason, Gso, MAX_FRAME, Offload};
use crate::ping::ECHO_PORT;
use crate::policy::{Denial, Refusal, Route};
use crate::udp;
use crate::watch::Protocol;
use crate::wire::ethernet::{self, Mac};
use crate::wire::{icmp, ip, ipv4, ipv6, udp as udp_wire};

impl Nat {
    /// Takes a frame of the guest's.
    pub(super) fn push_frame(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
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
    pub(super) fn learn(&mut self, station: &Mac) {
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
