//! The network as other threads see it: dialling the guest, and what has been going on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::dial::{self, DialError, Silence, Ticket};
use crate::link::DropReason;

/// Dials that may wait at once.
const MAX_DIALS: usize = 64;

/// A handle to a running network. Clones are the same network.
#[derive(Clone, Debug)]
pub struct NatHandle {
    shared: Arc<Shared>,
}

/// What the network's thread and its handles share. Each lock is held for a few instructions and
/// never with another.
#[derive(Debug)]
pub(crate) struct Shared {
    dials: Mutex<VecDeque<Ticket>>,
    activity: Mutex<Activity>,
    closed: AtomicBool,
    wake: OwnedFd,
}

/// How the guest's DHCP lease stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lease {
    /// The guest has not asked.
    #[default]
    None,
    /// The guest has been offered its address.
    Offered,
    /// The guest has taken its address.
    Bound,
    /// The guest insists on another address and has been refused it.
    Refused,
    /// The guest has given its address back.
    Released,
}

/// How a dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    /// The guest took the connection.
    Connected,
    /// The guest refused it.
    Refused,
    /// The caller stopped waiting.
    GivenUp,
}

/// What has been going on in a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Whether a driver has taken the device into use since its last reset.
    pub driver_up: bool,
    /// Frames and bytes the guest has sent, those dropped included.
    pub frames_from_guest: u64,
    /// See `frames_from_guest`.
    pub bytes_from_guest: u64,
    /// Frames and bytes the guest has been given.
    pub frames_to_guest: u64,
    /// See `frames_to_guest`.
    pub bytes_to_guest: u64,
    /// The MAC address the guest uses, once it has sent a frame.
    pub guest_mac: Option<[u8; 6]>,
    /// The state of the DHCP lease.
    pub lease: Lease,
    /// When the lease came to that state.
    pub lease_since: Option<Instant>,
    /// When the guest was first seen to use its address: by ARP or as a source.
    pub address_seen: Option<Instant>,
    /// When the guest last sent an ARP packet about its own address.
    pub arp_seen: Option<Instant>,
    /// The port, the outcome and the time of the last dial that has ended.
    pub last_dial: Option<(u16, DialOutcome, Instant)>,
    /// TCP connections open or being opened.
    pub tcp_flows: usize,
    /// TCP connections since the start.
    pub tcp_flows_total: u64,
    /// UDP flows open.
    pub udp_flows: usize,
    /// DNS queries since the start.
    pub dns_queries: u64,
    dropped: Drops,
}

/// Counts of dropped frames, by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Drops([u64; DropReason::ALL.len()]);

impl fmt::Debug for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = DropReason::ALL.iter().zip(self.0);
        f.debug_map().entries(counts.filter(|(_, count)| *count > 0)).finish()
    }
}

impl Activity {
    /// Returns how many frames have been dropped for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.0[reason as usize]
    }

    /// Iterates over the reasons that frames have been dropped for, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = DropReason::ALL.iter().map(|r| (*r, self.dropped(*r)));
        counts.filter(|(_, count)| *count > 0)
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.dropped.0[reason as usize] += 1;
    }

    /// Returns how far the guest's network has come when it does not answer.
    pub fn silence(&self) -> Silence {
        if self.address_seen.is_some() {
            Silence::NoTcp
        } else if self.lease == Lease::Bound {
            Silence::NoArp
        } else if self.lease != Lease::None {
            Silence::NoLease
        } else if self.frames_from_guest > 0 {
            Silence::NoDhcp
        } else if self.driver_up {
            Silence::NoFrames
        } else {
            Silence::NoDriver
        }
    }
}

impl NatHandle {
    /// Connects to a TCP port of the guest, from the gateway's address, and returns the stream once
    /// the guest has taken the connection.
    ///
    /// Blocks for at most `timeout`. A guest that is not on the network yet is waited for; one that
    /// refuses ends the wait at once.
    ///
    /// # Errors
    /// [`DialError`], with the cause as far as the network can tell.
    pub fn dial(&self, port: u16, timeout: Duration) -> Result<UnixStream, DialError> {
        let (ticket, waiter) = dial::pair(port);
        self.shared.request(ticket)?;
        match waiter.wait(timeout) {
            Some(result) => result,
            None => {
                drop(waiter);
                self.shared.wake();
                Err(DialError::NoAnswer { port, timeout, silence: self.activity().silence() })
            }
        }
    }

    /// Returns what has been going on, as of the network's last poll.
    pub fn activity(&self) -> Activity {
        *lock(&self.shared.activity)
    }
}

impl Shared {
    pub(crate) fn new() -> io::Result<(Arc<Shared>, NatHandle)> {
        // SAFETY: eventfd takes no pointer; its result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and has no other owner.
        let wake = unsafe { OwnedFd::from_raw_fd(fd) };
        let shared = Arc::new(Shared {
            dials: Mutex::default(),
            activity: Mutex::default(),
            closed: AtomicBool::new(false),
            wake,
        });
        let handle = NatHandle { shared: Arc::clone(&shared) };
        Ok((shared, handle))
    }

    fn request(&self, ticket: Ticket) -> Result<(), DialError> {
        let mut dials = lock(&self.dials);
        // Read under the lock: `close` empties the queue after it has set the flag.
        if self.closed.load(Ordering::Acquire) {
            return Err(DialError::Closed);
        }
        // The network takes dials only once the guest's driver has started it.
        dials.retain(|waiting| !waiting.is_given_up());
        if dials.len() >= MAX_DIALS {
            return Err(DialError::Busy);
        }
        dials.push_back(ticket);
        drop(dials);
        self.wake();
        Ok(())
    }

    /// Makes the network's poller see an event.
    fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and length describe `one`, which outlives the call. A full counter is
        // an event already.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the events that [`wake`](Shared::wake) has made.
    pub(crate) fn woken(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the pointer and length describe `count`, which outlives the call.
        unsafe { libc::read(self.wake.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes the dials that have been asked for.
    pub(crate) fn take_dials(&self) -> VecDeque<Ticket> {
        std::mem::take(&mut *lock(&self.dials))
    }

    pub(crate) fn publish(&self, activity: &Activity) {
        *lock(&self.activity) = *activity;
    }

    /// Ends every wait: the network is going.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.dials).clear();
    }
}

/// Locks without minding a panic elsewhere: what these locks hold is whole between any two writes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_that_nobody_waits_for_take_no_room_from_others() {
        // No driver has started the network: nothing takes the dials.
        let (shared, handle) = Shared::new().unwrap();
        for _ in 0..=MAX_DIALS {
            let error = handle.dial(22, Duration::ZERO).unwrap_err();
            assert!(matches!(error, DialError::NoAnswer { .. }), "{error}");
        }
        let waiting: Vec<_> = (0..MAX_DIALS)
            .map(|_| {
                let (ticket, waiter) = dial::pair(22);
                shared.request(ticket).unwrap();
                waiter
            })
            .collect();
        assert_eq!(handle.dial(22, Duration::ZERO).unwrap_err(), DialError::Busy);
        drop(waiting);
    }
}
