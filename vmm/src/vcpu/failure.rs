//! Why a guest could not go on, with the registers that tell where it was.

use std::fmt;

use kvm_ioctls::VcpuFd;

/// The registers that matter in a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    /// Privilege level: 0 is the kernel.
    pub cpl: u8,
}

impl Registers {
    /// Reads the registers; what KVM does not give is zero.
    pub(crate) fn read(vcpu: &VcpuFd) -> Self {
        let regs = vcpu.get_regs().unwrap_or_default();
        let sregs = vcpu.get_sregs().unwrap_or_default();
        Self {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
            cpl: sregs.ss.dpl,
        }
    }
}

impl Registers {
    /// Returns whether they are those after a reset, as KVM leaves them behind a triple fault on AMD.
    fn is_reset(&self) -> bool {
        (self.rip, self.cs, self.cr3) == (0xfff0, 0xf000, 0)
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rip, rsp, rflags, cr0, cr2, cr3, cr4, efer, cs, cpl } = self;
        write!(f, "rip={rip:#x} cs={cs:#x} cpl={cpl} rsp={rsp:#x} rflags={rflags:#x} ")?;
        write!(f, "cr0={cr0:#x} cr2={cr2:#x} cr3={cr3:#x} cr4={cr4:#x} efer={efer:#x}")
    }
}

/// A guest that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Number of the vCPU that stopped first.
    pub vcpu: u8,
    /// What happened.
    pub cause: Cause,
    /// Where the guest was. After a triple fault on AMD, KVM has already reset them.
    pub registers: Registers,
}

/// What happened to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An exception while delivering a double fault: the guest's kernel is gone.
    TripleFault,
    /// KVM could not go on. Suberror 1 is an instruction it cannot emulate.
    InternalError {
        /// KVM's number for it.
        suberror: u32,
        /// The instruction, when KVM gave it.
        instruction: Vec<u8>,
        /// What else KVM said.
        data: Vec<u64>,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that this machine never asks for.
    UnexpectedExit {
        /// Its name.
        exit: String,
    },
    /// KVM refused to run the vCPU.
    RunRefused {
        /// What it said.
        errno: i32,
    },
    /// Our own code panicked while it served the guest.
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::TripleFault => write!(f, "Triple fault")?,
            Cause::InternalError { suberror, instruction, data } => {
                let name = match suberror {
                    1 => "cannot emulate an instruction",
                    2 => "simultaneous exceptions",
                    3 => "unexpected exit while delivering an event",
                    4 => "unexpected exit reason",
                    _ => "unknown",
                };
                write!(f, "KVM internal error {suberror} ({name})")?;
                if !instruction.is_empty() {
                    write!(f, ", instruction {instruction:02x?}")?;
                }
                if !data.is_empty() {
                    write!(f, ", data {data:#x?}")?;
                }
            }
            Cause::FailEntry { reason } => {
                write!(f, "Processor refused to enter the guest, reason {reason:#x}")?
            }
            Cause::UnexpectedExit { exit } => write!(f, "Unexpected exit {exit}")?,
            Cause::RunRefused { errno } => {
                write!(
                    f,
                    "KVM refused to run the guest: {}",
                    std::io::Error::from_raw_os_error(*errno)
                )?;
            }
            Cause::Panicked { message } => write!(f, "Machine code panicked: {message}")?,
        }
        if self.registers.is_reset() {
            return write!(f, " (vCPU {}; its registers are lost)", self.vcpu);
        }
        write!(f, " (vCPU {}: {})", self.vcpu, self.registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_cause_vcpu_and_place() {
        let registers = Registers { rip: 0xffff_ffff_8100_0000, ..Default::default() };
        let cause =
            Cause::InternalError { suberror: 1, instruction: vec![0x0f, 0x0b], data: vec![] };
        let text = Failure { vcpu: 1, cause, registers }.to_string();
        for part in ["internal error 1", "[0f, 0b]", "vCPU 1", "rip=0xffffffff81000000"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
