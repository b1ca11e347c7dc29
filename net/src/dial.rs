//! Dialling the guest: what a waiting caller and the network's thread share.
//!
//! A [`Ticket`] is the network's half of one dial. It is answered once, with the stream or the
//! reason there is none; a ticket that is dropped unanswered tells the caller that the network has
//! gone. A caller that has stopped waiting marks its ticket, and the network lets go of it.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Why there is no connection to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The guest has refused: it is up, and nothing listens.
    #[error("Guest refused the connection to port {port}: nothing listens there")]
    Refused {
        /// The port dialled.
        port: u16,
    },
    /// There was no answer in time.
    #[error("No answer from the guest on port {port} within {timeout:?}: {silence}")]
    NoAnswer {
        /// The port dialled.
        port: u16,
        /// How long the caller waited.
        timeout: Duration,
        /// How far the guest's network had come.
        silence: Silence,
    },
    /// The network has gone, and the machine with it.
    #[error("Network of the guest is gone")]
    Closed,
    /// Too many dials are under way.
    #[error("Too many connections to the guest are being made at once")]
    Busy,
    /// The host gave no descriptors for the stream.
    #[error("Cannot make a stream to the guest: {message}")]
    Host {
        /// What the system said.
        message: String,
    },
}

/// How far a silent guest's network had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No driver has taken the network device into use.
    NoDriver,
    /// The driver is there, but the guest has sent nothing.
    NoFrames,
    /// The guest has sent frames, but has not asked for an address.
    NoDhcp,
    /// The guest has asked for an address and never taken the one it was offered.
    NoLease,
    /// The guest has its lease, but does not answer for its address.
    NoArp,
    /// The guest answers for its address, but not the connection: a firewall, or a hung system.
    NoTcp,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Silence::NoDriver => "no driver in the guest has taken the network device into use",
            Silence::NoFrames => "the guest has sent no frame at all",
            Silence::NoDhcp => "the guest has not asked for an address by DHCP",
            Silence::NoLease => "the guest has not taken the address that DHCP offered it",
            Silence::NoArp => "the guest has its lease but does not answer ARP for its address",
            Silence::NoTcp => {
                "the guest is on the network but answers no TCP, as behind a firewall that drops"
            }
        })
    }
}

/// The network's half of a dial.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) port: u16,
    answer: SyncSender<Result<UnixStream, DialError>>,
    given_up: Arc<AtomicBool>,
}

/// The caller's half.
#[derive(Debug)]
pub(crate) struct Waiter {
    answer: Receiver<Result<UnixStream, DialError>>,
    given_up: Arc<AtomicBool>,
}

pub(crate) fn pair(port: u16) -> (Ticket, Waiter) {
    let (sender, receiver) = sync_channel(1);
    let given_up = Arc::new(AtomicBool::new(false));
    let ticket = Ticket { port, answer: sender, given_up: Arc::clone(&given_up) };
    let waiter = Waiter { answer: receiver, given_up };
    (ticket, waiter)
}

impl Ticket {
    pub(crate) fn answer(self, result: Result<UnixStream, DialError>) {
        // A caller that has gone drops the stream, which closes the connection.
        let _ = self.answer.try_send(result);
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl Waiter {
    /// Waits for the answer; `None` when the time is up.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Result<UnixStream, DialError>> {
        match self.answer.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Disconnected) => Some(Err(DialError::Closed)),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}
