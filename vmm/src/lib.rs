//! The virtual machine monitor: an x86-64 machine on KVM.
//!
//! [`Machine::new`] builds it, [`Machine::load`] puts a kernel into it, [`Machine::start`] runs it on threads of its own, and
//! [`Running::wait`] tells how it ended. [`probe`] explains why a host cannot run one.

pub mod acpi;
mod board;
pub mod boot;
pub mod bus;
mod console;
pub mod devices;
pub mod error;
pub mod host;
pub mod interrupts;
pub mod layout;
pub mod load;
pub mod machine;
pub mod memory;
pub mod pci;
mod random;
pub mod running;
pub mod snapshot;
pub mod vcpu;
pub mod virtio;

pub use boot::Kernel;
pub use error::Error;
pub use host::{Check, Outcome, probe};
pub use load::linux64::Image;
pub use machine::{Machine, MachineConfig};
pub use running::{Exit, Handle, Running};
pub use snapshot::{MachineState, Paused, SnapshotError};
pub use vcpu::failure::{Cause, Failure, Registers};
