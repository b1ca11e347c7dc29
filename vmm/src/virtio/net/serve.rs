//! The thread of a network device: frames out, the link's own work, frames in, then sleep.
//!
//! Frames pass through two buffers allocated once. When the guest offers no receive buffers, frames
//! stay in the link, whose windows close: that is the back-pressure. The guest's notifications for
//! receive buffers are wanted only then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvmbake_net::link::{GuestOffloads, Link, MAX_FRAME, Pulled};
use virtio_queue::Error as RingError;

use super::{Port, header};
use crate::virtio::chain::{Chain, Cursor, Segment, total};
use crate::virtio::queue::{Popped, QueueFault, Virtqueue};
use crate::virtio::wait;
use crate::virtio::worker::{Progress, Stop};

/// Frames in one direction before the other has its turn.
const BUDGET: usize = 64;
/// Shortest sleep while the guest has no receive buffers: the link's timers may all be due then,
/// and nothing can come of it.
const STARVED_SLEEP: Duration = Duration::from_millis(1);

/// Serves the pair of queues until asked to stop or until the driver has broken one.
pub(super) fn serve(
    port: &Mutex<Port>,
    offloads: GuestOffloads,
    mergeable: bool,
    rx: Virtqueue,
    tx: Virtqueue,
    stop: &Stop,
) -> Progress {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    let Port { link, staged } = &mut *port;
    link.set_guest_offloads(offloads);
    let mut receiver = Receiver::new(rx, mergeable);
    receiver.stage(staged.take());
    let mut sender = Sender::new(tx);
    if let Err(fault) = run(&mut **link, &mut receiver, &mut sender, stop) {
        receiver.queue.signals().needs_reset(fault);
    }
    *staged = receiver.unstage();
    [receiver.queue, sender.queue].iter().map(|queue| (queue.index(), queue.state())).collect()
}

fn run(
    link: &mut dyn Link,
    receiver: &mut Receiver,
    sender: &mut Sender,
    stop: &Stop,
) -> Result<(), QueueFault> {
    wait::clear(receiver.queue.kick());
    wait::clear(sender.queue.kick());
    while !stop.is_set() {
        link.poll(Instant::now());
        sender.queue.disable_kicks()?;
        receiver.queue.disable_kicks()?;
        let sent = sender.send(link)?;
        if sent > 0 {
            link.poll(Instant::now());
        }
        let received = receiver.receive(link)?;
        if sent == BUDGET || received == Received::Budget {
            continue;
        }
        // Each ring is looked at once more between asking for kicks and going to sleep.
        let starved = received == Received::Starved;
        let more = sender.queue.enable_kicks()? | (starved && receiver.queue.enable_kicks()?);
        if more {
            continue;
        }
        sleep(link, receiver, sender, starved, stop);
    }
    Ok(())
}

/// Sleeps until one of the queues, the link or its timers have something to do.
fn sleep(link: &mut dyn Link, receiver: &Receiver, sender: &Sender, starved: bool, stop: &Stop) {
    let before = Instant::now();
    let timeout = link.deadline(before).map(|deadline| {
        let left = deadline.saturating_duration_since(before);
        if starved { left.max(STARVED_SLEEP) } else { left }
    });
    if timeout == Some(Duration::ZERO) {
        return;
    }
    let fds = [
        wait::fd(sender.queue.kick()),
        wait::fd(receiver.queue.kick()),
        link.wake_fd(),
        wait::fd(stop.event()),
    ];
    match wait::readable(fds, timeout) {
        Ok([tx, rx, _, _]) => {
            if tx {
                wait::clear(sender.queue.kick());
            }
            if rx {
                wait::clear(receiver.queue.kick());
            }
        }
        Err(error) => {
            tracing::error!(%error, "cannot wait for the network device");
            std::thread::sleep(STARVED_SLEEP);
        }
    }
}

/// The transmit queue: frames from the guest to the link.
struct Sender {
    queue: Virtqueue,
    chain: Chain,
    frame: Vec<u8>,
    used: Vec<(u16, u32)>,
}

impl Sender {
    fn new(queue: Virtqueue) -> Self {
        let (chain, used) = (Chain::default(), Vec::with_capacity(BUDGET));
        Self { queue, chain, frame: vec![0; MAX_FRAME], used }
    }

    /// Hands frames to the link and gives their buffers back; returns how many.
    fn send(&mut self, link: &mut dyn Link) -> Result<usize, QueueFault> {
        self.used.clear();
        while self.used.len() < BUDGET {
            match self.queue.pop(&mut self.chain)? {
                Popped::Empty => break,
                Popped::Malformed(malformed) => self.queue.signals().complain(malformed),
                Popped::Request => self.push(link),
            }
            self.used.push((self.chain.head, 0));
        }
        if !self.used.is_empty() {
            self.queue.publish(&self.used)?;
            self.queue.notify()?;
        }
        Ok(self.used.len())
    }

    fn push(&mut self, link: &mut dyn Link) {
        let memory = self.queue.memory();
        let mut data = Cursor::new(&self.chain.readable);
        let mut bytes = [0; header::LEN];
        let complain = |reason: &str| self.queue.signals().complain(reason);
        match data.read(memory, &mut bytes) {
            Ok(header::LEN) => {}
            Ok(_) => return complain("frame is shorter than its header"),
            Err(error) => return self.queue.signals().complain(error),
        }
        let Some(offload) = header::decode(&bytes) else {
            return complain("frame asks for a segmentation that was not offered");
        };
        let len = data.remaining();
        if len > MAX_FRAME as u64 {
            return complain("frame is longer than 64 KiB");
        }
        let frame = &mut self.frame[..len as usize];
        match data.read(memory, frame) {
            // The link counts what it drops, and why.
            Ok(_) => drop(link.push(frame, offload)),
            Err(error) => self.queue.signals().complain(error),
        }
    }
}

/// How [`Receiver::receive`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// The link has no more frames.
    All,
    /// The guest has no more buffers.
    Starved,
    /// There may be more.
    Budget,
}

/// The receive queue: frames from the link to the guest.
struct Receiver {
    queue: Virtqueue,
    mergeable: bool,
    chain: Chain,
    frame: Vec<u8>,
    /// The frame in `frame` that still waits for buffers.
    staged: Option<Pulled>,
    /// The buffers collected for it: heads with their room, and their segments in a row.
    used: Vec<(u16, u32)>,
    segments: Vec<Segment>,
}

impl Receiver {
    fn new(queue: Virtqueue, mergeable: bool) -> Self {
        let size = usize::from(queue.size());
        Self {
            queue,
            mergeable,
            chain: Chain::default(),
            frame: vec![0; MAX_FRAME],
            staged: None,
            used: Vec::with_capacity(size),
            segments: Vec::with_capacity(size),
        }
    }

    /// Takes over a frame that was left when the last worker stopped.
    fn stage(&mut self, left: Option<(Pulled, Vec<u8>)>) {
        self.staged = left.map(|(pulled, frame)| {
            let len = frame.len().min(self.frame.len());
            self.frame[..len].copy_from_slice(&frame[..len]);
            pulled
        });
    }

    /// Returns the frame that is left.
    fn unstage(&mut self) -> Option<(Pulled, Vec<u8>)> {
        let pulled = self.staged.take()?;
        Some((pulled, self.frame[..pulled.len.min(self.frame.len())].to_vec()))
    }

    fn receive(&mut self, link: &mut dyn Link) -> Result<Received, QueueFault> {
        let mut received = Received::Budget;
        for _ in 0..BUDGET {
            let staged = self.staged.take().or_else(|| link.pull(&mut self.frame));
            let Some(staged) = staged else {
                received = Received::All;
                break;
            };
            if !self.deliver(&staged)? {
                self.staged = Some(staged);
                received = Received::Starved;
                break;
            }
        }
        self.queue.notify()?;
        Ok(received)
    }

    /// Copies the frame into the guest's buffers, or drops it when no buffers can ever hold it.
    /// Returns false when the guest must offer more first.
    fn deliver(&mut self, frame: &Pulled) -> Result<bool, QueueFault> {
        let needed = (header::LEN + frame.len) as u64;
        let room = self.collect(needed)?;
        let buffers = self.used.len() as u16;
        if room < needed {
            self.queue.unpop(buffers);
            let hopeless = (!self.mergeable && buffers == 1) || buffers == self.queue.size();
            if hopeless {
                let reason = format_args!("receive buffers of {room} bytes for {needed}");
                self.queue.signals().complain(reason);
            }
            return Ok(hopeless);
        }
        let bytes = header::encode(&frame.offload, buffers);
        let mut data = Cursor::new(&self.segments);
        let memory = self.queue.memory();
        let written = data
            .write(memory, &bytes)
            .and_then(|_| data.write(memory, &self.frame[..frame.len.min(self.frame.len())]));
        if let Err(error) = written {
            self.queue.signals().complain(error);
            self.used.iter_mut().for_each(|(_, len)| *len = 0);
        } else if let Some((_, last)) = self.used.last_mut() {
            // All buffers are full but the last.
            *last -= (room - needed) as u32;
        }
        self.queue.publish(&self.used)?;
        Ok(true)
    }

    /// Takes buffers until they have room for `needed` bytes or there are no more, and returns how
    /// much room they have.
    fn collect(&mut self, needed: u64) -> Result<u64, QueueFault> {
        self.used.clear();
        self.segments.clear();
        let mut room = 0;
        while room < needed {
            match self.queue.pop(&mut self.chain)? {
                Popped::Empty => break,
                Popped::Request => {}
                Popped::Malformed(_) => return Err(self.fault()),
            }
            let len = u32::try_from(total(&self.chain.writable)).ok().filter(|&len| len > 0);
            let len = len.ok_or_else(|| self.fault())?;
            room += u64::from(len);
            self.used.push((self.chain.head, len));
            self.segments.extend_from_slice(&self.chain.writable);
            if !self.mergeable {
                break;
            }
        }
        Ok(room)
    }

    fn fault(&self) -> QueueFault {
        QueueFault { index: self.queue.index(), reason: RingError::InvalidChain }
    }
}
