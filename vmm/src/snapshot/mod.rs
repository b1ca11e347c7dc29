//! The state of a whole machine apart from its RAM: taken while it is paused, kept in a file, and put into a fresh machine.
//!
//! [`Handle::pause`](crate::Handle::pause) gives a [`Paused`], whose [`state`](Paused::state) is a [`MachineState`];
//! [`Machine::restore`](crate::Machine::restore) takes it back in this process or another one. A snapshot goes on only under the
//! same release of kvmbake and on the same model of processor, in a machine that was built alike:
//! [`MachineState::check`] says by name what stands against it. The RAM travels apart, by [`Paused::memory`] and
//! [`Machine::with_memory`](crate::Machine::with_memory).
//!
//! Time stands still for the guest between the two: the time stamp counter, KVM's clock and ACPI's timer go on from what they
//! showed. Only the battery-backed clock shows the host's present time.
//!
//! Left out: guests that are saved while they run (live migration), nested virtualization and performance counters, which the
//! machine does not offer.

mod error;
mod features;
mod file;
mod host;
mod msrs;
mod paused;
mod platform;
#[cfg(test)]
mod tests;
mod tsc;
mod vcpu;

pub use error::{RestoreError, SnapshotError};
pub use host::Host;
pub use paused::Paused;

pub(crate) use msrs::list as msr_list;
pub(crate) use paused::Gate;
pub(crate) use platform::PlatformState;
pub(crate) use vcpu::{VcpuState, restore_all, tell_stopped};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::MachineConfig;
use crate::pci::FunctionState;

/// All of a paused machine but its RAM.
#[derive(Clone, Serialize, Deserialize)]
pub struct MachineState {
    pub(crate) cpus: u8,
    pub(crate) memory: u64,
    pub(crate) platform: PlatformState,
    pub(crate) vcpus: Vec<VcpuState>,
    /// Devices at ports, by the base address of their range.
    pub(crate) ports: Vec<(u64, Vec<u8>)>,
    /// Devices in memory, likewise.
    pub(crate) mmio: Vec<(u64, Vec<u8>)>,
    /// PCI functions in the order of their slots.
    pub(crate) functions: Vec<FunctionState>,
}

impl MachineState {
    /// Returns the size of the machine that was saved.
    pub fn config(&self) -> MachineConfig {
        MachineConfig { cpus: self.cpus, memory: self.memory }
    }

    /// Tells why a machine of `config` on `host` cannot go on from this state, as far as that can be known before its devices
    /// are there; [`Machine::restore`](crate::Machine::restore) looks at those.
    ///
    /// # Errors
    /// [`SnapshotError`] with the first reason.
    pub fn check(&self, config: &MachineConfig, host: &Host) -> Result<(), SnapshotError> {
        let differs = |what, saved, present| SnapshotError::Machine { what, saved, present };
        if self.cpus != config.cpus || self.vcpus.len() != usize::from(self.cpus) {
            return Err(differs("vCPUs", self.vcpus.len() as u64, config.cpus.into()));
        }
        if self.memory != config.memory {
            return Err(differs("bytes of memory", self.memory, config.memory));
        }
        self.vcpus.iter().try_for_each(|vcpu| host.check(vcpu))
    }
}

/// Returns `value` in the compact encoding of all saved state.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    // Fails only for types of unknown length, which no state has: an empty answer is then refused on the way back.
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Reads a value back that [`encode`] has written, all of it.
///
/// # Errors
/// [`RestoreError`] when the bytes are something else. What is allocated is bounded by their length.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RestoreError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(RestoreError::new(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(RestoreError::new(format!("a malformed state ({error})"))),
    }
}
