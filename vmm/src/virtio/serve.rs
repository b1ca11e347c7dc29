//! The thread that serves queues one request at a time, each answered before the next is taken.
//!
//! What gains by batches or by several requests in flight has a loop of its own: block and net.

use super::chain::Chain;
use super::queue::{Popped, QueueFault, Virtqueue};
use super::wait;
use super::worker::{Progress, Stop};

/// Most queues that one thread serves.
pub(super) const MOST_QUEUES: usize = 5;

/// Serves `queues` until asked to stop or until the driver has broken one. `answer` carries out the
/// request in a chain and returns how many bytes it has written to its buffers.
pub(super) fn serve(
    mut queues: Vec<Virtqueue>,
    stop: &Stop,
    answer: impl FnMut(&Virtqueue, &Chain) -> u32,
) -> Progress {
    debug_assert!(queues.len() <= MOST_QUEUES);
    if let Err(fault) = run(&mut queues, stop, answer)
        && let Some(queue) = queues.first()
    {
        queue.signals().needs_reset(fault);
    }
    queues.iter().map(|queue| (queue.index(), queue.state())).collect()
}

fn run(
    queues: &mut [Virtqueue],
    stop: &Stop,
    mut answer: impl FnMut(&Virtqueue, &Chain) -> u32,
) -> Result<(), QueueFault> {
    let mut chain = Chain::default();
    loop {
        for queue in queues.iter_mut() {
            wait::clear(queue.kick());
            while !stop.is_set() && next(queue, &mut chain, &mut answer)? {}
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
        let mut fds = [wait::fd(stop.event()); MOST_QUEUES + 1];
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

/// Serves one request; returns whether there was one.
fn next(
    queue: &mut Virtqueue,
    chain: &mut Chain,
    answer: &mut impl FnMut(&Virtqueue, &Chain) -> u32,
) -> Result<bool, QueueFault> {
    let written = match queue.pop(chain)? {
        Popped::Empty => return Ok(false),
        Popped::Malformed(malformed) => {
            queue.signals().complain(malformed);
            0
        }
        Popped::Request => answer(queue, chain),
    };
    queue.publish(&[(chain.head, written)])?;
    queue.notify()?;
    Ok(true)
}
