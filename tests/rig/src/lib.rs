//! The nested-KVM rig: a Debian machine (L1) under QEMU's software CPU, in which `/dev/kvm` is real, so that what is
//! tested in it boots unmodified Linux guests (L2) also where the host has no hardware virtualization.
//!
//! A test reads: launch, wait, run, assert.
//! ```no_run
//! # fn main() -> Result<(), kvmbake_rig::RigError> {
//! let rig = kvmbake_rig::Rig::shared();
//! rig.put("target/release/kvmbake", "/tmp/kvmbake")?;
//! let output = rig.command("/tmp/kvmbake doctor").run()?.expect(0);
//! assert!(output.stdout.contains("/dev/kvm"));
//! # Ok(()) }
//! ```
//!
//! In L1: `/images` holds the base images, read-only; `/work` is a scratch disk, new for each instance; `/tmp` is memory.
//! Commands run as `builder`, whose one privilege is `/dev/kvm`, without user namespaces and without QEMU; QEMU and the
//! other judges are root's, in `/opt/peer/bin`. Everything is built once, by the scripts in `recipes/`, into the cache.
//!
//! Depends on none of the crates it tests.
#![forbid(unsafe_code)]

mod artifacts;
mod cache;
mod error;
mod machine;
mod rig;
mod session;

pub use artifacts::base_on_host;
pub use cache::Cache;
pub use error::RigError;
pub use rig::{Rig, build_all};
pub use session::{Output, Process, RemoteCommand, User, quote};

/// Returns an error's message with the chain of its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
