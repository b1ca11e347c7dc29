//! Who is at the other end of a Unix socket: `SO_PEERCRED` of unix(7), which the kernel vouches for.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process and the user at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process, as of when it connected or began to listen.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
}

impl Peer {
    /// Returns who is at the other end of `stream`.
    ///
    /// # Errors
    /// The system's.
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the pointers are to a live ucred and its length, and nothing is kept of them.
        let done = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut length,
            )
        };
        match done {
            0 => Ok(Peer { pid: found.pid, uid: found.uid }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the other end may do what we may: it is our own user, or root.
    pub fn is_trusted(self) -> bool {
        // SAFETY: geteuid takes nothing and cannot fail.
        self.uid == 0 || self.uid == unsafe { libc::geteuid() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_who_connected() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        assert!(peer.is_trusted());
        // SAFETY: geteuid takes nothing and cannot fail.
        let ours = unsafe { libc::geteuid() };
        assert!(!Peer { pid: 1, uid: ours.wrapping_add(1).max(1) }.is_trusted());
    }
}
