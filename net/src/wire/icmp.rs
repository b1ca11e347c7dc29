//! ICMP messages of both families (RFC 792 and RFC 4443): echo, and errors.

use std::net::IpAddr;

use super::checksum::Sum;
use super::{ip, ipv4, ipv6, put16};

pub(crate) const HEADER_LEN: usize = 8;

/// Bytes of the packet in question that an error quotes behind its IP header.
const QUOTED_LEN: usize = 8;

/// Returns the protocol number of a family's ICMP.
pub(crate) fn protocol(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => ipv4::ICMP,
        IpAddr::V6(_) => ipv6::ICMP,
    }
}

/// Returns the types of an echo request and of its reply.
pub(crate) fn echo_types(address: IpAddr) -> (u8, u8) {
    match address {
        IpAddr::V4(_) => (8, 0),
        IpAddr::V6(_) => (128, 129),
    }
}

/// Why a packet does not get where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
    /// It is longer than this many bytes, with its IP header.
    TooBig(u16),
    HopsExceeded,
}

impl Unreachable {
    /// Returns what a host's socket error says about the destination, if it does.
    pub(crate) fn from_host_error(error: &std::io::Error) -> Option<Unreachable> {
        match error.raw_os_error()? {
            libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT => {
                Some(Unreachable::Network)
            }
            libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET => Some(Unreachable::Host),
            libc::EACCES | libc::EPERM => Some(Unreachable::Prohibited),
            libc::ECONNREFUSED => Some(Unreachable::Port),
            _ => None,
        }
    }

    /// Returns the type and the code that say so: RFC 792 with RFC 1812, section 5.2.7.1, and
    /// RFC 4443, section 3.
    fn type_and_code(self, family: IpAddr) -> (u8, u8) {
        match (family, self) {
            (IpAddr::V4(_), Unreachable::Network) => (3, 0),
            (IpAddr::V4(_), Unreachable::Host) => (3, 1),
            (IpAddr::V4(_), Unreachable::Port) => (3, 3),
            (IpAddr::V4(_), Unreachable::TooBig(_)) => (3, 4),
            (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13),
            (IpAddr::V4(_), Unreachable::HopsExceeded) => (11, 0),
            (IpAddr::V6(_), Unreachable::Network) => (1, 0),
            (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1),
            (IpAddr::V6(_), Unreachable::Host) => (1, 3),
            (IpAddr::V6(_), Unreachable::Port) => (1, 4),
            (IpAddr::V6(_), Unreachable::TooBig(_)) => (2, 0),
            (IpAddr::V6(_), Unreachable::HopsExceeded) => (3, 0),
        }
    }
}

/// The packet an error is about, as its sender has made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// The first bytes behind the quoted packet's header.
    pub(crate) transport: [u8; QUOTED_LEN],
}

impl Quote {
    /// Quotes a packet; what it has less than an error quotes is zero.
    pub(crate) fn of(packet: &ip::Packet<'_>) -> Quote {
        let mut transport = [0; QUOTED_LEN];
        let payload = packet.payload();
        let len = payload.len().min(QUOTED_LEN);
        transport[..len].copy_from_slice(&payload[..len]);
        Quote { src: packet.src, dst: packet.dst, protocol: packet.protocol, transport }
    }
}

/// Returns the length in bytes of [`write_error`]'s message.
pub(crate) fn error_len(family: IpAddr) -> usize {
    HEADER_LEN + ip::header_len(family) + QUOTED_LEN
}

/// Fills `message` with an error about the packet quoted, whose sender it goes to.
///
/// # Panics
/// Panics unless `message` is [`error_len`] bytes long.
pub(crate) fn write_error(message: &mut [u8], from: IpAddr, why: Unreachable, quote: &Quote) {
    assert_eq!(message.len(), error_len(quote.src));
    message[..HEADER_LEN].fill(0);
    (message[0], message[1]) = why.type_and_code(quote.src);
    if let Unreachable::TooBig(mtu) = why {
        // RFC 1191, section 4, and RFC 4443, section 3.2: the lower half of a longer field.
        put16(message, 6, mtu);
    }
    let transport = HEADER_LEN + ip::header_len(quote.src);
    message[transport..].copy_from_slice(&quote.transport);
    ip::write(&mut message[HEADER_LEN..], quote.src, quote.dst, quote.protocol);
    fill_checksum(message, from, quote.src);
}

/// Returns the sum that a message of the family's begins with.
fn sum(message: &[u8], src: IpAddr, dst: IpAddr) -> Sum {
    match src {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => Sum::pseudo_header(src, dst, ipv6::ICMP, message.len()),
    }
    .add(message)
}

/// Whether the checksum of a received message is right.
pub(crate) fn has_valid_checksum(packet: &ip::Packet<'_>) -> bool {
    sum(packet.payload(), packet.src, packet.dst).is_valid()
}

/// Fills in the checksum of a whole message.
///
/// # Panics
/// Panics when `message` is shorter than [`HEADER_LEN`].
pub(crate) fn fill_checksum(message: &mut [u8], src: IpAddr, dst: IpAddr) {
    put16(message, 2, 0);
    let sum = sum(message, src, dst).complement();
    message[2..4].copy_from_slice(&sum);
}
