//! The parts of a machine that a running one still needs as a whole: for its snapshots, and to be taken down.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::console::Console;
use crate::machine::MachineConfig;
use crate::pci::PciRoot;

/// What the vCPU threads do not touch, beside the buses.
pub(crate) struct Board {
    pub(crate) config: MachineConfig,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) pci: PciRoot,
    pub(crate) console: Arc<Console>,
    /// The model-specific registers that a snapshot holds.
    pub(crate) msrs: Vec<u32>,
    /// Bytes of a vCPU's extended state.
    pub(crate) xsave_len: usize,
}
