//! Raw: the disk's bytes at their own place, its zeroes as holes. Read also from compressed files,
//! and written to them.

mod encode;
mod options;
mod pack;
mod packed;

use crate::encode::{DiskInfo, Encoder};

use encode::RawEncoder;
pub use options::RawOptions;
pub use packed::{Packing, packing, unpack};

/// Returns the encoder that the options ask for.
pub(crate) fn plan(disk: &DiskInfo, options: &RawOptions) -> Result<Box<dyn Encoder>, String> {
    Ok(match options.packing {
        Some(packing) => Box::new(pack::PackedEncoder::plan(disk, packing, options)?),
        None => Box::new(RawEncoder::plan(disk)),
    })
}
