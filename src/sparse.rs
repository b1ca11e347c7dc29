//! Where a sparse file holds data.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Returns where the next data at or after `from` begins; `None` when there is a hole to the end.
///
/// # Errors
/// The file system's.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA).map(|found| found.map(|at| at.max(from)))
}

/// Returns where the data at `from` ends; `None` when `from` lies at or beyond the file's end.
///
/// # Errors
/// The file system's.
pub fn next_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: lseek takes no memory; it moves the descriptor's own position, which nobody here uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(error),
    }
}
