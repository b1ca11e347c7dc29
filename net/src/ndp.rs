//! Neighbour discovery (RFC 4861) and what stateless autoconfiguration (RFC 4862) needs of a router.
//!
//! Router advertisements give the prefix, the MTU, the name server (RFC 8106) and the domains that
//! names are searched in; the gateway is a default router only while it leads to the world, so that a
//! guest never tries IPv6 in vain. The network's own addresses are answered, also when the guest asks
//! whether one is free; the guest's never are. DHCPv6 is left out: nothing is managed here. Multicast
//! listener reports are taken and not needed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::{Ipv6Config, Ipv6Route};
use crate::host::socket::Socket;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::Policy;
use crate::timers::Micros;
use crate::wire::ethernet::Mac;
use crate::wire::{icmp, ip, ipv6, put16, put32};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Multicast listener discovery: RFC 2710, and RFC 3810.
const LISTENER: [u8; 4] = [130, 131, 132, 143];

mod option {
    pub(super) const SOURCE: u8 = 1;
    pub(super) const TARGET: u8 = 2;
    pub(super) const PREFIX: u8 = 3;
    pub(super) const MTU: u8 = 5;
    pub(super) const RDNSS: u8 = 25;
    pub(super) const DNSSL: u8 = 31;
}

/// Lifetimes in seconds: of the default route and the name server, which each advertisement renews,
/// and of the prefix (RFC 4861, section 6.2.1, asks for long ones).
const ROUTER_LIFETIME: u16 = 1800;
const PREFIX_VALID: u32 = 86_400;
const PREFIX_PREFERRED: u32 = 14_400;
/// Time between advertisements that nobody has asked for.
const INTERVAL: Micros = 600_000_000;
/// Room for the domains of an advertisement.
const MAX_DOMAINS: usize = 240;
const MAX_ADVERTISEMENT: usize = 16 + 8 + 8 + 32 + 24 + 8 + MAX_DOMAINS;

/// The router.
#[derive(Debug)]
pub(crate) struct Router {
    config: Ipv6Config,
    mtu: u16,
    /// When to advertise next; `None` until the guest has asked.
    next: Option<Micros>,
}

impl Router {
    pub(crate) fn new(config: Ipv6Config, mtu: u16) -> Router {
        Router { config, mtu, next: None }
    }

    /// Whether `address` may be a source of the guest's.
    pub(crate) fn may_be_guest(&self, address: Ipv6Addr, policy: &Policy) -> bool {
        (self.config.contains(address) || address.is_unicast_link_local())
            && !policy.is_ours(address.into())
    }

    /// Takes an ICMPv6 message that is not about echo, from the station `station`. Names are looked
    /// up in `domains`.
    pub(crate) fn push(
        &mut self,
        packet: &ip::Packet<'_>,
        station: &Mac,
        policy: &Policy,
        domains: &[String],
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        let message = packet.payload();
        let kind = message.first().copied().ok_or(DropReason::BadIcmp)?;
        if LISTENER.contains(&kind) {
            return Ok(());
        }
        let least = match kind {
            ROUTER_SOLICITATION => 8,
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => 24,
            // A router in the guest is nobody's here.
            ROUTER_ADVERTISEMENT => return Err(DropReason::SpoofedSource),
            _ => return Err(DropReason::BadIcmp),
        };
        // RFC 4861, sections 6.1 and 7.1.
        if packet.hops() != 255 || message.len() < least || message[1] != 0 {
            return Err(DropReason::BadNdp);
        }
        let says_station = station_option(&message[least..])?;
        if says_station.is_some_and(|said| said != *station) {
            return Err(DropReason::BadNdp);
        }
        if kind == ROUTER_SOLICITATION {
            self.next = Some(now + INTERVAL);
            return self.advertise(domains, outbox).ok_or(DropReason::NoRoom);
        }
        let target = ipv6::address(message, 8);
        if target.is_multicast() {
            return Err(DropReason::BadNdp);
        }
        match (kind, policy.is_ours(target.into())) {
            (NEIGHBOUR_SOLICITATION, true) => {
                answer(target, packet.src, outbox).ok_or(DropReason::NoRoom)
            }
            (NEIGHBOUR_ADVERTISEMENT, true) => Err(DropReason::SpoofedSource),
            // The guest's own addresses, and nobody's.
            _ => Ok(()),
        }
    }

    /// Advertises the router when its time has come.
    pub(crate) fn expire(&mut self, domains: &[String], outbox: &mut Outbox, now: Micros) {
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + INTERVAL);
            // Without room the next one does.
            let _ = self.advertise(domains, outbox);
        }
    }

    /// Returns when the next advertisement is due.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.next
    }

    /// Whether the guest has asked for a router, and advertisements go on.
    pub(crate) fn is_asked(&self) -> bool {
        self.next.is_some()
    }

    /// Advertises from the next poll on, for a guest that has asked another process.
    pub(crate) fn resume(&mut self, now: Micros) {
        self.next = Some(now);
    }

    /// Forgets that the guest has asked.
    pub(crate) fn stop(&mut self) {
        self.next = None;
    }

    /// Whether the gateway leads to the world.
    fn leads_out(&self) -> bool {
        match self.config.route {
            Ipv6Route::Always => true,
            Ipv6Route::Never => false,
            Ipv6Route::LikeHost => host_has_route(),
        }
    }

    /// Queues a router advertisement (RFC 4861, section 4.2).
    fn advertise(&self, domains: &[String], outbox: &mut Outbox) -> Option<()> {
        let names = encode(domains);
        let lifetime = if self.leads_out() { ROUTER_LIFETIME } else { 0 };
        let station = outbox.addresses.gateway_mac;
        let from = IpAddr::V6(Ipv6Config::LINK_LOCAL);
        let to = IpAddr::V6(ALL_NODES);
        outbox.queue_icmp(from, to, MAX_ADVERTISEMENT, |message| {
            message.fill(0);
            message[0] = ROUTER_ADVERTISEMENT;
            message[4] = 64;
            put16(message, 6, lifetime);
            let mut len = 16;
            let mut put = |code: u8, content: &[u8]| {
                message[len] = code;
                message[len + 1] = ((content.len() + 2) / 8) as u8;
                message[len + 2..len + 2 + content.len()].copy_from_slice(content);
                len += 2 + content.len();
            };
            put(option::SOURCE, &station);
            let mut mtu = [0; 6];
            put32(&mut mtu, 2, u32::from(self.mtu));
            put(option::MTU, &mtu);
            let mut prefix = [0; 30];
            // On the link, and to make addresses in.
            prefix[..2].copy_from_slice(&[64, 0xc0]);
            put32(&mut prefix, 2, PREFIX_VALID);
            put32(&mut prefix, 6, PREFIX_PREFERRED);
            prefix[14..22].copy_from_slice(&self.config.prefix.octets()[..8]);
            put(option::PREFIX, &prefix);
            let mut server = [0; 22];
            put32(&mut server, 2, u32::from(ROUTER_LIFETIME));
            server[6..].copy_from_slice(&self.config.dns().octets());
            put(option::RDNSS, &server);
            if !names.is_empty() {
                let mut domains = [0; 6 + MAX_DOMAINS];
                put32(&mut domains, 2, u32::from(ROUTER_LIFETIME));
                domains[6..6 + names.len()].copy_from_slice(&names);
                put(option::DNSSL, &domains[..6 + names.len()]);
            }
            icmp::fill_checksum(&mut message[..len], from, to);
            Some(len)
        })
    }
}

/// Returns the address that a message gives for its sender's station, if it does; every option is
/// checked to have a length.
fn station_option(mut options: &[u8]) -> Result<Option<Mac>, DropReason> {
    let mut station = None;
    while !options.is_empty() {
        let len = options.get(1).map_or(0, |units| usize::from(*units) * 8);
        let (option, rest) = match len {
            0 => return Err(DropReason::BadNdp),
            len => options.split_at_checked(len).ok_or(DropReason::BadNdp)?,
        };
        if matches!(option[0], option::SOURCE | option::TARGET) {
            station = option[2..].first_chunk().copied();
        }
        options = rest;
    }
    Ok(station)
}

/// Answers that `target` is at the gateway's station (RFC 4861, section 7.2.4).
fn answer(target: Ipv6Addr, asked_by: IpAddr, outbox: &mut Outbox) -> Option<()> {
    const ROUTER_OVERRIDE: u8 = 0xa0;
    const SOLICITED: u8 = 0x40;
    let station = outbox.addresses.gateway_mac;
    let from = IpAddr::V6(target);
    let (to, flags) = match asked_by.is_unspecified() {
        true => (IpAddr::V6(ALL_NODES), ROUTER_OVERRIDE),
        false => (asked_by, ROUTER_OVERRIDE | SOLICITED),
    };
    outbox.queue_icmp(from, to, 32, |message| {
        message.fill(0);
        message[0] = NEIGHBOUR_ADVERTISEMENT;
        message[4] = flags;
        message[8..24].copy_from_slice(&target.octets());
        message[24..26].copy_from_slice(&[option::TARGET, 1]);
        message[26..32].copy_from_slice(&station);
        icmp::fill_checksum(message, from, to);
        Some(message.len())
    })
}

/// Whether the host's routing table leads to the world's IPv6 addresses. Nothing is sent.
fn host_has_route() -> bool {
    // RFC 4291, section 2.4: within the space of global unicast addresses, and nobody's.
    let anyone = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
    Socket::connect_udp(SocketAddr::from((anyone, 9))).is_ok()
}

/// Returns as many of the domains as fit, in the form of RFC 8106, section 5.2.
fn encode(domains: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for domain in domains {
        let name = crate::dns::message::encode_name(domain);
        if bytes.len() + name.len() <= MAX_DOMAINS {
            bytes.extend(name);
        }
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
