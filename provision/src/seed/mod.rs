//! Seeds: what a guest reads at its first boot, as a disk image made in memory.
//!
//! A kind of seed says which files go on the disk and under which label ([`nocloud`], [`config_drive`]); [`disk`] turns
//! that into an image. What the user wrote goes on the disk byte for byte, but for Ignition's
//! configs ([`ignition`]); the build's key travels beside it.

pub mod config_drive;
pub mod disk;
pub mod ignition;
pub mod mime;
pub mod nocloud;

pub use disk::{File, image};
pub use nocloud::NoCloud;

/// Why a seed cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A host name that the guest would refuse or misread.
    #[error(
        "Host name {name:?} is not usable: letters, digits, '-' and '.', at most 253 characters"
    )]
    HostName {
        /// The name as given.
        name: String,
    },
    /// A login name that cannot be one.
    #[error(
        "User name {name:?} is not usable: letters, digits, '_', '-' and '.', at most 32, not starting with '-'"
    )]
    UserName {
        /// The name as given.
        name: String,
    },
    /// A label that a file system cannot have.
    #[error("Label {label:?} is not usable: 1 to 11 letters, digits, '-' and '_'")]
    Label {
        /// The label as given.
        label: String,
    },
    /// A file's name that leads nowhere or elsewhere.
    #[error("File name {name:?} is not usable on a seed")]
    FileName {
        /// The name as given.
        name: String,
    },
    /// Vendor-data that a config drive cannot hold.
    #[error("The vendor-data is no text, and a config drive holds nothing else")]
    VendorData,
    /// User-data that is no Ignition config.
    #[error("The user-data is no Ignition config that can be used: {why}")]
    Ignition {
        /// What is wrong with it.
        why: String,
    },
    /// The files are larger than a seed may be.
    #[error("The seed's files take {size} bytes, more than the {limit} a seed disk holds")]
    TooLarge {
        /// Bytes of all files together.
        size: u64,
        /// The largest sum that is accepted.
        limit: u64,
    },
    /// Writing the file system in memory failed.
    #[error("The seed's file system could not be written")]
    FileSystem(#[source] std::io::Error),
}
