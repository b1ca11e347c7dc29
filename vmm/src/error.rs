//! What can go wrong before the guest runs. What goes wrong in the guest is an [`crate::Exit`], not an error.

use std::io;

use crate::running::Exit;
use crate::snapshot::SnapshotError;

/// A machine that cannot be built or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be used. The hint says what to do about it.
    #[error("{problem}. {hint}")]
    NoKvm {
        /// What was found.
        problem: String,
        /// What a person can do about it.
        hint: String,
    },
    /// A KVM operation failed.
    #[error("KVM operation failed: {operation}")]
    Kvm {
        /// The ioctl or step.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host gives no random bytes.
    #[error("Cannot get random bytes from the host")]
    Random(#[source] io::Error),
    /// The machine's configuration cannot be built.
    #[error("Machine with {what} = {value} is not possible: {reason}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Why not.
        reason: String,
    },
    /// Guest memory cannot be reserved.
    #[error("Cannot reserve {bytes} bytes of guest memory")]
    Memory {
        /// Size asked for.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel, its initrd or its command line cannot be loaded.
    #[error("Cannot load the kernel: {0}")]
    Load(String),
    /// A device cannot be added.
    #[error("Cannot add a device: {0}")]
    Device(String),
    /// A thread cannot be started.
    #[error("Cannot start thread {name:?}")]
    Thread {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A snapshot does not fit.
    #[error(transparent)]
    Snapshot(Box<SnapshotError>),
    /// The machine has ended, and cannot be asked any more.
    #[error("Machine does not run any more: {0}")]
    Ended(Box<Exit>),
    /// Somebody else has paused the machine.
    #[error("Machine is paused already")]
    AlreadyPaused,
    /// The machine was started before a kernel was loaded.
    #[error("Machine has neither a kernel nor a snapshot to start from")]
    NothingLoaded,
}

impl From<SnapshotError> for Error {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(Box::new(error))
    }
}

/// Returns a converter from KVM's errno for `operation`.
pub(crate) fn kvm_error(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm { operation, source: io::Error::from_raw_os_error(error.errno()) }
}
