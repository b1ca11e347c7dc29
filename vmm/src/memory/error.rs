//! What can go wrong when memory is saved and restored.

use std::io;

/// A memory that cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The bytes of a page map make no sense.
    #[error("Page map is damaged: {0}")]
    BadMap(String),
    /// A layer belongs to a memory of another size.
    #[error("Memory layer describes {found} bytes of RAM, and the machine has {expected}")]
    WrongSize {
        /// The size of the RAM.
        expected: u64,
        /// The size that the layer, or the memory, has.
        found: u64,
    },
    /// A layer's file ends before its data.
    #[error("File of memory layer {layer} has {found} bytes of {expected}: it has been cut off")]
    Truncated {
        /// The layer, counted from the oldest.
        layer: usize,
        /// The size that the file must have.
        expected: u64,
        /// The size that it has.
        found: u64,
    },
    /// A layer's file cannot be read.
    #[error("Cannot read memory layer {layer} at offset {offset}")]
    Read {
        /// The layer, counted from the oldest.
        layer: usize,
        /// Offset in its file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The new layer's file cannot be written.
    #[error("Cannot write guest memory at offset {offset} of its file")]
    Write {
        /// Offset in the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The host gives no memory.
    #[error("Cannot reserve {bytes} bytes of guest memory")]
    Reserve {
        /// Size asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
}
