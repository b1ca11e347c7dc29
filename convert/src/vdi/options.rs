//! What a caller may choose about a VDI image.

use crate::options::{Fault, switch};

/// How to write a VDI image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VdiOptions {
    /// Whether every block is given its place, as in a fixed image. The file is sparse
    /// nevertheless.
    pub fixed: bool,
}

impl VdiOptions {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "static" => self.fixed = switch(value)?,
            _ => return Err(Fault::Unknown(&["static"])),
        }
        Ok(())
    }
}
