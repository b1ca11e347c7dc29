//! Direct boot: the kernel, initrd and command line that the image's own boot loader would load.
//!
//! [`discover`] reads the partition table and file systems (`volumes`), follows the image's
//! `grub.cfg` (`grub`) or Boot Loader Specification entries (`bls`), and unpacks the kernel on the
//! host (`payload`). Everything read from the image is hostile.

pub mod bls;
pub mod cmdline;
mod discover;
pub mod elf;
mod error;
#[cfg(test)]
mod fixture;
pub mod grub;
mod kernel;
pub mod payload;
pub mod volumes;

pub use discover::discover;
pub use error::BootError;
pub use kernel::{BootOverrides, Compression, FileSource, Kernel, KernelImage};
pub use payload::PayloadError;
