//! The thread that serves a device's queues, and how it is asked to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Stack of a worker. Enough for a qcow2 write through its tables in a debug build.
const STACK: usize = 512 << 10;

/// What a worker hands back at its end: how far each of its queues has come.
pub(super) type Progress = Vec<(u16, QueueState)>;

/// The wish to stop, as a flag for a busy thread and as a descriptor for a waiting one.
pub(super) struct Stop {
    flag: AtomicBool,
    event: EventFd,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { flag: AtomicBool::new(false), event })
    }

    /// Returns whether the thread must end.
    pub(super) fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Returns the descriptor that becomes readable, and stays so, when the thread must end.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        // Fails only when the counter is full, and then it is readable.
        let _ = self.event.write(1);
    }
}

/// A running thread. Stopped and joined when dropped.
pub(super) struct Worker {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Progress>>,
}

impl Worker {
    /// Starts `serve` on a thread called `name`.
    pub(super) fn spawn(
        name: &str,
        serve: impl FnOnce(&Stop) -> Progress + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::new()?);
        let seen = stop.clone();
        // Linux cuts names at 15 bytes.
        let short: String = name.chars().take(15).collect();
        let thread = Builder::new().name(short).stack_size(STACK).spawn(move || serve(&seen))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks the thread to end without waiting for it.
    pub(super) fn ask_to_stop(&self) {
        self.stop.set();
    }

    /// Waits for the thread's end; a thread that has panicked hands back nothing.
    pub(super) fn join(mut self) -> Progress {
        self.finish()
    }

    fn finish(&mut self) -> Progress {
        self.stop.set();
        let Some(thread) = self.thread.take() else { return Vec::new() };
        thread.join().unwrap_or_else(|_| {
            tracing::error!("a device thread has panicked");
            Vec::new()
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Stops all `workers` side by side and returns what they hand back, in their order.
pub(super) fn stop_all(workers: &mut Vec<Worker>) -> Progress {
    workers.iter().for_each(Worker::ask_to_stop);
    workers.drain(..).flat_map(Worker::join).collect()
}
