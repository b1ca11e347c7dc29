//! Non-blocking sockets, over the system calls that the standard library does not offer.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A non-blocking socket: TCP, UDP, ICMP echo or Unix stream.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    is_unix: bool,
}

/// How a TCP connection stands when it has just been asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Connect {
    Done,
    InProgress,
}

impl Socket {
    /// Starts to connect a TCP socket.
    pub(crate) fn connect_tcp(address: SocketAddr) -> io::Result<(Socket, Connect)> {
        let socket = Socket::open(address, libc::SOCK_STREAM, 0)?;
        socket.set_option(libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
        socket.keep_urgent_bytes()?;
        match socket.connect(address) {
            Ok(()) => Ok((socket, Connect::Done)),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                Ok((socket, Connect::InProgress))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a UDP socket that talks to `address` only.
    pub(crate) fn connect_udp(address: SocketAddr) -> io::Result<Socket> {
        Socket::connect_datagrams(address, 0)
    }

    /// Makes a socket for ICMP echo to `address`, as far as `ping_group_range` lets this process
    /// (icmp(7)).
    ///
    /// # Errors
    /// `PermissionDenied` when it does not.
    pub(crate) fn connect_ping(address: IpAddr) -> io::Result<Socket> {
        let protocol = match address {
            IpAddr::V4(_) => libc::IPPROTO_ICMP,
            IpAddr::V6(_) => libc::IPPROTO_ICMPV6,
        };
        Socket::connect_datagrams(SocketAddr::new(address, 0), protocol)
    }

    /// Makes a datagram socket whose ICMP errors are kept for [`errors`](super::errors).
    fn connect_datagrams(address: SocketAddr, protocol: libc::c_int) -> io::Result<Socket> {
        let socket = Socket::open(address, libc::SOCK_DGRAM, protocol)?;
        socket.set_ip_option(address.ip(), (libc::IP_RECVERR, libc::IPV6_RECVERR), 1)?;
        socket.connect(address)?;
        Ok(socket)
    }

    /// Lets the socket's packets to `to` go so many hops.
    pub(crate) fn set_hops(&self, to: IpAddr, hops: u8) -> io::Result<()> {
        self.set_ip_option(to, (libc::IP_TTL, libc::IPV6_UNICAST_HOPS), i32::from(hops))
    }

    /// Says whether the socket's packets to `to` must stay whole on their way: one that is too long
    /// is an error then (ip(7), `IP_MTU_DISCOVER`).
    pub(crate) fn forbid_fragments(&self, to: IpAddr, forbid: bool) -> io::Result<()> {
        let how = if forbid { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_WANT };
        self.set_ip_option(to, (libc::IP_MTU_DISCOVER, libc::IPV6_MTU_DISCOVER), how)
    }

    /// Sets the IPv4 or the IPv6 variant of an option, by the family of `to`.
    fn set_ip_option(
        &self,
        to: IpAddr,
        (ipv4, ipv6): (libc::c_int, libc::c_int),
        value: libc::c_int,
    ) -> io::Result<()> {
        match to {
            IpAddr::V4(_) => self.set_option(libc::IPPROTO_IP, ipv4, &value),
            IpAddr::V6(_) => self.set_option(libc::IPPROTO_IPV6, ipv6, &value),
        }
    }

    /// Connects to whoever listens on a Unix socket; one whose backlog is full counts as refusing.
    pub(crate) fn connect_unix(path: &Path) -> io::Result<Socket> {
        // SAFETY: all-zero bytes are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        // A zero byte ends the path.
        if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let socket = Socket::of_domain(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        check(socket.connect_raw(&address) as isize)?;
        Ok(socket)
    }

    fn open(address: SocketAddr, kind: libc::c_int, protocol: libc::c_int) -> io::Result<Socket> {
        let domain = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        Socket::of_domain(domain, kind, protocol)
    }

    fn of_domain(
        domain: libc::c_int,
        kind: libc::c_int,
        protocol: libc::c_int,
    ) -> io::Result<Socket> {
        let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes no pointer; its result is checked.
        let fd = unsafe { libc::socket(domain, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Socket { fd, is_unix: domain == libc::AF_UNIX })
    }

    fn connect(&self, address: SocketAddr) -> io::Result<()> {
        let result = match address {
            SocketAddr::V4(address) => self.connect_raw(&sockaddr_v4(address)),
            SocketAddr::V6(address) => self.connect_raw(&sockaddr_v6(address)),
        };
        check(result as isize).map(drop)
    }

    fn connect_raw<T>(&self, address: &T) -> libc::c_int {
        // SAFETY: the pointer and length describe `address`, a sockaddr of the socket's family.
        unsafe {
            libc::connect(
                self.fd.as_raw_fd(),
                std::ptr::from_ref(address).cast(),
                mem::size_of::<T>() as libc::socklen_t,
            )
        }
    }

    /// Whether a TCP connection that was in progress has come about. Linux may report an event for
    /// an ICMP message before it notes the error, so that no error alone is no connection.
    ///
    /// # Errors
    /// Why there is none, once.
    pub(crate) fn progress(&self) -> io::Result<Connect> {
        self.take_error()?;
        match self.check_peer() {
            Ok(()) => Ok(Connect::Done),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(Connect::InProgress),
            Err(error) => Err(error),
        }
    }

    /// Fails with `NotConnected` where the socket has no peer.
    fn check_peer(&self) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let mut len = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointers describe `address` and `len`, which outlive the call.
        let result = unsafe {
            libc::getpeername(
                self.fd.as_raw_fd(),
                std::ptr::from_mut(&mut address).cast(),
                &mut len,
            )
        };
        check(result as isize).map(drop)
    }

    /// Takes the error that a connection attempt, or an ICMP message, has left on the socket.
    fn take_error(&self) -> io::Result<()> {
        let mut error: libc::c_int = 0;
        let mut len = mem::size_of_val(&error) as libc::socklen_t;
        // SAFETY: the pointers describe `error` and `len`, which outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                std::ptr::from_mut(&mut error).cast(),
                &mut len,
            )
        };
        check(result as isize)?;
        match error {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Receives into `buf`. On a datagram socket the length is the datagram's own, which may be
    /// more than `buf` holds.
    pub(crate) fn receive(&self, buf: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        // SAFETY: the pointer and length describe `buf`, which outlives the call.
        let received = check(unsafe {
            libc::recv(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags)
        });
        match received {
            // A Unix stream whose other end has closed without reading everything; all that it has
            // sent has come (unix(7)).
            Err(error) if self.is_unix && error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            received => received,
        }
    }

    /// Sends from `data`; never raises SIGPIPE.
    pub(crate) fn send(&self, data: &[u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length describe `data`, which outlives the call.
        check(unsafe {
            libc::send(self.fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL)
        })
    }

    /// Ends the sending direction.
    pub(crate) fn shutdown_write(&self) {
        // SAFETY: shutdown takes no pointer. A socket that is gone already needs none.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) };
    }

    /// Makes closing reset the connection, as the other end of the flow has.
    pub(crate) fn reset_on_close(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // On a Unix stream this says nothing and does no harm.
        let _ = self.set_option(libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }

    /// Leaves urgent bytes where they are in the stream: Linux would take them out of it (tcp(7)).
    fn keep_urgent_bytes(&self) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_OOBINLINE, &1i32)
    }

    fn set_option<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and length describe `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                mem::size_of::<T>() as libc::socklen_t,
            )
        };
        check(result as isize).map(drop)
    }
}

impl TryFrom<UnixStream> for Socket {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket { fd: stream.into(), is_unix: true })
    }
}

impl TryFrom<TcpStream> for Socket {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let socket = Socket { fd: stream.into(), is_unix: false };
        socket.keep_urgent_bytes()?;
        Ok(socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn sockaddr_v4(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn sockaddr_v6(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: address.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_without_an_error_is_made_only_when_it_has_a_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (socket, _) = Socket::connect_tcp(listener.local_addr().unwrap()).unwrap();
        assert_eq!(socket.progress().unwrap(), Connect::Done);
        // One that has not been asked to connect has no error and no peer, as one under way.
        let idle = Socket::of_domain(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(idle.progress().unwrap(), Connect::InProgress);
        let address = listener.local_addr().unwrap();
        drop(listener);
        // On the loopback interface the answer is there with the call.
        let refused = Socket::connect_tcp(address).map(|(socket, _)| socket.progress());
        let error = refused.and_then(|result| result).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
