//! What the host has been told by ICMP about a socket's packets (ip(7), `IP_RECVERR`).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use crate::wire::icmp::Unreachable;

use super::socket::Socket;

/// Errors taken off one socket at a time; more are forgotten, as ICMP may be.
const MAX_TAKEN: usize = 16;

/// One error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) why: Unreachable,
    /// Who said so; `None` when it was the host itself.
    pub(crate) by: Option<IpAddr>,
}

/// Takes the errors that wait on a socket, and hands over those that mean something to a guest.
pub(crate) fn drain(socket: &Socket, mut report: impl FnMut(Reported)) {
    for _ in 0..MAX_TAKEN {
        match take(socket) {
            Ok(Some(reported)) => report(reported),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// Takes the first error; `None` when it is of no concern to a guest.
fn take(socket: &Socket) -> io::Result<Option<Reported>> {
    // Aligned for the headers that the kernel writes into it.
    let mut control = [0u64; 32];
    // SAFETY: all-zero bytes are a valid msghdr: no name, no data, no control messages.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the message points to `control`, which outlives the call, and to nothing else.
    if unsafe { libc::recvmsg(fd, &mut message, libc::MSG_ERRQUEUE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has set the length of the control messages it has written.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: the macros give pointers to whole headers inside `control`.
        let (level, kind, len) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        let is_error = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        // SAFETY: likewise.
        let data = unsafe { libc::CMSG_DATA(header) };
        let start = data as usize - header as usize;
        if is_error && len >= start + ERROR_LEN {
            // SAFETY: the message's length says that so many bytes are there; `control` is not
            // written while they are read.
            let bytes = unsafe { std::slice::from_raw_parts(data, len - start) };
            return Ok(read(bytes));
        }
        // SAFETY: `header` is one of this message's.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(None)
}

/// Length in bytes of `struct sock_extended_err`.
const ERROR_LEN: usize = 16;

/// Reads a `struct sock_extended_err` and the address of the offender behind it.
fn read(bytes: &[u8]) -> Option<Reported> {
    const FROM_HOST: u8 = 1;
    const FROM_ICMP: u8 = 2;
    const FROM_ICMP6: u8 = 3;
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
    let errno = i32::from_ne_bytes(word(0)?);
    let (origin, kind, code) = (bytes[4], bytes[5], bytes[6]);
    let mtu = u32::from_ne_bytes(word(8)?);
    let why = match (origin, kind, code) {
        (FROM_ICMP, 11, 0) | (FROM_ICMP6, 3, 0) => Unreachable::HopsExceeded,
        // Linux makes no difference between these and a host that is unreachable.
        (FROM_ICMP, 3, 9 | 10 | 13) => Unreachable::Prohibited,
        _ if errno == libc::EMSGSIZE => Unreachable::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX)),
        _ => Unreachable::from_host_error(&io::Error::from_raw_os_error(errno))?,
    };
    let offender = &bytes[ERROR_LEN..];
    let by = match origin {
        FROM_HOST => None,
        // A sockaddr_in, and a sockaddr_in6.
        FROM_ICMP => {
            offender.get(4..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
        }
        _ => offender.get(8..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
    };
    Some(Reported { why, by })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as the kernel writes it (linux/errqueue.h).
    fn error(errno: i32, origin: u8, kind: u8, code: u8, info: u32, offender: &[u8]) -> Vec<u8> {
        let mut bytes = errno.to_ne_bytes().to_vec();
        bytes.extend([origin, kind, code, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(offender);
        bytes
    }

    #[test]
    fn errors_are_read_with_who_reported_them() {
        let router = [2, 0, 0, 0, 192, 0, 2, 254, 0, 0, 0, 0, 0, 0, 0, 0];
        let by = Some(IpAddr::from([192, 0, 2, 254]));
        let unreachable = error(libc::EHOSTUNREACH, 2, 3, 1, 0, &router);
        assert_eq!(read(&unreachable), Some(Reported { why: Unreachable::Host, by }));
        let filtered = error(libc::EHOSTUNREACH, 2, 3, 13, 0, &router);
        assert_eq!(read(&filtered), Some(Reported { why: Unreachable::Prohibited, by }));
        let exceeded = error(libc::EHOSTUNREACH, 2, 11, 0, 0, &router);
        assert_eq!(read(&exceeded), Some(Reported { why: Unreachable::HopsExceeded, by }));
        let too_big = error(libc::EMSGSIZE, 2, 3, 4, 1400, &router);
        assert_eq!(read(&too_big), Some(Reported { why: Unreachable::TooBig(1400), by }));
        let local = error(libc::EMSGSIZE, 1, 0, 0, 1400, &[0; 16]);
        assert_eq!(read(&local), Some(Reported { why: Unreachable::TooBig(1400), by: None }));
        let mut router = [0; 28];
        router[8..24].copy_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        let by = Some("fe80::9".parse().unwrap());
        let no_route = error(libc::ENETUNREACH, 3, 1, 0, 0, &router);
        assert_eq!(read(&no_route), Some(Reported { why: Unreachable::Network, by }));
        assert_eq!(read(&error(libc::EPROTO, 2, 12, 0, 0, &router)), None);
    }
}
