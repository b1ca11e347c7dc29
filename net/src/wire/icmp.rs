//! ICMP messages (RFC 792): echo, and destination unreachable.

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::{ipv4, put16};

pub(crate) const HEADER_LEN: usize = 8;
pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const ECHO_REQUEST: u8 = 8;
const UNREACHABLE: u8 = 3;

/// Length in bytes of an unreachable message: header, the quoted IPv4 header and its first 8 bytes.
pub(crate) const UNREACHABLE_LEN: usize = HEADER_LEN + ipv4::HEADER_LEN + 8;

/// Why a destination cannot be reached (RFC 792 and RFC 1812, section 5.2.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Unreachable {
    Network = 0,
    Host = 1,
    Port = 3,
    Prohibited = 13,
}

impl Unreachable {
    /// Returns what a host's socket error says about the destination, if it does.
    pub(crate) fn from_host_error(error: &std::io::Error) -> Option<Unreachable> {
        match error.raw_os_error()? {
            libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL => Some(Unreachable::Network),
            libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET => Some(Unreachable::Host),
            libc::EACCES | libc::EPERM => Some(Unreachable::Prohibited),
            libc::ECONNREFUSED => Some(Unreachable::Port),
            _ => None,
        }
    }
}

/// The flow an unreachable message is about, as its sender sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote {
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) protocol: u8,
    /// The first 8 bytes behind the quoted packet's header.
    pub(crate) transport: [u8; 8],
}

/// Fills `message` with an unreachable message.
///
/// # Panics
/// Panics unless `message` is [`UNREACHABLE_LEN`] bytes long.
pub(crate) fn write_unreachable(message: &mut [u8], why: Unreachable, quote: &Quote) {
    assert_eq!(message.len(), UNREACHABLE_LEN);
    message[..HEADER_LEN].fill(0);
    message[0] = UNREACHABLE;
    message[1] = why as u8;
    ipv4::write(&mut message[HEADER_LEN..], quote.src, quote.dst, quote.protocol);
    message[HEADER_LEN + ipv4::HEADER_LEN..].copy_from_slice(&quote.transport);
    fill_checksum(message);
}

/// Fills in the checksum of a whole ICMP message.
///
/// # Panics
/// Panics when `message` is shorter than [`HEADER_LEN`].
pub(crate) fn fill_checksum(message: &mut [u8]) {
    put16(message, 2, 0);
    let sum = Sum::default().add(message).complement();
    message[2..4].copy_from_slice(&sum);
}
