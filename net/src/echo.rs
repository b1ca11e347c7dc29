//! ICMP echo to the network's own addresses (RFC 792).
//!
//! Echo beyond the network, and ICMP errors from the guest, are dropped: the host side opens no raw
//! sockets.

use crate::link::{DropReason, Offload};
use crate::outbox::Outbox;
use crate::policy::Policy;
use crate::wire::checksum::Sum;
use crate::wire::{ethernet, icmp, ipv4};

/// Deals with an ICMP packet from the guest; `trusted` skips its checksum.
pub(crate) fn push(
    packet: &ipv4::Packet<'_>,
    trusted: bool,
    policy: &Policy,
    outbox: &mut Outbox,
) -> Result<(), DropReason> {
    let message = packet.payload();
    if message.len() < icmp::HEADER_LEN || (!trusted && !Sum::default().add(message).is_valid()) {
        return Err(DropReason::BadIcmp);
    }
    if message[0] != icmp::ECHO_REQUEST || message[1] != 0 {
        return Err(DropReason::BadIcmp);
    }
    if !policy.is_ours(packet.dst) {
        return Err(DropReason::UnroutableDestination);
    }
    let len = ethernet::HEADER_LEN + ipv4::HEADER_LEN + message.len();
    outbox
        .queue(len, |frame, addresses, _| {
            ethernet::write(
                frame,
                &addresses.guest_mac,
                &addresses.gateway_mac,
                ethernet::TYPE_IPV4,
            );
            let reply = &mut frame[ethernet::HEADER_LEN..];
            reply[ipv4::HEADER_LEN..].copy_from_slice(message);
            reply[ipv4::HEADER_LEN] = icmp::ECHO_REPLY;
            icmp::fill_checksum(&mut reply[ipv4::HEADER_LEN..]);
            ipv4::write(reply, packet.dst, packet.src, ipv4::ICMP);
            Some((len, Offload::default()))
        })
        .ok_or(DropReason::NoRoom)
}
