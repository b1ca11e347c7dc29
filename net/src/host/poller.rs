//! One epoll descriptor for everything the network waits for on the host (epoll(7)).
//!
//! Sockets are watched edge-triggered: each flow remembers whether its socket may be readable or
//! writable until the socket says otherwise, so that a flow the guest does not drain costs nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::slab::{GENERATION_BITS, Slot};

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The handle's event descriptor.
    Wake,
    /// The host socket of a TCP flow.
    Tcp(Slot),
    /// The host socket of a UDP flow.
    Udp(Slot),
    /// The socket of a DNS query under way.
    Dns(Slot),
    /// The socket of an echo flow.
    Ping(Slot),
    /// The sockets of a guest's connection to the name server.
    DnsStream(Slot),
    /// A port of the host that leads to the guest, by its index.
    Inbound(u32),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, slot) = match self {
            Token::Wake => return 0,
            Token::Tcp(slot) => (1, slot),
            Token::Udp(slot) => (2, slot),
            Token::Dns(slot) => (3, slot),
            Token::Ping(slot) => (4, slot),
            Token::DnsStream(slot) => (6, slot),
            Token::Inbound(index) => (5, Slot { index, generation: 0 }),
        };
        kind << (32 + GENERATION_BITS) | u64::from(slot.generation) << 32 | u64::from(slot.index)
    }

    fn unpack(token: u64) -> Option<Token> {
        let slot = Slot {
            index: token as u32,
            generation: (token >> 32) as u32 & ((1 << GENERATION_BITS) - 1),
        };
        match token >> (32 + GENERATION_BITS) {
            0 => Some(Token::Wake),
            1 => Some(Token::Tcp(slot)),
            2 => Some(Token::Udp(slot)),
            3 => Some(Token::Dns(slot)),
            4 => Some(Token::Ping(slot)),
            5 => Some(Token::Inbound(slot.index)),
            6 => Some(Token::DnsStream(slot)),
            _ => None,
        }
    }
}

/// What has happened on a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has ended its direction, or the socket has failed: reading comes to an end.
    pub(crate) ended: bool,
}

/// The epoll descriptor.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// How many events one [`Poller::wait`] takes at most.
pub(crate) const BATCH: usize = 64;

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        // SAFETY: epoll_create1 takes no pointer; its result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and has no other owner.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Poller { epoll })
    }

    /// Watches a descriptor for all events, edge-triggered. Closing it ends the watch.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: events as u32, u64: token.pack() };
        // SAFETY: both descriptors are open while borrowed, and the event outlives the call.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Takes what has happened without waiting; returns the filled front of `events`.
    pub(crate) fn wait<'a>(
        &self,
        events: &'a mut [libc::epoll_event; BATCH],
    ) -> impl Iterator<Item = Event> + use<'a> {
        // SAFETY: the pointer and length describe `events`, which outlives the call.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), BATCH as libc::c_int, 0)
        };
        let count = usize::try_from(count).unwrap_or(0);
        events[..count].iter().filter_map(|event| {
            let flags = event.events as libc::c_int;
            let failed = flags & (libc::EPOLLHUP | libc::EPOLLERR) != 0;
            let ended = failed || flags & libc::EPOLLRDHUP != 0;
            Some(Event {
                token: Token::unpack(event.u64)?,
                readable: ended || flags & libc::EPOLLIN != 0,
                writable: failed || flags & libc::EPOLLOUT != 0,
                ended,
            })
        })
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let slot = Slot { index: u32::MAX, generation: (1 << GENERATION_BITS) - 1 };
        let flows = [Token::Tcp(slot), Token::Udp(slot), Token::Dns(slot), Token::Ping(slot)];
        let others = [Token::Wake, Token::Inbound(7), Token::DnsStream(slot)];
        for token in flows.into_iter().chain(others) {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
