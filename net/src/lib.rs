//! The userspace network: what a guest's network device is plugged into.
//!
//! [`Link`] is the seam that a device codes against, and [`Nat`] the network behind it: a small
//! network whose gateway, name server and services live in this process, and from which the guest
//! reaches the world through ordinary sockets of the host. It needs no privileges, opens no port on
//! the host, and holds no thread of its own: the device drives it.
//!
//! `inbound` is what of the host leads to the guest. One file for each protocol: `arp`, `ndp`, `dhcp`,
//! `dns`, `ping`, `udp`, `tcp`.
//! `policy` decides what the guest may reach, by `rules` and the `names` it has looked up, `watch`
//! tells of its flows, and `saved` is what a machine snapshot keeps. `capture`, `shaper` and `faults`
//! wrap any link: they write its frames to a file, limit its rate, and make it a bad wire.

mod arp;
mod capture;
mod command;
mod config;
mod dhcp;
mod dial;
mod dns;
mod faults;
mod handle;
mod host;
mod idle;
mod inbound;
pub mod link;
mod names;
mod nat;
mod ndp;
mod outbox;
mod ping;
mod policy;
mod rules;
mod saved;
mod shaper;
mod slab;
mod tcp;
mod timers;
mod udp;
mod watch;
mod wire;

pub use capture::{Capture, Captured};
pub use command::CommandService;
pub use config::{Forward, Ipv6Config, Ipv6Route, Limits, NatConfig, Resolvers, Service, Target};
pub use dial::{DialError, Silence};
pub use faults::{Faults, Faulty};
pub use handle::{Activity, DialOutcome, Lease, NatHandle};
pub use inbound::Inbound;
pub use link::{DropReason, Gso, GuestOffloads, Link, MAX_FRAME, Offload, Pulled};
pub use nat::Nat;
pub use rules::{Rule, RuleError, Rules};
pub use shaper::Shaped;
pub use watch::{Flow, Outcome, Protocol, Watch, Watcher};
