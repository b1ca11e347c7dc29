//! Raw: the disk's bytes at their own place, its zeroes as holes.

mod encode;

pub(crate) use encode::RawEncoder;
