//! Every frame of a link in a file, as tcpdump and Wireshark read it: classic pcap with microseconds
//! (<https://ietf-opsawg-wg.github.io/draft-ietf-opsawg-pcap/draft-ietf-opsawg-pcap.html>), link type
//! Ethernet.
//!
//! Frames are written as they cross the link, so that what one side leaves to the other's
//! segmentation is one long frame. Checksums that are left out are filled in, as they would be on a
//! wire. The file is its owner's alone, and ends at a limit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::link::{DropReason, GuestOffloads, Link, MAX_FRAME, Offload, Pulled, pass_on_the_rest};
use crate::wire::checksum::Sum;

/// Longest file in bytes.
const MAX_LEN: u64 = 8 << 30;
/// Bytes gathered before they are written.
const BUFFER: usize = 256 << 10;
/// How long gathered bytes wait at most, while frames pass.
const FLUSH: Duration = Duration::from_secs(1);
const MAGIC: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
const HEADER_LEN: u64 = 24;
const RECORD_LEN: u64 = 16;

/// A file that frames are written to, of one link or of several that follow each other.
#[derive(Debug)]
pub struct Capture {
    state: Mutex<State>,
    /// A moment by both clocks.
    epoch: (Instant, SystemTime),
}

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    len: u64,
    flushed: Instant,
    /// Whether the limit was reached, and what went wrong first.
    full: bool,
    error: Option<io::Error>,
}

impl Capture {
    /// Starts a file at `path`, in place of an earlier one.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` where something is that is no regular file.
    pub fn create(path: &Path) -> io::Result<Capture> {
        // A new file, since an old one would keep its owner and mode.
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => fs::remove_file(path)?,
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        file.write_all(&MAGIC.to_le_bytes())?;
        file.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        file.write_all(&(MAX_FRAME as u32).to_le_bytes())?;
        file.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
        file.flush()?;
        let now = Instant::now();
        let state = State { file, len: HEADER_LEN, flushed: now, full: false, error: None };
        Ok(Capture { state: Mutex::new(state), epoch: (now, SystemTime::now()) })
    }

    /// Writes what has been gathered, and says whether everything is there: whether the file has
    /// reached its limit.
    ///
    /// # Errors
    /// The first write that failed; nothing was written after it.
    pub fn finish(&self) -> io::Result<bool> {
        let mut state = self.lock();
        state.flush();
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state.full),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, frame: &[u8], offload: Offload, now: Instant) {
        let (instant, time) = self.epoch;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
            + now.saturating_duration_since(instant);
        let filled = filled(frame, offload);
        let frame = filled.as_deref().unwrap_or(frame);
        let mut state = self.lock();
        if state.len + RECORD_LEN + frame.len() as u64 > MAX_LEN {
            state.full = true;
        }
        if state.full || state.error.is_some() {
            return;
        }
        let len = (frame.len() as u32).to_le_bytes();
        let mut record = [0; RECORD_LEN as usize];
        record[..4].copy_from_slice(&(since.as_secs() as u32).to_le_bytes());
        record[4..8].copy_from_slice(&since.subsec_micros().to_le_bytes());
        record[8..12].copy_from_slice(&len);
        record[12..].copy_from_slice(&len);
        let written = state.file.write_all(&record).and_then(|()| state.file.write_all(frame));
        state.error = written.err();
        state.len += RECORD_LEN + frame.len() as u64;
        if now.saturating_duration_since(state.flushed) >= FLUSH {
            state.flushed = now;
            state.flush();
        }
    }
}

impl State {
    fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.file.flush().err();
        }
    }
}

/// Returns a frame with the checksum that it lacks; `None` when it lacks none.
pub(crate) fn filled(frame: &[u8], offload: Offload) -> Option<Vec<u8>> {
    if !offload.needs_csum {
        return None;
    }
    let start = usize::from(offload.csum_start);
    let field = start + usize::from(offload.csum_offset);
    let mut frame = frame.to_vec();
    // The field holds the pseudo-header's sum, which is summed up with the rest.
    let sum = match Sum::default().add(frame.get(start..)?).complement() {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    frame.get_mut(field..field + 2)?.copy_from_slice(&sum);
    Some(frame)
}

/// A link whose frames are captured.
#[derive(Debug)]
pub struct Captured<L> {
    link: L,
    capture: Arc<Capture>,
    now: Instant,
}

impl<L: Link> Captured<L> {
    /// Captures the frames of `link`.
    pub fn new(link: L, capture: Arc<Capture>) -> Captured<L> {
        let now = capture.epoch.0;
        Captured { link, capture, now }
    }
}

impl<L: Link> Link for Captured<L> {
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        if frame.len() <= MAX_FRAME {
            self.capture.write(frame, offload, self.now);
        }
        self.link.push(frame, offload)
    }

    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        let pulled = self.link.pull(buf)?;
        self.capture.write(&buf[..pulled.len], pulled.offload, self.now);
        Some(pulled)
    }

    fn poll(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.link.poll(now);
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.link.deadline(now)
    }

    fn set_guest_offloads(&mut self, accepted: GuestOffloads) {
        self.link.set_guest_offloads(accepted);
    }

    pass_on_the_rest!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_its_owner_s_alone_and_takes_an_earlier_one_s_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        fs::write(&path, vec![7; 1000]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let capture = Capture::create(&path).unwrap();
        capture.write(&[1; 60], Offload::default(), capture.epoch.0 + Duration::from_millis(1));
        assert!(!capture.finish().unwrap());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60);
        // The head of a file that tcpdump has written on a little-endian machine.
        let head = [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[..16], head);
        assert_eq!(bytes[20..24], [1, 0, 0, 0]);
        assert_eq!(bytes[32..40], [60, 0, 0, 0, 60, 0, 0, 0]);
        let link = folder.path().join("link.pcap");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Capture::create(&link).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn checksums_that_are_left_out_are_filled_in_and_wild_offsets_do_no_harm() {
        let mut frame = vec![0; 60];
        frame[34..].fill(0x11);
        let offload =
            Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() };
        let filled_in = filled(&frame, offload).unwrap();
        assert_eq!(frame[..50], filled_in[..50]);
        // The whole, with what the field held added, sums up to nothing.
        assert!(Sum::default().add(&filled_in[34..]).add(&[0x11, 0x11]).is_valid());
        for (csum_start, csum_offset) in [(59, 0), (60, 0), (61, 0), (u16::MAX, u16::MAX)] {
            let offload = Offload { csum_start, csum_offset, ..offload };
            assert_eq!(filled(&frame, offload), None, "{csum_start}");
        }
        assert_eq!(filled(&frame, Offload::default()), None);
    }
}
