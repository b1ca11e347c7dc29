//! The virtual machine monitor.

pub mod boot;
pub mod bus;
pub mod error;
pub mod interrupts;

pub use error::Error;
