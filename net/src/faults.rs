//! A bad wire, for tests: frames are lost, held up, overtaken, corrupted and doubled, by a generator
//! whose seed makes a failure come again.
//!
//! A wrapper over any [`Link`]. Both directions suffer alike. A frame is corrupted after the checksum
//! it may lack was filled in, as on a wire, so that its receiver can find out; one that is left to
//! segmentation cannot have its checksums yet and is lost in its place.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::capture::filled;
use crate::link::{
    DropReason, Gso, GuestOffloads, Link, MAX_FRAME, Offload, Pulled, pass_on_the_rest,
};

/// Frames and bytes that are under way in one direction; what comes beyond is lost.
const MAX_FRAMES: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

/// What happens to frames. Each share is of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Where chance begins.
    pub seed: u64,
    /// Frames that are lost.
    pub loss: u32,
    /// Frames of which one bit is turned over.
    pub corrupt: u32,
    /// Frames that come twice.
    pub duplicate: u32,
    /// Frames that are held up for twice the delay and a hundredth of a second longer, while others
    /// pass.
    pub reorder: u32,
    /// How long every frame takes.
    pub delay: Duration,
    /// How much longer it may take, evenly spread.
    pub jitter: Duration,
}

/// A link over a bad wire.
#[derive(Debug)]
pub struct Faulty<L> {
    link: L,
    chance: Chance,
    from_guest: Wire,
    to_guest: Wire,
    buf: Box<[u8]>,
    now: Instant,
}

#[derive(Debug)]
struct Chance {
    faults: Faults,
    state: u64,
}

/// The frames under way, in the order of their arrival.
#[derive(Debug, Default)]
struct Wire {
    frames: BTreeMap<(Instant, u64), (Vec<u8>, Offload)>,
    bytes: usize,
    sent: u64,
    /// The latest arrival of a frame that none overtakes.
    last: Option<Instant>,
}

impl Chance {
    /// Returns a number below `limit` (PCG XSH-RR 64/32).
    fn below(&mut self, limit: u64) -> u64 {
        let state = self.state;
        self.state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (((state >> 18) ^ state) >> 27) as u32;
        (u64::from(mixed.rotate_right((state >> 59) as u32)) * limit) >> 32
    }

    fn happens(&mut self, share: u32) -> bool {
        self.below(1000) < u64::from(share)
    }
}

impl Wire {
    fn send(&mut self, frame: &[u8], offload: Offload, chance: &mut Chance, now: Instant) {
        let faults = chance.faults;
        // Chance is asked alike for each frame, so that one share does not change what others hit.
        let [lost, corrupt, double, late] =
            [faults.loss, faults.corrupt, faults.duplicate, faults.reorder]
                .map(|share| chance.happens(share));
        if lost || (corrupt && offload.gso != Gso::None) {
            return;
        }
        let (mut frame, mut offload) = (frame.to_vec(), offload);
        if corrupt && !frame.is_empty() {
            if let Some(filled) = filled(&frame, offload) {
                frame = filled;
            }
            offload = Offload::default();
            let bit = chance.below(frame.len() as u64 * 8) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        let jitter = chance.below(faults.jitter.as_micros() as u64 + 1);
        let mut due = now + faults.delay + Duration::from_micros(jitter);
        if late {
            due += 2 * faults.delay + Duration::from_millis(10);
        } else {
            due = self.last.map_or(due, |last| due.max(last));
            self.last = Some(due);
        }
        if double {
            self.put(due, frame.clone(), offload);
        }
        self.put(due, frame, offload);
    }

    fn put(&mut self, due: Instant, frame: Vec<u8>, offload: Offload) {
        if self.is_full() {
            return;
        }
        self.bytes += frame.len();
        self.sent += 1;
        self.frames.insert((due, self.sent), (frame, offload));
    }

    fn is_full(&self) -> bool {
        self.frames.len() >= MAX_FRAMES || self.bytes >= MAX_BYTES
    }

    /// Returns the next frame that has arrived.
    fn receive(&mut self, now: Instant) -> Option<(Vec<u8>, Offload)> {
        let first = self.frames.first_entry().filter(|entry| entry.key().0 <= now)?;
        let (frame, offload) = first.remove();
        self.bytes -= frame.len();
        Some((frame, offload))
    }

    fn due(&self) -> Option<Instant> {
        self.frames.first_key_value().map(|((due, _), _)| *due)
    }
}

impl<L: Link> Faulty<L> {
    /// Puts a bad wire before `link`.
    pub fn new(link: L, faults: Faults, now: Instant) -> Faulty<L> {
        Faulty {
            link,
            chance: Chance { faults, state: faults.seed.wrapping_add(0x9e37_79b9_7f4a_7c15) },
            from_guest: Wire::default(),
            to_guest: Wire::default(),
            buf: vec![0; MAX_FRAME].into_boxed_slice(),
            now,
        }
    }
}

impl<L: Link> Link for Faulty<L> {
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        if frame.len() > MAX_FRAME {
            return Err(DropReason::TooLong);
        }
        self.from_guest.send(frame, offload, &mut self.chance, self.now);
        Ok(())
    }

    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        while !self.to_guest.is_full()
            && let Some(pulled) = self.link.pull(&mut self.buf)
        {
            let frame = &self.buf[..pulled.len];
            self.to_guest.send(frame, pulled.offload, &mut self.chance, self.now);
        }
        loop {
            let (frame, offload) = self.to_guest.receive(self.now)?;
            if let Some(room) = buf.get_mut(..frame.len()) {
                room.copy_from_slice(&frame);
                return Some(Pulled { len: frame.len(), offload });
            }
        }
    }

    fn poll(&mut self, now: Instant) {
        self.now = self.now.max(now);
        while let Some((frame, offload)) = self.from_guest.receive(self.now) {
            // The link counts what it drops.
            let _ = self.link.push(&frame, offload);
        }
        self.link.poll(now);
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let due = [self.link.deadline(now), self.from_guest.due(), self.to_guest.due()];
        due.into_iter().flatten().min()
    }

    fn set_guest_offloads(&mut self, accepted: GuestOffloads) {
        self.link.set_guest_offloads(accepted);
    }

    pass_on_the_rest!();
}
