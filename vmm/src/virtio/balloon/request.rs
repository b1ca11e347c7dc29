//! The requests of a balloon device: takes what the driver gives away.
//!
//! A range may be anything that the guest makes up: what is not RAM is left alone, and RAM that the guest still uses is the
//! guest's loss.

use std::ops::Range;

use crate::memory::{self, GuestMemory, PAGE};
use crate::virtio::chain::{Chain, Cursor, NotMemory};
use crate::virtio::queue::Virtqueue;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// Most bytes of page numbers taken from one request; Linux sends 1 KiB. A page left out stays with the guest.
const MOST_NUMBERS: usize = 16 << 10;

/// Takes what a request gives away; nothing is ever written to its buffers.
pub(super) fn answer(queue: &Virtqueue, chain: &Chain) -> u32 {
    match queue.index() {
        INFLATE => {
            if let Err(error) = inflate(queue, chain) {
                queue.signals().complain(error);
            }
        }
        DEFLATE => {}
        _ => report(queue, chain),
    }
    0
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
