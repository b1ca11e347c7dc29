//! Random bytes of the host.

use std::fs::File;
use std::io::{self, Read};

/// Fills `bytes` from the system's random source.
///
/// # Errors
/// The system's.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}
