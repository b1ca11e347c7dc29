//! The DHCP server (RFC 2131, options of RFC 2132 and RFC 3396's limits kept by never being long).
//!
//! There is one guest and one address, so there is no pool: every well-formed DISCOVER is offered
//! the guest's address, a REQUEST for it is acknowledged and for any other one refused. Options the
//! client does not ask for are sent all the same; they are few and every client skips what it does
//! not know. Left out: relays, BOOTP without DHCP, and lease expiry on our side, since nobody else
//! could be given the address.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::config::NatConfig;
use crate::dns::message::encode_name;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::wire::ethernet::{self, Mac};
use crate::wire::{be16, be32};

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// Length in bytes of the fixed part with the magic cookie.
const FIXED_LEN: usize = 240;
/// The least every client takes (RFC 2131, section 2): what a reply is kept within.
const MAX_LEN: usize = 548;
const COOKIE: u32 = 0x6382_5363;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const FLAG_BROADCAST: u16 = 0x8000;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOSTNAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const RENEWAL: u8 = 58;
    pub(super) const REBINDING: u8 = 59;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const END: u8 = 255;
}

mod message {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// What a message from the guest has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The address has been offered.
    Offered,
    /// The guest has the address.
    Acknowledged,
    /// The guest asked for another address.
    Refused,
    /// The guest gave the address back, or found it in use.
    Released,
    /// Options were given, or another server was chosen; nothing about the lease has changed.
    Unchanged,
}

/// A client's message.
#[derive(Debug)]
struct Request<'a> {
    kind: u8,
    flags: u16,
    client_address: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    /// The fixed part, for what a reply repeats.
    fixed: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(bytes: &'a [u8], station: &Mac) -> Option<Request<'a>> {
        if bytes.len() < FIXED_LEN
            || bytes[0] != BOOT_REQUEST
            || bytes[1..3] != [1, 6]
            || bytes[28..34] != station[..]
            || be32(bytes, 236) != COOKIE
        {
            return None;
        }
        let mut request = Request {
            kind: 0,
            flags: be16(bytes, 10),
            client_address: Ipv4Addr::from(be32(bytes, 12)),
            requested: None,
            server: None,
            client_id: None,
            fixed: &bytes[..FIXED_LEN],
        };
        let mut rest = &bytes[FIXED_LEN..];
        loop {
            match *rest {
                [] | [option::END, ..] => break,
                [option::PAD, ref tail @ ..] => rest = tail,
                [code, len, ref tail @ ..] => {
                    let (value, tail) = tail.split_at_checked(usize::from(len))?;
                    rest = tail;
                    match (code, value) {
                        (option::MESSAGE_TYPE, [kind]) => request.kind = *kind,
                        (option::REQUESTED, _) => request.requested = Some(address(value)?),
                        (option::SERVER, _) => request.server = Some(address(value)?),
                        (option::CLIENT_ID, _) => request.client_id = Some(value),
                        _ => {}
                    }
                }
                [_] => return None,
            }
        }
        Some(request)
    }
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}

/// The server.
pub(crate) struct Dhcp {
    config: Arc<NatConfig>,
}

impl Dhcp {
    pub(crate) fn new(config: Arc<NatConfig>) -> Dhcp {
        Dhcp { config }
    }

    /// Answers one message that the station `station` has sent to the server's port. Names are looked
    /// up in the domains `search`.
    pub(crate) fn push(
        &self,
        bytes: &[u8],
        station: &Mac,
        search: &[String],
        outbox: &mut Outbox,
    ) -> Result<Outcome, DropReason> {
        let request = Request::read(bytes, station).ok_or(DropReason::BadDhcp)?;
        let ours = request.server.is_none_or(|s| s == self.config.gateway);
        let (reply, outcome) = match request.kind {
            message::DISCOVER => (message::OFFER, Outcome::Offered),
            message::REQUEST if !ours => return Ok(Outcome::Unchanged),
            message::REQUEST => {
                let wanted = request.requested.unwrap_or(request.client_address);
                match wanted == self.config.guest {
                    true => (message::ACK, Outcome::Acknowledged),
                    false => (message::NAK, Outcome::Refused),
                }
            }
            message::INFORM => (message::ACK, Outcome::Unchanged),
            message::DECLINE | message::RELEASE if ours => return Ok(Outcome::Released),
            message::DECLINE | message::RELEASE => return Ok(Outcome::Unchanged),
            _ => return Err(DropReason::BadDhcp),
        };
        let (to, mac) = self.reply_to(&request, reply, station);
        outbox
            .queue_udp_to(
                (self.config.gateway.into(), SERVER_PORT),
                (to.into(), CLIENT_PORT),
                mac,
                MAX_LEN,
                |buf| Some(self.write(buf, &request, reply, search)),
            )
            .ok_or(DropReason::NoRoom)?;
        Ok(outcome)
    }

    /// Returns where a reply goes (RFC 2131, section 4.1).
    fn reply_to(&self, request: &Request<'_>, reply: u8, station: &Mac) -> (Ipv4Addr, Mac) {
        if reply == message::NAK {
            (Ipv4Addr::BROADCAST, ethernet::BROADCAST)
        } else if request.client_address == self.config.guest {
            (request.client_address, *station)
        } else if request.flags & FLAG_BROADCAST != 0 || request.kind == message::INFORM {
            (Ipv4Addr::BROADCAST, ethernet::BROADCAST)
        } else {
            (self.config.guest, *station)
        }
    }

    /// Writes a reply and returns its length.
    fn write(&self, buf: &mut [u8], request: &Request<'_>, reply: u8, search: &[String]) -> usize {
        let config = &*self.config;
        buf.fill(0);
        buf[0] = BOOT_REPLY;
        buf[1..3].copy_from_slice(&[1, 6]);
        buf[4..8].copy_from_slice(&request.fixed[4..8]);
        buf[10..12].copy_from_slice(&request.fixed[10..12]);
        buf[28..44].copy_from_slice(&request.fixed[28..44]);
        buf[236..240].copy_from_slice(&COOKIE.to_be_bytes());
        let mut options = Options { buf, len: FIXED_LEN };
        options.put(option::MESSAGE_TYPE, &[reply]);
        options.put(option::SERVER, &config.gateway.octets());
        if reply != message::NAK {
            if request.kind == message::INFORM {
                options.buf[12..16].copy_from_slice(&request.client_address.octets());
            } else {
                options.buf[16..20].copy_from_slice(&config.guest.octets());
                let seconds = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
                let (renewal, rebinding) = (seconds / 2, seconds - seconds / 8);
                options.put(option::LEASE, &seconds.to_be_bytes());
                options.put(option::RENEWAL, &renewal.to_be_bytes());
                options.put(option::REBINDING, &rebinding.to_be_bytes());
            }
            options.put(option::MASK, &config.mask().octets());
            options.put(option::BROADCAST, &config.broadcast().octets());
            options.put(option::ROUTER, &config.gateway.octets());
            options.put(option::DNS, &config.dns.octets());
            options.put(option::MTU, &config.mtu.to_be_bytes());
            let domain = config.domain.as_ref().or(search.first());
            for (code, name) in
                [(option::DOMAIN, domain), (option::HOSTNAME, config.hostname.as_ref())]
            {
                if let Some(name) = name {
                    options.put(code, name.as_bytes());
                }
            }
            options.put_domains(search);
        }
        // RFC 6842: the client's identifier comes back to it.
        if let Some(id) = request.client_id {
            options.put(option::CLIENT_ID, id);
        }
        options.finish()
    }
}

/// The options of a reply as they are written. What does not fit is left out.
struct Options<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Options<'_> {
    fn put(&mut self, code: u8, value: &[u8]) {
        let end = self.len + 2 + value.len();
        if end < self.buf.len() && value.len() <= 255 {
            self.buf[self.len] = code;
            self.buf[self.len + 1] = value.len() as u8;
            self.buf[self.len + 2..end].copy_from_slice(value);
            self.len = end;
        }
    }

    /// Puts the domains that fit into one option, without compression (RFC 3397).
    fn put_domains(&mut self, domains: &[String]) {
        let mut names = Vec::new();
        for domain in domains {
            let name = encode_name(domain);
            if names.len() + name.len() <= 255 {
                names.extend(name);
            }
        }
        if !names.is_empty() {
            self.put(option::SEARCH, &names);
        }
    }

    /// Ends the options; a reply is padded to the length BOOTP had, which old clients insist on.
    fn finish(self) -> usize {
        self.buf[self.len] = option::END;
        (self.len + 1).max(300)
    }
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
