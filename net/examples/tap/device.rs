//! A TAP device as the guest's side of a link (Documentation/networking/tuntap.rst): its frames
//! carry a `virtio_net_hdr`, so that Linux's own stack uses the offloads a virtio driver would.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use kvmbake_net::{Gso, GuestOffloads, Link, MAX_FRAME, Offload};

const HEADER_LEN: usize = 10;
/// Frames taken from the device before the link is polled.
const BATCH: usize = 64;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;

/// An open TAP device.
pub struct Tap {
    file: File,
    offloads: bool,
}

impl Tap {
    /// Makes the device `name` in the calling thread's network namespace.
    pub fn open(name: &str, offloads: bool) -> io::Result<Tap> {
        let file =
            File::options().read(true).write(true).open("/dev/net/tun").map_err(|error| {
                let hint = "TAP devices need root and the tun module";
                io::Error::new(error.kind(), format!("/dev/net/tun: {error}; {hint}"))
            })?;
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let header_len = HEADER_LEN as libc::c_int;
        let flags = if offloads { TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 } else { 0 };
        let fd = file.as_raw_fd();
        // SAFETY: the requests take an ifreq, an int and flags, as they are given here; the
        // descriptor is open and the pointers outlive the calls.
        let results = unsafe {
            [
                libc::ioctl(fd, libc::TUNSETIFF as _, &request),
                libc::ioctl(fd, libc::TUNSETVNETHDRSZ as _, &header_len),
                libc::ioctl(fd, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)),
                libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK),
            ]
        };
        if results.iter().any(|result| *result < 0) {
            return Err(io::Error::last_os_error());
        }
        Ok(Tap { file, offloads })
    }

    /// Drives a link with the device's frames until `stop` is readable.
    pub fn run(&self, link: &mut dyn Link, stop: BorrowedFd<'_>) -> io::Result<()> {
        link.set_guest_offloads(GuestOffloads {
            csum: self.offloads,
            tso4: self.offloads,
            tso6: self.offloads,
        });
        let mut buf = vec![0; HEADER_LEN + MAX_FRAME];
        loop {
            link.poll(Instant::now());
            let full = self.take(link, &mut buf)?;
            link.poll(Instant::now());
            self.give(link, &mut buf)?;
            if !full && self.sleep(link, stop)? {
                return Ok(());
            }
        }
    }

    /// Pushes a batch of the device's frames; returns whether there may be more.
    fn take(&self, link: &mut dyn Link, buf: &mut [u8]) -> io::Result<bool> {
        for _ in 0..BATCH {
            match (&self.file).read(buf) {
                Ok(len) if len >= HEADER_LEN => {
                    let (header, frame) = buf[..len].split_at(HEADER_LEN);
                    // The link counts what it drops.
                    let _ = link.push(frame, decode(header));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn give(&self, link: &mut dyn Link, buf: &mut [u8]) -> io::Result<()> {
        while let Some(pulled) = link.pull(&mut buf[HEADER_LEN..]) {
            buf[..HEADER_LEN].copy_from_slice(&encode(&pulled.offload));
            match (&self.file).write(&buf[..HEADER_LEN + pulled.len]) {
                Ok(_) => {}
                // The device is down, or its queue is full: the frame is lost.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for something to do; returns whether to stop.
    fn sleep(&self, link: &mut dyn Link, stop: BorrowedFd<'_>) -> io::Result<bool> {
        let now = Instant::now();
        let timeout = match link.deadline(now) {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(now) + Duration::from_micros(999);
                left.as_millis().min(60_000) as libc::c_int
            }
        };
        let pollfd = |fd: BorrowedFd<'_>| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [pollfd(self.file.as_fd()), pollfd(link.wake_fd()), pollfd(stop)];
        // SAFETY: the pointer and length describe `fds`, which outlives the call.
        let result = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(fds[2].revents != 0)
    }
}

fn decode(header: &[u8]) -> Offload {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Offload {
        needs_csum: header[0] & 1 != 0,
        data_valid: header[0] & 2 != 0,
        csum_start: field(6),
        csum_offset: field(8),
        gso: match header[1] & 0x7f {
            1 => Gso::TcpV4,
            4 => Gso::TcpV6,
            _ => Gso::None,
        },
        gso_size: field(4),
        hdr_len: field(2),
    }
}

fn encode(offload: &Offload) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = u8::from(offload.needs_csum) | u8::from(offload.data_valid) << 1;
    header[1] = match offload.gso {
        Gso::None => 0,
        Gso::TcpV4 => 1,
        Gso::TcpV6 => 4,
    };
    header[2..4].copy_from_slice(&offload.hdr_len.to_ne_bytes());
    header[4..6].copy_from_slice(&offload.gso_size.to_ne_bytes());
    header[6..8].copy_from_slice(&offload.csum_start.to_ne_bytes());
    header[8..10].copy_from_slice(&offload.csum_offset.to_ne_bytes());
    header
}

/// Moves the calling thread into a network namespace.
pub fn enter_netns(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open; the call changes the calling thread only.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
