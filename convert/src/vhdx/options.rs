//! What a caller may choose about a VHDX image.

use crate::options::{Fault, power_of_two};

/// How to write a VHDX image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VhdxOptions {
    /// Bytes of a block: a power of two from 1 MiB to 256 MiB. When absent 1 MiB, and more for
    /// disks above 1 TiB.
    pub block_size: Option<u64>,
}

impl VhdxOptions {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "block_size" => {
                let what = "a power of two from 1M to 256M";
                self.block_size = Some(power_of_two(value, 1 << 20..=256 << 20, what)?);
            }
            "subformat" if value == "dynamic" => {}
            "subformat" => return Err(Fault::Expected("dynamic")),
            _ => return Err(Fault::Unknown(&["block_size", "subformat"])),
        }
        Ok(())
    }
}
