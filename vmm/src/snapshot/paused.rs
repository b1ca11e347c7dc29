//! Holding a running machine still.
//!
//! The [`Gate`] stops the vCPU threads: each leaves the guest, finishes the I/O that it was about, and waits. Only then the
//! devices' threads are taken back, so that the last interrupts of their requests are in the local APICs before those are read.
//! A vCPU's state is read by its own thread, for KVM wants it so.
//!
//! Lock order: the gate's lock is taken alone.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{MachineState, PlatformState, VcpuState};
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::running::{Exit, Shared};

/// How long the pause waits for a slow reader of the console.
const CONSOLE_LIMIT: Duration = Duration::from_secs(2);

/// Where vCPU threads wait while the machine is paused.
#[derive(Default)]
pub(crate) struct Gate {
    /// As `State::closed`, for a look without the lock.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// The machine ends: nobody waits any more.
    broken: bool,
    waiting: usize,
    /// The slots that the waiting threads fill with their vCPU's state; empty when nobody asks.
    asked: Vec<Option<Result<VcpuState, Error>>>,
}

impl Gate {
    /// Returns whether vCPUs shall come out of the guest and [wait](Gate::wait).
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Lets nobody wait any more, for good.
    pub(crate) fn break_down(&self) {
        self.lock().broken = true;
        self.changed.notify_all();
    }

    /// Waits, as vCPU `index`, until the gate is open; `read` gives the vCPU's state when that is asked for.
    pub(crate) fn wait(&self, index: usize, read: impl Fn() -> Result<VcpuState, Error>) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed && !state.broken {
            if matches!(state.asked.get(index), Some(None)) {
                drop(state);
                let answer = read();
                state = self.lock();
                if let Some(slot) = state.asked.get_mut(index) {
                    *slot = Some(answer);
                }
                self.changed.notify_all();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.waiting -= 1;
    }

    /// Closes the gate. Returns false when it is closed already.
    fn close(&self) -> bool {
        let mut state = self.lock();
        self.closed.store(true, SeqCst);
        !std::mem::replace(&mut state.closed, true)
    }

    fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        self.closed.store(false, SeqCst);
        self.changed.notify_all();
    }

    /// Waits until `count` threads wait. Returns false when the machine ends instead.
    fn wait_for(&self, count: usize) -> bool {
        let mut state = self.lock();
        while state.waiting < count && !state.broken {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.broken
    }

    /// Asks the `count` waiting threads for their vCPUs' states; `None` when the machine ends instead.
    fn ask(&self, count: usize) -> Option<Result<Vec<VcpuState>, Error>> {
        let mut state = self.lock();
        state.asked.resize_with(count, || None);
        self.changed.notify_all();
        while state.asked.iter().any(Option::is_none) && !state.broken {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut state.asked).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine that holds still: no vCPU runs, and no device touches the guest's memory.
///
/// Dropping it without [`Paused::resume`] stops the machine.
pub struct Paused {
    shared: Arc<Shared>,
    memory: GuestMemory,
    resumed: bool,
}

impl Paused {
    /// Pauses the machine of `shared`.
    pub(crate) fn new(shared: Arc<Shared>, memory: GuestMemory) -> Result<Self, Error> {
        if !shared.gate.close() {
            return Err(Error::AlreadyPaused);
        }
        // From here on an error stops the machine.
        let paused = Self { shared, memory, resumed: false };
        let shared = &paused.shared;
        shared.kick();
        if !shared.gate.wait_for(shared.cpus()) {
            return Err(paused.ended());
        }
        shared.board.pci.pause()?;
        if !shared.board.console.drain(CONSOLE_LIMIT) {
            tracing::warn!("the reader of the console is slow: the pause does not wait for it");
        }
        Ok(paused)
    }

    /// Returns the machine's state without its RAM.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM does not tell something; [`Error::Ended`] when the machine has been stopped meanwhile.
    pub fn state(&self) -> Result<MachineState, Error> {
        let shared = &self.shared;
        let board = &shared.board;
        // Devices first, the local APICs last: an interrupt that comes in between is there twice rather than not at all.
        let (ports, mmio) = (shared.ports.save(), shared.mmio.save());
        let functions = board.pci.save();
        let platform = PlatformState::read(&board.vm)?;
        let vcpus = shared.gate.ask(shared.cpus()).ok_or_else(|| self.ended())??;
        let (cpus, memory) = (board.config.cpus, board.config.memory);
        Ok(MachineState { cpus, memory, platform, vcpus, ports, mmio, functions })
    }

    /// Returns the guest's RAM, which nobody changes as long as the machine is paused.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Lets the machine go on.
    ///
    /// # Errors
    /// [`Error::Device`] when a device cannot go on; [`Error::Ended`] when the machine has been stopped meanwhile. The machine is
    /// stopped then.
    pub fn resume(mut self) -> Result<(), Error> {
        if self.shared.is_stopping() {
            return Err(self.ended());
        }
        self.shared.board.pci.resume()?;
        self.resumed = true;
        self.shared.gate.open();
        Ok(())
    }

    fn ended(&self) -> Error {
        Error::Ended(Box::new(self.shared.exit().clone().unwrap_or(Exit::Stopped)))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if !self.resumed {
            self.shared.finish(Exit::Stopped);
        }
    }
}
