//! Direct boot: the kernel, initrd and command line that the image's own boot loader would load.

pub mod kernel;
pub mod payload;

pub use kernel::{BootOverrides, Compression, FileSource, Kernel, KernelImage};
pub use payload::PayloadError;
