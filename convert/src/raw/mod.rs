//! Raw: the disk's bytes at their own place, its zeroes as holes. Read also from compressed
//! files.

mod encode;
mod packed;

pub(crate) use encode::RawEncoder;
pub use packed::{Packing, packing, unpack};
