//! Why a snapshot cannot be restored, each reason one sentence for a person.

/// A snapshot that this host, this kvmbake or this machine cannot go on from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes are something else.
    #[error("Not a machine snapshot of kvmbake")]
    NotASnapshot,
    /// The format is another one.
    #[error("Snapshot has format {saved}, this kvmbake reads format {present}")]
    Format {
        /// Of the snapshot.
        saved: u32,
        /// Of this program.
        present: u32,
    },
    /// Another kvmbake has written it.
    #[error("Snapshot was taken by kvmbake {saved}, this is kvmbake {present}")]
    Release {
        /// Of the snapshot.
        saved: String,
        /// Of this program.
        present: &'static str,
    },
    /// The bytes are not those that were written.
    #[error("Snapshot is damaged: {0}")]
    Damaged(String),
    /// The processor is another model.
    #[error("Snapshot was taken on {saved}, this host's processor is {present}")]
    Processor {
        /// Of the snapshot.
        saved: String,
        /// Of this host.
        present: String,
    },
    /// The processor or its KVM lacks what the guest has been promised.
    #[error("Snapshot needs of the processor what this host does not offer: {}", .0.join(", "))]
    Features(Vec<String>),
    /// KVM does not take a model-specific register's value.
    #[error("Host refuses the value {value:#x} of the model-specific register {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// Its value in the snapshot.
        value: u64,
    },
    /// The time stamp counter runs at another frequency.
    #[error(
        "Snapshot's time stamp counter runs at {saved} kHz, this host's at {present} kHz, and its processor cannot scale it"
    )]
    TscFrequency {
        /// Of the snapshot.
        saved: u32,
        /// Of this host.
        present: u32,
    },
    /// The time stamp counter would go back.
    #[error(
        "Snapshot's time stamp counter stands at {saved}, and this host cannot set that of a guest, which stands at {present}"
    )]
    TimeStampCounter {
        /// In the snapshot.
        saved: u64,
        /// What the host shows a guest.
        present: u64,
    },
    /// The machine is another one.
    #[error("Snapshot is of a machine with {what} = {saved}, this one has {present}")]
    Machine {
        /// What differs.
        what: &'static str,
        /// In the snapshot.
        saved: u64,
        /// In this machine.
        present: u64,
    },
    /// A device of the snapshot is not there.
    #[error("Snapshot has a device that this machine has not: {device}")]
    MissingDevice {
        /// The device.
        device: String,
    },
    /// A device does not take its state.
    #[error("Snapshot does not fit device {device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// Why not.
        reason: RestoreError,
    },
}

/// A device's state that the device cannot go on from.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(String);

impl RestoreError {
    /// Returns the error with its reason, which completes "the snapshot has …".
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
