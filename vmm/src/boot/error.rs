//! Why an image cannot be booted directly: what was looked at, where, and what was wrong there.

use std::path::PathBuf;

use super::payload::PayloadError;

/// A direct boot that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk or its partition table cannot be read.
    #[error("Cannot look for a kernel in the image")]
    Disk(#[source] kvmbake_disk::Error),
    /// No boot configuration anywhere.
    #[error("No grub.cfg or boot loader entries in the image: {looked}")]
    NothingFound {
        /// What was looked at.
        looked: String,
    },
    /// There is a boot configuration, and none leads to a kernel.
    #[error("No kernel found by the image's boot configuration: {problems}")]
    NoKernel {
        /// What was wrong with each.
        problems: String,
    },
    /// The boot entry that the user asked for does not exist.
    #[error("No boot entry '{wanted}' in {config}; it has {available}")]
    NoSuchEntry {
        /// What was asked for.
        wanted: String,
        /// The file that was looked at.
        config: String,
        /// The entries that exist.
        available: String,
    },
    /// A file of the image that the boot entry or the user names cannot be read.
    #[error("{named_by} names {path}, which cannot be read from {place}")]
    ImageFile {
        /// Who wants the file.
        named_by: String,
        /// The file.
        path: String,
        /// The partition or partitions.
        place: String,
        /// What reading met.
        source: kvmbake_disk::Error,
    },
    /// A file of the host that the user names cannot be read.
    #[error("Cannot read {path}")]
    HostFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a kernel that can be entered.
    #[error("Cannot boot {path}")]
    Payload {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: PayloadError,
    },
    /// Initrds of more than the limit together.
    #[error("Initrd has more than {limit} bytes")]
    InitrdTooLarge {
        /// The limit.
        limit: u64,
    },
    /// The user's own kernel came without a command line, and the image has none.
    #[error("No command line for {kernel}: the image's boot configuration gives none ({reason})")]
    NoCommandLine {
        /// The kernel.
        kernel: String,
        /// What was wrong with the image's boot configuration.
        reason: String,
    },
}
