//! What can go wrong before the guest runs. What goes wrong in the guest is an [`crate::Exit`], not an error.

use std::io;

/// A machine that cannot be built or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A KVM operation failed.
    #[error("KVM operation failed: {operation}")]
    Kvm {
        /// The ioctl or step.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Returns a converter from KVM's errno for `operation`.
pub(crate) fn kvm_error(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm { operation, source: io::Error::from_raw_os_error(error.errno()) }
}
