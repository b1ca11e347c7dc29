//! Advisory locks on image files, in QEMU's own protocol.
//!
//! QEMU keeps two rows of lock bytes in each image file: byte 100 + p is locked (always shared)
//! by everyone who *uses* permission p, byte 200 + p by everyone who does *not tolerate* that
//! others use it. Whoever comes locks his bytes first and then tests the opposite ones
//! (`block/file-posix.c`, `raw_handle_perm_lock`). Following the same rules, one mechanism keeps
//! two builds, and a build and a running QEMU, off each other's images.
//!
//! The locks are open-file-description locks: they go with the descriptor, also when the process
//! is killed, and hold between two parts of one process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::{Error, ErrorKind};

const USED: i64 = 100;
const NOT_TOLERATED: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What the locker does with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads it, and tolerates only others who read.
    Read,
    /// Writes it, and tolerates nobody who writes or relies on its contents.
    Write,
}

/// Locks the file for as long as its descriptor stays open.
///
/// # Errors
/// [`ErrorKind::Locked`] when somebody uses the file in a way that does not go together with
/// `wanted`. A file system without such locks is not an error.
pub(crate) fn lock(file: &File, path: &Path, wanted: Use) -> Result<(), Error> {
    // Who is refused claims nothing, even while a child process shares the descriptor.
    claim(file, path, wanted).inspect_err(|_| unlock(file))
}

fn claim(file: &File, path: &Path, wanted: Use) -> Result<(), Error> {
    let used: &[i64] = match wanted {
        Use::Read => &[CONSISTENT_READ],
        Use::Write => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    let not_tolerated = [WRITE, RESIZE];
    let failed = |error| Error::io("lock", error).on(path);

    for byte in used
        .iter()
        .map(|permission| USED + permission)
        .chain(not_tolerated.map(|permission| NOT_TOLERATED + permission))
    {
        match set_shared(file, byte) {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) => {
                tracing::warn!(path = %path.display(), %error, "file system without locks");
                return Ok(());
            }
            Err(error) if is_contended(&error) => return Err(locked(path, wanted, "claims")),
            Err(error) => return Err(failed(error)),
        }
    }
    for permission in used {
        if is_locked_by_others(file, NOT_TOLERATED + permission).map_err(failed)? {
            return Err(locked(path, wanted, "reads or writes"));
        }
    }
    for permission in not_tolerated {
        if is_locked_by_others(file, USED + permission).map_err(failed)? {
            return Err(locked(path, wanted, "writes to"));
        }
    }
    Ok(())
}

/// Gives up all locks of the descriptor at once. Closing it would do, were it not that a child
/// process being started shares it for a moment.
pub(crate) fn unlock(file: &File) {
    let mut request = request(libc::F_UNLCK, 0);
    request.l_len = 0;
    // SAFETY: the descriptor is open, and the pointer is to a flock that outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) };
}

fn locked(path: &Path, wanted: Use, other: &str) -> Error {
    let operation = match wanted {
        Use::Read => "lock for reading",
        Use::Write => "lock for writing",
    };
    Error::new(ErrorKind::Locked, operation)
        .on(path)
        .because(format!("another program {other} this image"))
        .with_hint("Stop the build or virtual machine that uses it, or work on a copy")
}

fn is_contended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

fn request(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: flock is a plain C structure for which all zeroes is a valid value.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    request.l_start = byte;
    request.l_len = 1;
    request
}

fn set_shared(file: &File, byte: i64) -> io::Result<()> {
    let request = request(libc::F_RDLCK, byte);
    // SAFETY: the descriptor is open, and the pointer is to a flock that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells whether an exclusive lock of the byte would be refused, without taking it.
fn is_locked_by_others(file: &File, byte: i64) -> io::Result<bool> {
    let mut request = request(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open, and the pointer is to a flock that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut request) } {
        0 => Ok(i32::from(request.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || std::fs::OpenOptions::new().read(true).write(true).open(path.path()).unwrap();
        let kind = |result: Result<(), Error>| result.map_err(|error| error.kind());
        let (first, second) = (open(), open());
        assert_eq!(kind(lock(&first, path.path(), Use::Read)), Ok(()));
        assert_eq!(kind(lock(&second, path.path(), Use::Read)), Ok(()));
        let writer = open();
        let refused = lock(&writer, path.path(), Use::Write).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        assert!(refused.hint().is_some());
        // Not by closing: other tests start programs, which share the descriptors for a moment.
        [&first, &second].into_iter().for_each(unlock);

        let writer = open();
        assert_eq!(kind(lock(&writer, path.path(), Use::Write)), Ok(()));
        for wanted in [Use::Read, Use::Write] {
            assert_eq!(kind(lock(&open(), path.path(), wanted)), Err(ErrorKind::Locked));
        }
        unlock(&writer);
        assert_eq!(kind(lock(&open(), path.path(), Use::Write)), Ok(()));
    }
}
