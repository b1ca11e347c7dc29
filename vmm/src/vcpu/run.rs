//! The loop of a vCPU thread: enter the guest, serve its exit, again.
//!
//! Nothing here allocates until the guest has failed. Port accesses with a repeat prefix arrive as several elements in one exit and
//! are served one by one.

use kvm_bindings::{CpuId, KVM_EXIT_IO_IN, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::failure::{Cause, Failure, Registers};
use crate::bus::{Action, Bus};
use crate::running::{Exit, Shared};
use crate::snapshot::{VcpuState, tell_stopped};

/// How often a vCPU came out of the guest to us, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Exits {
    port_reads: u64,
    port_writes: u64,
    memory_reads: u64,
    memory_writes: u64,
    signals: u64,
}

/// One virtual CPU, run by one thread.
pub(crate) struct Vcpu {
    pub(crate) index: u8,
    pub(crate) fd: VcpuFd,
    /// What the guest has been told that its processor is.
    pub(crate) cpuid: CpuId,
}

enum Step {
    Continue,
    /// A kick, a stray signal, or an application processor that was woken before its SIPI. All I/O is finished.
    Interrupted,
    Port,
    Act(Action),
    Fail(Cause),
    InternalError,
}

impl Vcpu {
    /// Runs until the machine stops, and says why if this vCPU is the one that stops it.
    pub(crate) fn run(&mut self, shared: &Shared) -> Option<Exit> {
        let mut exits = Exits::default();
        let exit = loop {
            if shared.is_stopping() {
                break None;
            }
            let pausing = shared.gate.is_closed();
            if pausing {
                // KVM finishes the I/O of the last exit when it is entered again, and this time goes no further.
                shared.kick_of(self.index).set_immediate_exit(true);
            }
            let action = match self.step(shared, &mut exits) {
                Step::Interrupted if pausing => {
                    self.pause(shared);
                    continue;
                }
                Step::Continue | Step::Interrupted => continue,
                Step::Port => self.serve_ports(&shared.ports, &mut exits),
                Step::Act(action) => action,
                Step::Fail(cause) => break Some(self.failure(cause)),
                Step::InternalError => break Some(self.internal_error()),
            };
            match action {
                Action::None => {}
                Action::Reset => break Some(Exit::Reset),
                Action::Shutdown => break Some(Exit::Shutdown),
            }
        };
        tracing::debug!(vcpu = self.index, ?exits, "vCPU stops");
        exit
    }

    /// Waits at the gate.
    fn pause(&mut self, shared: &Shared) {
        let board = &shared.board;
        let read = || VcpuState::read(self, &board.msrs, board.xsave_len);
        shared.gate.wait(self.index.into(), read);
        tell_stopped(&self.fd);
        shared.kick_of(self.index).set_immediate_exit(false);
    }

    fn step(&mut self, shared: &Shared, exits: &mut Exits) -> Step {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Step::Port,
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.memory_reads += 1;
                let claimed = shared.mmio.read(address, data);
                tracing::trace!(address, len = data.len(), claimed, "memory read");
                Step::Continue
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.memory_writes += 1;
                tracing::trace!(address, ?data, "memory write");
                shared.mmio.write(address, data).map_or(Step::Continue, Step::Act)
            }
            Ok(VcpuExit::Intr) => Step::Interrupted,
            Ok(VcpuExit::Shutdown) => Step::Fail(Cause::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _)) => Step::Fail(Cause::FailEntry { reason }),
            Ok(VcpuExit::InternalError) => Step::InternalError,
            Ok(other) => Step::Fail(Cause::UnexpectedExit { exit: format!("{other:?}") }),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    exits.signals += 1;
                    Step::Interrupted
                }
                errno => Step::Fail(Cause::RunRefused { errno }),
            },
        }
    }

    fn serve_ports(&mut self, ports: &Bus, exits: &mut Exits) -> Action {
        let run: &mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: called only right after an exit for port access, for which the kernel has filled this member.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let start = (&raw mut *run).cast::<u8>();
        // SAFETY: the kernel places `count` elements of `size` bytes at `data_offset` within the mapping of this vCPU, and does
        // not touch them before the next KVM_RUN, for which the exclusive borrow of `self` is needed.
        let data = unsafe {
            std::slice::from_raw_parts_mut(
                start.add(io.data_offset as usize),
                size * io.count as usize,
            )
        };
        let reads = u32::from(io.direction) == KVM_EXIT_IO_IN;
        for element in data.chunks_exact_mut(size.max(1)) {
            if reads {
                exits.port_reads += 1;
                ports.read(io.port.into(), element);
                tracing::trace!(port = io.port, data = ?element, "port read");
            } else {
                exits.port_writes += 1;
                tracing::trace!(port = io.port, data = ?element, "port write");
                match ports.write(io.port.into(), element) {
                    None | Some(Action::None) => {}
                    Some(action) => return action,
                }
            }
        }
        Action::None
    }

    fn failure(&self, cause: Cause) -> Exit {
        Exit::Failed(Failure { vcpu: self.index, cause, registers: Registers::read(&self.fd) })
    }

    fn internal_error(&mut self) -> Exit {
        const EMULATION: u32 = 1;
        const FLAG_INSTRUCTION: u64 = 1;
        // SAFETY: called only right after an internal error, for which the kernel has filled this member.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let said = internal.data.len().min(internal.ndata as usize);
        let mut data = internal.data[..said].to_vec();
        let mut instruction = Vec::new();
        // An emulation failure with its flag set has one byte of length and 15 of instruction after the flags.
        if internal.suberror == EMULATION && data.len() >= 3 && data[0] & FLAG_INSTRUCTION != 0 {
            let bytes: Vec<u8> = data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
            instruction = bytes[1..=usize::from(bytes[0]).min(15)].to_vec();
            data.drain(..3);
        }
        self.failure(Cause::InternalError { suberror: internal.suberror, instruction, data })
    }
}
