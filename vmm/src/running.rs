//! A machine that runs: its threads, what others may ask of it, and how it ended.
//!
//! The first vCPU that has a reason to stop decides the [`Exit`]; the others are kicked out of the guest. Whichever way a machine ends,
//! also by being dropped, every thread has been joined and every device stopped when it is gone.

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use crate::board::Board;
use crate::bus::Bus;
use crate::devices::acpi_pm::PowerManagement;
use crate::devices::serial::Serial;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::snapshot::{Gate, Paused};
use crate::vcpu::failure::{Cause, Failure, Registers};
use crate::vcpu::kick::{self, Kick};
use crate::vcpu::run::Vcpu;

/// Stack of each thread: the exit path is shallow.
const STACK: usize = 256 * 1024;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest turned itself off.
    Shutdown,
    /// The guest reset itself: build a new machine to boot it again.
    Reset,
    /// [`Handle::stop`] was called, or the machine was dropped.
    Stopped,
    /// The guest cannot go on.
    Failed(Failure),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Shutdown => f.write_str("Guest turned itself off"),
            Exit::Reset => f.write_str("Guest reset itself"),
            Exit::Stopped => f.write_str("Guest was stopped"),
            Exit::Failed(failure) => failure.fmt(f),
        }
    }
}

/// What the threads share. `exit` and the gate are locked alone; each kick has its own lock, taken after they have been released.
pub(crate) struct Shared {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    stopping: AtomicBool,
    exit: Mutex<Option<Exit>>,
    exited: Condvar,
    kicks: Vec<Kick>,
    pub(crate) gate: Gate,
    pub(crate) board: Board,
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Stops the machine with `exit`, unless it stops already.
    pub(crate) fn finish(&self, exit: Exit) {
        self.exit().get_or_insert(exit);
        self.stopping.store(true, SeqCst);
        self.exited.notify_all();
        self.gate.break_down();
        self.kick();
    }

    /// Makes every vCPU look why.
    pub(crate) fn kick(&self) {
        self.kicks.iter().for_each(Kick::kick);
    }

    pub(crate) fn kick_of(&self, vcpu: u8) -> &Kick {
        &self.kicks[usize::from(vcpu)]
    }

    /// Returns the number of vCPUs.
    pub(crate) fn cpus(&self) -> usize {
        self.kicks.len()
    }

    fn wait(&self) -> Exit {
        let mut exit = self.exit();
        loop {
            if let Some(exit) = &*exit {
                return exit.clone();
            }
            exit = self.exited.wait(exit).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns how the machine has ended, if it has.
    pub(crate) fn exit(&self) -> MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The finished parts of a machine, about to run.
pub(crate) struct Parts {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) memory: GuestMemory,
    pub(crate) console_writer: Option<Box<dyn Write + Send>>,
    pub(crate) serial: Arc<Mutex<Serial>>,
    pub(crate) power: Arc<Mutex<PowerManagement>>,
    pub(crate) board: Board,
}

/// A running machine. Dropping it stops it.
pub struct Running {
    shared: Arc<Shared>,
    vcpus: Vec<JoinHandle<Vcpu>>,
    console_writer: Option<JoinHandle<()>>,
    serial: Arc<Mutex<Serial>>,
    power: Arc<Mutex<PowerManagement>>,
    // Last: unmapped after everything that reaches into it.
    memory: Arc<GuestMemory>,
}

impl Running {
    pub(crate) fn start(parts: Parts) -> Result<Self, Error> {
        kick::install_handler();
        let shared = Arc::new(Shared {
            ports: parts.ports,
            mmio: parts.mmio,
            stopping: AtomicBool::new(false),
            exit: Mutex::new(None),
            exited: Condvar::new(),
            kicks: parts.vcpus.iter().map(|_| Kick::default()).collect(),
            gate: Gate::default(),
            board: parts.board,
        });
        // From here on, dropping `running` on an error stops and joins what has been started.
        let mut running = Self {
            shared,
            vcpus: Vec::with_capacity(parts.vcpus.len()),
            console_writer: None,
            serial: parts.serial,
            power: parts.power,
            memory: Arc::new(parts.memory),
        };
        if let Some(writer) = parts.console_writer {
            let console = running.shared.board.console.clone();
            console.open();
            running.console_writer = Some(spawn("console", move || console.write_to(writer))?);
        }
        for vcpu in parts.vcpus {
            let shared = running.shared.clone();
            let name = format!("vcpu{}", vcpu.index);
            running.vcpus.push(spawn(&name, move || run_vcpu(vcpu, &shared))?);
        }
        Ok(running)
    }

    /// Returns a handle to ask something of the machine from any thread.
    pub fn handle(&self) -> Handle {
        Handle {
            shared: Arc::downgrade(&self.shared),
            serial: Arc::downgrade(&self.serial),
            power: Arc::downgrade(&self.power),
            memory: Arc::downgrade(&self.memory),
        }
    }

    /// Waits until the machine has ended. Every thread has been joined and every device stopped when it returns.
    pub fn wait(mut self) -> Exit {
        let exit = self.shared.wait();
        self.join();
        exit
    }

    fn join(&mut self) {
        self.shared.finish(Exit::Stopped);
        for vcpu in self.vcpus.drain(..) {
            // The thread catches its own panics; a lost one has nothing to give back but its vCPU.
            drop(vcpu.join());
        }
        self.shared.board.pci.stop();
        self.shared.board.console.close();
        if let Some(writer) = self.console_writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.join();
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let start = move || {
        kick::block_other_signals();
        body()
    };
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(start);
    thread.map_err(|source| Error::Thread { name: name.to_owned(), source })
}

/// The body of a vCPU's thread. A panic in the code that serves the guest ends the machine, not the process.
fn run_vcpu(mut vcpu: Vcpu, shared: &Shared) -> Vcpu {
    let kick = &shared.kicks[usize::from(vcpu.index)];
    let armed = kick.arm(&mut vcpu.fd);
    let outcome = catch_unwind(AssertUnwindSafe(|| vcpu.run(shared)));
    drop(armed);
    let exit = outcome.unwrap_or_else(|panic| {
        let cause = Cause::Panicked { message: panic_message(&*panic) };
        Some(Exit::Failed(Failure {
            vcpu: vcpu.index,
            cause,
            registers: Registers::read(&vcpu.fd),
        }))
    });
    if let Some(exit) = exit {
        shared.finish(exit);
    }
    vcpu
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Asks things of a running machine; does nothing once the machine is gone.
#[derive(Clone)]
pub struct Handle {
    shared: Weak<Shared>,
    serial: Weak<Mutex<Serial>>,
    power: Weak<Mutex<PowerManagement>>,
    memory: Weak<GuestMemory>,
}

impl Handle {
    /// Presses the power button: a guest that listens shuts down.
    pub fn power_button(&self) {
        if let Some(power) = self.power.upgrade() {
            power.lock().unwrap_or_else(PoisonError::into_inner).press_power_button();
        }
    }

    /// Stops the machine at once, as by pulling the plug.
    pub fn stop(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.finish(Exit::Stopped);
        }
    }

    /// Returns the guest's RAM, which the guest uses meanwhile; `None` once the machine is gone.
    pub fn memory(&self) -> Option<GuestMemory> {
        self.memory.upgrade().map(|memory| GuestMemory::clone(&memory))
    }

    /// Holds the machine still: every vCPU leaves the guest with its I/O finished, every device finishes the requests under way,
    /// and the console's output is written.
    ///
    /// # Errors
    /// [`Error::Ended`] when the machine has ended meanwhile, [`Error::AlreadyPaused`] when it is paused, [`Error::Kvm`] when KVM
    /// refuses something, which stops the machine.
    pub fn pause(&self) -> Result<Paused, Error> {
        let gone = || Error::Ended(Box::new(Exit::Stopped));
        let shared = self.shared.upgrade().ok_or_else(gone)?;
        let memory = self.memory.upgrade().ok_or_else(gone)?;
        Paused::new(shared, GuestMemory::clone(&memory))
    }

    /// Types `bytes` on the serial console.
    pub fn console_input(&self, bytes: &[u8]) {
        if let Some(serial) = self.serial.upgrade() {
            serial.lock().unwrap_or_else(PoisonError::into_inner).receive(bytes);
        }
    }
}
