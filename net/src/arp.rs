//! ARP for IPv4 over Ethernet (RFC 826), and its use for address conflict detection (RFC 5227).
//!
//! The network's own addresses are answered; the guest's address never is, so that its probes find
//! it free. What a guest says about its own address is learnt, and nothing else.

use std::net::Ipv4Addr;

use crate::link::{DropReason, Offload};
use crate::outbox::Outbox;
use crate::wire::ethernet::{self, Mac};
use crate::wire::{be16, put16};

const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What a guest's ARP packet means for the network.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arp {
    /// The guest asks who has an address.
    Asks {
        /// The address asked for.
        target: Ipv4Addr,
        /// Whether the guest has said its own address with it.
        knows_itself: bool,
    },
    /// The guest announces or confirms its own address.
    Announces,
}

/// Reads an ARP packet from the guest whose address is, or will be, `guest`.
pub(crate) fn read(bytes: &[u8], station: &Mac, guest: Ipv4Addr) -> Result<Arp, DropReason> {
    if bytes.len() < LEN {
        return Err(DropReason::Truncated);
    }
    let ethernet_ipv4 = [0, 1, 8, 0, 6, 4];
    if bytes[..6] != ethernet_ipv4 || bytes[8..14] != station[..] {
        return Err(DropReason::BadArp);
    }
    let sender = Ipv4Addr::new(bytes[14], bytes[15], bytes[16], bytes[17]);
    let target = Ipv4Addr::new(bytes[24], bytes[25], bytes[26], bytes[27]);
    if sender != guest && !sender.is_unspecified() {
        return Err(DropReason::SpoofedSource);
    }
    let knows_itself = sender == guest;
    match be16(bytes, 6) {
        REQUEST if target == sender => Ok(Arp::Announces),
        REQUEST => Ok(Arp::Asks { target, knows_itself }),
        REPLY if knows_itself => Ok(Arp::Announces),
        _ => Err(DropReason::BadArp),
    }
}

/// Answers that `address` is at the gateway's station.
pub(crate) fn reply(outbox: &mut Outbox, address: Ipv4Addr, knows_itself: bool) -> Option<()> {
    let to = outbox.addresses.guest_mac;
    let guest = match knows_itself {
        true => outbox.addresses.guest,
        false => Ipv4Addr::UNSPECIFIED,
    };
    queue(outbox, REPLY, to, address, (to, guest))
}

/// Asks for the guest's own address, in the name of `gateway`.
pub(crate) fn ask(outbox: &mut Outbox, gateway: Ipv4Addr) -> Option<()> {
    let guest = outbox.addresses.guest;
    queue(outbox, REQUEST, ethernet::BROADCAST, gateway, ([0; 6], guest))
}

fn queue(
    outbox: &mut Outbox,
    operation: u16,
    to: Mac,
    sender: Ipv4Addr,
    target: (Mac, Ipv4Addr),
) -> Option<()> {
    const FRAME: usize = ethernet::HEADER_LEN + LEN;
    outbox.queue(FRAME, |frame, addresses, _| {
        ethernet::write(frame, &to, &addresses.gateway_mac, ethernet::TYPE_ARP);
        let arp = &mut frame[ethernet::HEADER_LEN..];
        arp[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        put16(arp, 6, operation);
        arp[8..14].copy_from_slice(&addresses.gateway_mac);
        arp[14..18].copy_from_slice(&sender.octets());
        arp[18..24].copy_from_slice(&target.0);
        arp[24..28].copy_from_slice(&target.1.octets());
        Some((FRAME, Offload::default()))
    })
}
