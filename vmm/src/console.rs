//! The way of the guest's console output from the serial port to whoever reads it.
//!
//! A vCPU only appends to a bounded queue; one thread writes what has gathered, in batches of [`BATCH`] time. A reader that falls
//! too far behind loses output, and the place is marked: the guest never waits for it.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::devices::serial::ConsoleOutput;

/// How long output gathers before it is written.
const BATCH: Duration = Duration::from_millis(10);
/// Output that waits at most.
const LIMIT: usize = 256 * 1024;

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    lost: u64,
    /// The machine is gone, or nobody reads.
    closed: bool,
    /// The writer waits for a first byte.
    idle: bool,
    /// The writer has taken bytes that it has not written yet.
    writing: bool,
    /// Somebody waits in [`Console::drain`]: no gathering.
    hurried: bool,
}

/// The queue between the port and the writer. Closed until somebody reads.
pub(crate) struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

impl Console {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { closed: true, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Returns the port's end.
    pub(crate) fn input(self: &Arc<Self>) -> Box<dyn ConsoleOutput> {
        Box::new(Input(self.clone()))
    }

    /// Begins to take output: somebody is about to call [`Console::write_to`].
    pub(crate) fn open(&self) {
        self.lock().closed = false;
    }

    /// Ends [`Console::write_to`] after what has been queued.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until all output so far has been written, for `limit` at most. Returns whether it has been.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.hurried = true;
        self.changed.notify_all();
        let full = |state: &mut State| !state.closed && (state.writing || !state.bytes.is_empty());
        let waited = self.changed.wait_timeout_while(state, limit, full);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.hurried = false;
        !timeout.timed_out()
    }

    /// Writes all output to `writer` until the console is closed. A writer that fails gets nothing more.
    pub(crate) fn write_to(&self, mut writer: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            if mem::take(&mut state.writing) {
                self.changed.notify_all();
            }
            while state.bytes.is_empty() && !state.closed {
                state.idle = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.closed {
                let gathering = |state: &mut State| {
                    !state.closed && !state.hurried && state.bytes.len() < LIMIT / 2
                };
                let (gathered, _) = self
                    .changed
                    .wait_timeout_while(state, BATCH, gathering)
                    .unwrap_or_else(PoisonError::into_inner);
                state = gathered;
            }
            mem::swap(&mut batch, &mut state.bytes);
            let lost = mem::take(&mut state.lost);
            let closed = state.closed;
            state.writing = true;
            drop(state);
            if lost > 0 {
                batch.extend_from_slice(
                    format!("\r\n[{lost} bytes of console output lost]\r\n").as_bytes(),
                );
            }
            if let Err(error) = self.deliver(&mut *writer, &batch) {
                tracing::warn!(%error, "console output can no longer be written");
                self.lock().closed = true;
                self.changed.notify_all();
                return;
            }
            batch.clear();
            if closed {
                return;
            }
        }
    }

    /// Writes all of `batch`. A writer that cannot take more just now is asked again, until the console is closed.
    fn deliver(&self, writer: &mut dyn Write, mut batch: &[u8]) -> io::Result<()> {
        while !batch.is_empty() {
            match writer.write(batch) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => batch = &batch[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.lock().closed => {
                    thread::sleep(BATCH);
                }
                Err(error) => return Err(error),
            }
        }
        writer.flush()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Input(Arc<Console>);

impl ConsoleOutput for Input {
    fn put(&mut self, byte: u8) {
        let mut state = self.0.lock();
        if state.closed {
            return;
        }
        if state.bytes.len() >= LIMIT {
            state.lost += 1;
            return;
        }
        state.bytes.push(byte);
        let half_full = state.bytes.len() == LIMIT / 2;
        let idle = mem::take(&mut state.idle);
        drop(state);
        if idle || half_full {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<u8>>>);

    impl Write for Collector {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_put_before_closing_is_written() {
        let console = Console::new();
        console.open();
        let collector = Collector::default();
        let writer = thread::spawn({
            let (console, collector) = (console.clone(), collector.clone());
            move || console.write_to(Box::new(collector))
        });
        let mut input = console.input();
        for byte in b"one\ntwo\nthree" {
            input.put(*byte);
        }
        console.close();
        writer.join().unwrap();
        assert_eq!(*collector.0.lock().unwrap(), b"one\ntwo\nthree");
    }

    #[test]
    fn drained_output_has_been_written() {
        let console = Console::new();
        assert!(console.drain(Duration::ZERO), "nobody reads");
        console.open();
        let collector = Collector::default();
        let writer = thread::spawn({
            let (console, collector) = (console.clone(), collector.clone());
            move || console.write_to(Box::new(collector))
        });
        let mut input = console.input();
        for round in 1..=100 {
            input.put(b'.');
            assert!(console.drain(Duration::from_secs(60)));
            assert_eq!(collector.0.lock().unwrap().len(), round);
        }
        console.close();
        writer.join().unwrap();
    }

    #[test]
    fn a_writer_that_would_block_is_asked_again() {
        struct Reluctant(Collector, bool);
        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 { Err(ErrorKind::WouldBlock.into()) } else { self.0.write(&bytes[..1]) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new();
        console.open();
        let collector = Collector::default();
        console.deliver(&mut Reluctant(collector.clone(), false), b"abc").unwrap();
        assert_eq!(*collector.0.lock().unwrap(), b"abc");
    }

    #[test]
    fn a_stalled_reader_loses_output_without_holding_the_guest() {
        struct Stalled(mpsc::Receiver<()>, Collector);
        impl Write for Stalled {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _ = self.0.recv();
                self.1.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new();
        console.open();
        let collector = Collector::default();
        let (release, stalled) = mpsc::channel();
        let writer = thread::spawn({
            let (console, collector) = (console.clone(), collector.clone());
            move || console.write_to(Box::new(Stalled(stalled, collector)))
        });
        let mut input = console.input();
        for _ in 0..3 * LIMIT {
            input.put(b'.');
        }
        drop(release);
        console.close();
        writer.join().unwrap();
        let written = collector.0.lock().unwrap();
        assert!(written.len() < 3 * LIMIT);
        assert!(String::from_utf8_lossy(&written).contains("bytes of console output lost"));
    }
}
