//! What a caller may choose about a VHD image.

use crate::options::{Fault, switch};

/// Which kind of VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subformat {
    /// Blocks are allocated as they are needed.
    #[default]
    Dynamic,
    /// The disk as it is, rounded up to whole mebibytes as Azure wants it, with a footer behind
    /// it.
    Fixed,
}

/// How to write a VHD image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VhdOptions {
    /// Which kind.
    pub subformat: Subformat,
}

impl VhdOptions {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "subformat" => {
                self.subformat = match value {
                    "dynamic" => Subformat::Dynamic,
                    "fixed" => Subformat::Fixed,
                    _ => return Err(Fault::Expected("dynamic or fixed")),
                }
            }
            // The size is always exact here, which is what qemu-img means by it.
            "force_size" if switch(value)? => {}
            "force_size" => return Err(Fault::Expected("on")),
            _ => return Err(Fault::Unknown(&["subformat"])),
        }
        Ok(())
    }
}
