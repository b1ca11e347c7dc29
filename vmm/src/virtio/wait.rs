//! Waiting for several descriptors at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// Waits until one of `fds` is readable or `timeout` has passed. An interruption counts as waking.
pub(super) fn readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the time outlive the call, and the length is the array's.
    let count =
        unsafe { libc::ppoll(polled.as_mut_ptr(), N as libc::nfds_t, limit, std::ptr::null()) };
    if count < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(polled.map(|fd| fd.revents != 0))
}

/// Returns the eventfd as a descriptor to wait for.
pub(super) fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Takes the signal out of a non-blocking eventfd.
pub(super) fn clear(event: &EventFd) {
    // Fails only when there was no signal.
    let _ = event.read();
}
