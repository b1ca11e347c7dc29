//! Bytes that two files share instead of each having a copy (ioctl_ficlonerange(2)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Offsets and lengths that are multiples of this can be shared by the file systems that share at
/// all, unless they were made with longer blocks.
const ALIGNMENT: u64 = 4096;

/// `struct file_clone_range` (linux/fs.h).
#[repr(C)]
struct Range {
    source: i64,
    source_offset: u64,
    len: u64,
    offset: u64,
}

/// `FICLONERANGE`, `_IOW(0x94, 13, struct file_clone_range)`.
const CLONE_RANGE: libc::c_ulong = 0x4020_940d;

/// Lets `to` have at `at` the bytes that `from` has at `offset`; returns how many from the front of
/// `len`, which is 0 where the places do not fit.
///
/// # Errors
/// The two lie on different file systems, or on one that cannot.
pub fn share(from: &File, offset: u64, len: u64, to: &File, at: u64) -> io::Result<u64> {
    let len = len - len % ALIGNMENT;
    if len == 0 || !(offset | at).is_multiple_of(ALIGNMENT) {
        return Ok(0);
    }
    let range = Range { source: from.as_raw_fd().into(), source_offset: offset, len, offset: at };
    loop {
        // SAFETY: the request reads `range`, which outlives the call, and both descriptors are open.
        let result = unsafe { libc::ioctl(to.as_raw_fd(), CLONE_RANGE, &raw const range) };
        if result == 0 {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
