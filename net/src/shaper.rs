//! A rate limit: a token bucket for each direction of a link, with a short queue for what the guest
//! sends too fast (as tc-tbf(8) has it). What waits for the guest waits in the network, whose windows
//! close.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::link::{DropReason, GuestOffloads, Link, Offload, Pulled, pass_on_the_rest};

/// How much of a second's bytes may pass at once, and wait, as a divisor.
const BURST: u64 = 20;
const QUEUE: u64 = 5;
/// The least that may pass at once, and wait, in bytes.
const LEAST_BURST: u64 = 3000;
const LEAST_QUEUE: u64 = 192 << 10;
/// The most that may wait, in frames.
const MAX_FRAMES: usize = 4096;

/// A link with a limit on the bytes of frames in each direction.
#[derive(Debug)]
pub struct Shaped<L> {
    link: L,
    up: Bucket,
    down: Bucket,
    /// Frames of the guest's that wait for their turn.
    queue: VecDeque<(Box<[u8]>, Offload)>,
    queued: u64,
    /// Whether the guest was refused a frame since the last poll.
    blocked: bool,
    /// Frames of the guest's that the queue had no room for.
    dropped: Arc<AtomicU64>,
}

/// Tokens are bytes. A frame passes while there are any, and may leave a debt.
#[derive(Debug)]
struct Bucket {
    /// Bytes a second.
    rate: u64,
    tokens: i64,
    filled: Option<Instant>,
}

impl Bucket {
    fn burst(&self) -> i64 {
        (self.rate / BURST).max(LEAST_BURST) as i64
    }

    fn fill(&mut self, now: Instant) {
        let Some(filled) = self.filled else {
            (self.filled, self.tokens) = (Some(now), self.burst());
            return;
        };
        let passed = now.saturating_duration_since(filled);
        let earned = passed.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        if earned > 0 {
            // Parts of a token stay earned.
            let worth = Duration::from_nanos(
                u64::try_from(earned * 1_000_000_000 / u128::from(self.rate)).unwrap_or(u64::MAX),
            );
            self.filled = filled.checked_add(worth).or(Some(now));
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(self.burst());
        }
    }

    fn is_open(&self) -> bool {
        self.tokens > 0
    }

    fn take(&mut self, len: usize) {
        self.tokens = self.tokens.saturating_sub(len as i64);
    }

    /// Returns when it is open again.
    fn opens(&self) -> Option<Instant> {
        let missing = u128::from((1 - self.tokens).max(0) as u64);
        let nanos = (missing * 1_000_000_000).div_ceil(u128::from(self.rate));
        self.filled?.checked_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

impl<L: Link> Shaped<L> {
    /// Limits each direction of `link` to `rate` bytes a second.
    pub fn new(link: L, rate: u64) -> Shaped<L> {
        // Beyond this nothing is a limit any more.
        let rate = rate.clamp(1, 1 << 40);
        let bucket = || Bucket { rate, tokens: 0, filled: None };
        let queue = VecDeque::new();
        let (up, down, dropped) = (bucket(), bucket(), Arc::default());
        Shaped { link, up, down, queue, queued: 0, blocked: false, dropped }
    }

    /// Has the frames that the queue has no room for counted in `dropped`.
    pub fn counting(self, dropped: Arc<AtomicU64>) -> Shaped<L> {
        Shaped { dropped, ..self }
    }

    fn max_queue(&self) -> u64 {
        (self.up.rate / QUEUE).clamp(LEAST_QUEUE, 16 << 20)
    }
}

impl<L: Link> Link for Shaped<L> {
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        if self.queue.is_empty() && self.up.is_open() {
            self.up.take(frame.len());
            return self.link.push(frame, offload);
        }
        let len = frame.len() as u64;
        if self.queued + len > self.max_queue() || self.queue.len() >= MAX_FRAMES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(DropReason::NoRoom);
        }
        self.queued += len;
        self.queue.push_back((frame.into(), offload));
        Ok(())
    }

    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        if !self.down.is_open() {
            self.blocked = true;
            return None;
        }
        let pulled = self.link.pull(buf)?;
        self.down.take(pulled.len);
        Some(pulled)
    }

    fn poll(&mut self, now: Instant) {
        self.up.fill(now);
        self.down.fill(now);
        self.blocked = false;
        self.link.poll(now);
        let mut passed = false;
        while self.up.is_open()
            && let Some((frame, offload)) = self.queue.pop_front()
        {
            self.queued -= frame.len() as u64;
            self.up.take(frame.len());
            // The link counts what it drops.
            let _ = self.link.push(&frame, offload);
            passed = true;
        }
        if passed {
            self.link.poll(now);
        }
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let up = if self.queue.is_empty() { None } else { self.up.opens() };
        let down = if self.blocked { self.down.opens() } else { None };
        [self.link.deadline(now), up, down].into_iter().flatten().min()
    }

    fn set_guest_offloads(&mut self, accepted: GuestOffloads) {
        if accepted == GuestOffloads::default() {
            self.queue.clear();
            self.queued = 0;
        }
        self.link.set_guest_offloads(accepted);
    }

    pass_on_the_rest!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    /// A link that takes everything and always has a frame of 1000 bytes.
    struct Endless(io::PipeReader, u64);

    impl Link for Endless {
        fn push(&mut self, frame: &[u8], _: Offload) -> Result<(), DropReason> {
            self.1 += frame.len() as u64;
            Ok(())
        }

        fn pull(&mut self, _: &mut [u8]) -> Option<Pulled> {
            Some(Pulled { len: 1000, offload: Offload::default() })
        }

        fn poll(&mut self, _: Instant) {}

        fn deadline(&mut self, _: Instant) -> Option<Instant> {
            None
        }

        fn wake_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn set_guest_offloads(&mut self, _: GuestOffloads) {}

        fn mac(&self) -> [u8; 6] {
            [2; 6]
        }

        fn mtu(&self) -> u16 {
            1500
        }
    }

    #[test]
    fn both_directions_keep_their_rate_and_deadlines_come_when_there_is_room_again() {
        let endless = Endless(io::pipe().unwrap().0, 0);
        let dropped = Arc::default();
        let mut shaped = Shaped::new(endless, 100_000).counting(Arc::clone(&dropped));
        let mut refused = 0;
        let start = Instant::now();
        let (mut now, mut pulled, mut pushed) = (start, 0u64, 0u64);
        let mut polls = 0;
        while now < start + Duration::from_secs(10) {
            polls += 1;
            shaped.poll(now);
            while shaped.push(&[0; 1000], Offload::default()).is_ok() {
                pushed += 1000;
            }
            refused += 1;
            while let Some(frame) = shaped.pull(&mut [0; 1000]) {
                pulled += frame.len as u64;
            }
            let due = shaped.deadline(now).expect("a deadline while something waits");
            assert!(due > now, "no deadline in the past");
            now = due;
        }
        // Ten seconds' bytes, and what may pass at once.
        for passed in [pulled, shaped.link.1] {
            assert!((1_000_000..=1_010_000).contains(&passed), "{passed}");
        }
        assert_eq!(pushed - shaped.link.1, shaped.queued);
        assert!(shaped.queued <= LEAST_QUEUE);
        assert_eq!(dropped.load(Ordering::Relaxed), refused);
        assert!(polls < 5000, "{polls} polls");
    }
}
