//! The PCI root of the machine: one bus, one function a slot, message-signalled interrupts only.
//!
//! [`PciRoot`] answers the configuration space in both of its forms and the memory windows, and
//! finds the function that an access means. A [`PciFunction`] keeps its registers in a
//! [`ConfigSpace`] and its interrupts in an [`Msix`]; what it needs of the hypervisor comes in
//! through [`wiring`], so that tests run without KVM.
//!
//! Left out: bridges, INTx, expansion ROMs, I/O-port BARs, hotplug and power management.
//! See PCI Local Bus Specification 3.0, chapter 6, and PCI Express Base Specification, 7.2.2 (ECAM).

pub mod config;
mod host_bridge;
pub mod msix;
mod root;
pub mod wiring;

pub use config::{Bar, ConfigSpace, Identity};
pub use msix::Msix;
pub use root::{PciRoot, SLOTS, Windows};
pub use wiring::{DoorbellBus, MessageVector, VectorSource};

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::snapshot::RestoreError;

/// What is saved of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// What it is, for messages.
    pub name: String,
    /// The configuration space.
    pub config: Vec<u8>,
    /// All beyond the configuration space, in the function's own encoding.
    pub private: Vec<u8>,
}

/// One function of the bus.
///
/// The guest chooses every offset and value: no call may panic, and none may block for longer than
/// it takes to finish the I/O already under way.
pub trait PciFunction: Send {
    /// Returns the function's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Returns the configuration space for the root to place the BARs; [`config_written`] follows.
    ///
    /// [`config_written`]: PciFunction::config_written
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Fills `data` from the configuration space; overridden where registers are not plain memory.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Takes a write to the configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
        self.config_written();
    }

    /// Acts on what has changed in the configuration space: BARs, the command register.
    fn config_written(&mut self) {}

    /// Fills `data` from `offset` of BAR `bar`. It arrives filled with 0xff.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Takes a write to `offset` of BAR `bar`.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// Stops the function's threads for good; joined when it returns.
    fn stop(&mut self);

    /// Stops the function's threads until [`PciFunction::resume`], and waits until its interrupts have reached the guest's
    /// processors. No vCPU runs meanwhile.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    fn pause(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Goes on after [`PciFunction::pause`] or [`PciFunction::restore`].
    ///
    /// # Errors
    /// [`Error::Device`] when a thread cannot be started.
    fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns the state of a paused function.
    fn save(&self) -> FunctionState {
        FunctionState { config: self.config().bytes().to_vec(), ..FunctionState::default() }
    }

    /// Takes back what [`PciFunction::save`] has returned; the function is paused then.
    ///
    /// # Errors
    /// [`RestoreError`] when it is another function's state.
    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError> {
        if !self.config_mut().restore(&state.config) {
            return Err(RestoreError::new("another PCI function"));
        }
        self.config_written();
        Ok(())
    }

    /// Finds the BAR that decodes `address` now, and the offset in it.
    fn decode(&self, address: u64) -> Option<(usize, u64)> {
        (0..config::BARS).find_map(|bar| {
            let range: Range<u64> = self.config().mapped(bar)?;
            range.contains(&address).then(|| (bar, address - range.start))
        })
    }
}
