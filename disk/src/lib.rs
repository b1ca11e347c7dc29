//! Block backends, overlays, partition tables and file systems.

pub mod block;
pub mod counted;
pub mod error;
pub mod filesystem;
pub mod format;
mod host_file;
mod lock;
pub mod memory;
pub mod named;
pub mod open;
pub mod partition;
pub mod qcow2;
pub mod raw;
mod share;
pub mod switch;
pub mod volatile;
mod zero;

pub use block::{Block, Extent};
pub use counted::{Counted, Counts};
pub use error::{Error, ErrorKind};
pub use format::{Format, probe};
pub use memory::MemoryBlock;
pub use open::{OpenOptions, files, open};
pub use qcow2::{Qcow2Block, create_overlay, open_overlay};
pub use raw::RawBlock;
pub use share::share;
pub use switch::Switch;
pub use volatile::Volatile;
pub use zero::is_zero;
