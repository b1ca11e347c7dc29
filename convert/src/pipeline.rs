//! A disk's data through several threads, with one step in the disk's order.
//!
//! Each thread takes the next piece of the disk, loads it, prepares it beside the others, waits for
//! its turn to give it a place, and completes it beside the others again. The piece stays with its
//! thread from the first step to the last, and with it in the processor's cache; nothing is handed
//! over, so nothing waits in queues and the memory is what the threads' own buffers take.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kvmbake_disk::Block;

use crate::chunk::{CHUNK, Chunk, Place, Scanner};
use crate::error::Error;
use crate::output::Cancel;

/// More threads would only hold more memory: they share the order and the host's disk.
const MAX_THREADS: usize = 16;
/// How often a waiting thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// What one thread does with each piece of the disk.
pub(crate) trait Worker: Send {
    /// What the workers share, each in its turn.
    type Shared: Send;

    /// Does what needs nobody else.
    fn prepare(&mut self, chunks: &[Chunk]) -> Result<(), Error>;

    /// Does what must be done in the disk's order; quickly, for the others wait.
    fn place(&mut self, chunks: &[Chunk], shared: &mut Self::Shared) -> Result<(), Error>;

    /// Does the rest.
    fn complete(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
        let _ = chunks;
        Ok(())
    }
}

/// Returns how many threads should share a disk's data.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// Takes the first `size` bytes of the disk through the workers, each on a thread of its own, in
/// aligned pieces of `span` bytes, which is a multiple of [`CHUNK`]. A piece has the chunks that are
/// not all zeroes, and at least one.
///
/// # Errors
/// The first thing that failed; the other workers stop soon.
pub(crate) fn run<W: Worker>(
    source: &dyn Block,
    size: u64,
    span: u64,
    workers: &mut [W],
    shared: &mut W::Shared,
    cancel: Cancel<'_>,
) -> Result<(), Error> {
    let line = Line {
        source,
        span,
        scan: Mutex::new(Scan { scanner: Scanner::new(source, size), next: 0 }),
        turn: Mutex::new(Turn { number: 0, shared }),
        passed: Condvar::new(),
        cancel,
    };
    let line = &line;
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                scope.spawn(move || {
                    let _watch = StopOnPanic(cancel);
                    line.follow(worker).inspect_err(|_| cancel.fail())
                })
            })
            .collect();
        // Every thread ends before the first error is chosen.
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut error = None;
    for outcome in outcomes {
        if let Err(next) = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            error = Some(Error::first(error, next));
        }
    }
    error.map_or(Ok(()), Err)
}

/// What the threads of one run share. A thread holds at most one of the locks.
struct Line<'a, S> {
    source: &'a dyn Block,
    span: u64,
    scan: Mutex<Scan<'a>>,
    turn: Mutex<Turn<'a, S>>,
    /// Told when a turn has passed.
    passed: Condvar,
    cancel: Cancel<'a>,
}

struct Scan<'a> {
    scanner: Scanner<'a>,
    /// The number of the next piece.
    next: u64,
}

struct Turn<'a, S> {
    /// The piece whose turn it is.
    number: u64,
    shared: &'a mut S,
}

impl<'a, S> Line<'a, S> {
    /// Takes pieces until there is none.
    fn follow<W: Worker<Shared = S>>(&self, worker: &mut W) -> Result<(), Error> {
        let mut places = Vec::new();
        let mut chunks = Vec::new();
        let mut spare: Vec<Chunk> = Vec::new();
        loop {
            self.cancel.check()?;
            let (number, size) = self.next(&mut places)?;
            if places.is_empty() {
                return Ok(());
            }
            for place in places.drain(..) {
                let mut chunk = spare.pop().unwrap_or_else(Chunk::new);
                chunk.load(self.source, place, size)?;
                if chunk.is_zero() { spare.push(chunk) } else { chunks.push(chunk) }
            }
            if !chunks.is_empty() {
                worker.prepare(&chunks)?;
            }
            let mut turn = self.wait(number)?;
            if !chunks.is_empty() {
                worker.place(&chunks, turn.shared)?;
            }
            turn.number += 1;
            drop(turn);
            self.passed.notify_all();
            if !chunks.is_empty() {
                worker.complete(&chunks)?;
            }
            spare.append(&mut chunks);
        }
    }

    /// Finds where the chunks of the next piece are, none at the end; returns its number and the
    /// disk's size.
    fn next(&self, places: &mut Vec<Place>) -> Result<(u64, u64), Error> {
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = u64::MAX;
        while let Some(place) = scan.scanner.next_place(end)? {
            end = (place.offset - place.offset % self.span).saturating_add(self.span);
            places.push(place);
        }
        scan.next += 1;
        Ok((scan.next - 1, scan.scanner.size()))
    }

    /// Waits for the turn of a piece.
    fn wait(&self, number: u64) -> Result<MutexGuard<'_, Turn<'a, S>>, Error> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            self.cancel.check()?;
            if turn.number == number {
                return Ok(turn);
            }
            let woken = self.passed.wait_timeout(turn, LOOK);
            turn = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Lets the other threads end when this one panics.
struct StopOnPanic<'a>(Cancel<'a>);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail();
        }
    }
}

/// Pieces of one chunk.
pub(crate) const SINGLE: u64 = CHUNK as u64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kvmbake_disk::MemoryBlock;

    use super::*;

    /// A disk of which every second mebibyte has data, each the number of its mebibyte.
    fn disk() -> MemoryBlock {
        let mut bytes = vec![0; 40 << 20];
        for (number, mebibyte) in bytes.chunks_mut(CHUNK).enumerate().step_by(2) {
            mebibyte[5000..6000].fill(number as u8 + 1);
        }
        MemoryBlock::read_only(bytes)
    }

    type Through = (Vec<(u64, u8)>, Vec<u64>);

    struct Recorder {
        prepared: Vec<u64>,
        completed: Vec<u64>,
        /// Fails at this chunk.
        fails_at: Option<u64>,
    }

    impl Worker for Recorder {
        type Shared = Vec<(u64, u8)>;

        fn prepare(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
            self.prepared = chunks.iter().map(Chunk::offset).collect();
            if self.fails_at.is_some_and(|at| self.prepared.contains(&at)) {
                return Err(crate::error::invalid(std::path::Path::new("x"), "broken").into());
            }
            Ok(())
        }

        fn place(&mut self, chunks: &[Chunk], shared: &mut Self::Shared) -> Result<(), Error> {
            assert_eq!(self.prepared, chunks.iter().map(Chunk::offset).collect::<Vec<_>>());
            let first = |chunk: &Chunk| (chunk.offset(), chunk.bytes(5000..5001)[0]);
            shared.extend(chunks.iter().map(first));
            Ok(())
        }

        fn complete(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
            self.completed.extend(chunks.iter().map(Chunk::offset));
            Ok(())
        }
    }

    /// Returns the chunks that were placed, with a byte of each, in the order of that; and those
    /// that were completed.
    fn through(threads: usize, span: u64, fails_at: Option<u64>) -> Result<Through, Error> {
        let (wish, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let cancel = Cancel { wish: &wish, failed: &failed };
        let mut workers: Vec<_> = (0..threads)
            .map(|_| Recorder { prepared: Vec::new(), completed: Vec::new(), fails_at })
            .collect();
        let (disk, mut placed) = (disk(), Vec::new());
        run(&disk, disk.len(), span, &mut workers, &mut placed, cancel)?;
        let mut completed: Vec<_> =
            workers.into_iter().flat_map(|worker| worker.completed).collect();
        completed.sort_unstable();
        Ok((placed, completed))
    }

    #[test]
    fn pieces_are_placed_in_order_by_however_many_threads() {
        let expected: Vec<_> =
            (0..40).step_by(2).map(|number| (number << 20, number as u8 + 1)).collect();
        for threads in [1, 2, 7] {
            for span in [1, 2, 8] {
                let (placed, completed) = through(threads, span * SINGLE, None).unwrap();
                assert_eq!(placed, expected, "{threads} threads, {span} chunks");
                let offsets: Vec<_> = expected.iter().map(|place| place.0).collect();
                assert_eq!(completed, offsets, "{threads} threads, {span} chunks");
            }
        }
    }

    #[test]
    fn a_failing_worker_ends_the_others_and_its_error_is_told() {
        for threads in [1, 3] {
            for at in [0, 20 << 20, 38 << 20] {
                let error = through(threads, SINGLE, Some(at)).unwrap_err();
                assert!(error.to_string().contains("broken"), "{error}");
            }
        }
    }
}
