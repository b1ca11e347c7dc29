//! The userspace network: what a guest's network device is plugged into.
//!
//! [`Link`] is the seam a device codes against.

pub mod link;

pub use link::{DropReason, Gso, GuestOffloads, Link, MAX_FRAME, Offload, Pulled};
