//! The thread of a balloon device: takes what the driver gives away.
//!
//! A range may be anything that the guest makes up: what is not RAM is left alone, and RAM that the guest still uses is the
//! guest's loss.

use std::ops::Range;

use super::QUEUES;
use crate::memory::{self, GuestMemory, PAGE};
use crate::virtio::chain::{Chain, Cursor, NotMemory};
use crate::virtio::queue::{Popped, QueueFault, Virtqueue};
use crate::virtio::wait;
use crate::virtio::worker::{Progress, Stop};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// Most bytes of page numbers taken from one request; Linux sends 1 KiB. A page left out stays with the guest.
const MOST_NUMBERS: usize = 16 << 10;

/// Serves `queues` until asked to stop or until the driver has broken one.
pub(super) fn serve(mut queues: Vec<Virtqueue>, stop: &Stop) -> Progress {
    if let Err(fault) = run(&mut queues, stop)
        && let Some(queue) = queues.first()
    {
        queue.signals().needs_reset(fault);
    }
    queues.iter().map(|queue| (queue.index(), queue.state())).collect()
}

fn run(queues: &mut [Virtqueue], stop: &Stop) -> Result<(), QueueFault> {
    let mut chain = Chain::default();
    loop {
        for queue in queues.iter_mut() {
            wait::clear(queue.kick());
            while !stop.is_set() && next(queue, &mut chain)? {}
        }
        if stop.is_set() {
            return Ok(());
        }
        let mut more = false;
        for queue in queues.iter_mut() {
            more |= queue.enable_kicks()?;
        }
        if more {
            continue;
        }
        let mut fds = [wait::fd(stop.event()); QUEUES + 1];
        for (fd, queue) in fds[1..].iter_mut().zip(queues.iter()) {
            *fd = wait::fd(queue.kick());
        }
        if let Err(error) = wait::readable(fds, None) {
            if let Some(queue) = queues.first() {
                queue.signals().needs_reset(error);
            }
            return Ok(());
        }
    }
}

/// Serves one request; nothing is ever written to its buffers.
fn next(queue: &mut Virtqueue, chain: &mut Chain) -> Result<bool, QueueFault> {
    match queue.pop(chain)? {
        Popped::Empty => return Ok(false),
        Popped::Malformed(malformed) => queue.signals().complain(malformed),
        Popped::Request => match queue.index() {
            INFLATE => {
                if let Err(error) = inflate(queue, chain) {
                    queue.signals().complain(error);
                }
            }
            DEFLATE => {}
            _ => report(queue, chain),
        },
    }
    queue.publish(&[(chain.head, 0)])?;
    queue.notify()?;
    Ok(true)
}

/// Takes the pages whose numbers, 32 bits each, are in the request.
fn inflate(queue: &Virtqueue, chain: &Chain) -> Result<(), NotMemory> {
    let mut numbers = [0; MOST_NUMBERS];
    let len = Cursor::new(&chain.readable).read(queue.memory(), &mut numbers)?;
    let mut run: Range<u64> = 0..0;
    for number in numbers[..len].chunks_exact(4) {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(number);
        let start = u64::from(u32::from_le_bytes(bytes)) * PAGE;
        // Linux fills its array upwards or downwards, whatever its allocator gives.
        if start == run.end && run.end > 0 {
            run.end += PAGE;
        } else if start + PAGE == run.start {
            run.start = start;
        } else {
            discard(queue, run);
            run = start..start + PAGE;
        }
    }
    discard(queue, run);
    Ok(())
}

/// Takes the ranges that the request's buffers are.
fn report(queue: &Virtqueue, chain: &Chain) {
    for segment in &chain.writable {
        let start = segment.address.0;
        discard(queue, start..start.saturating_add(segment.len.into()));
    }
}

fn discard(queue: &Virtqueue, range: Range<u64>) {
    let memory: &GuestMemory = queue.memory();
    if let Err(error) = memory::discard(memory, range.clone()) {
        // The host's trouble, and only its memory is at stake: the request is served.
        let (start, end) = (range.start, range.end);
        queue.signals().complain(format_args!("cannot take back {start:#x}..{end:#x}: {error}"));
    }
}
