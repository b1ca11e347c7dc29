//! Block backends, overlays, partition tables and file systems.

pub mod block;
pub mod error;
pub mod memory;

pub use block::{Block, Extent};
pub use error::{Error, ErrorKind};
pub use memory::MemoryBlock;
