//! A vCPU's state when the guest begins: what firmware would have left, plus the registers of the boot protocol.
//!
//! Application processors get the same CPUID, MSRs and APIC, and wait in KVM for INIT and SIPI.

use kvm_bindings::{
    CpuId, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use crate::error::{Error, kvm_error};
use crate::load::linux64::{self, Entry};

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// MTRRs on, memory without one is write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_MASK: u32 = 0x700;
const APIC_MODE_NMI: u32 = 0x400;
const APIC_MODE_EXTINT: u32 = 0x700;

const CR0_PROTECTED_PAGED: u64 = 0x8000_0011;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

/// Gives `vcpu` what every processor has after firmware.
pub(crate) fn processor(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), Error> {
    vcpu.set_cpuid2(cpuid).map_err(kvm_error("KVM_SET_CPUID2"))?;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries =
        [msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), msr(MSR_MTRR_DEFAULT, MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).map_err(|_| invalid("building the MSR list"))?;
    let written = vcpu.set_msrs(&msrs).map_err(kvm_error("KVM_SET_MSRS"))?;
    if let Some(refused) = entries.get(written) {
        tracing::warn!(msr = refused.index, "KVM refuses an MSR's initial value");
    }
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(kvm_error("KVM_SET_FPU"))?;
    let mut apic = vcpu.get_lapic().map_err(kvm_error("KVM_GET_LAPIC"))?;
    set_apic_mode(&mut apic, APIC_LVT_LINT0, APIC_MODE_EXTINT);
    set_apic_mode(&mut apic, APIC_LVT_LINT1, APIC_MODE_NMI);
    vcpu.set_lapic(&apic).map_err(kvm_error("KVM_SET_LAPIC"))
}

/// Puts the boot processor into long mode at `entry`.
pub(crate) fn boot_processor(vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: entry.rip,
        rsi: entry.rsi,
        rsp: entry.rsp,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm_error("KVM_SET_REGS"))
}

fn long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        selector: 0x18,
        limit: 0xffff_ffff,
        type_: 0x3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr =
        kvm_segment { selector: 0x20, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt.base = linux64::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = linux64::IDT;
    sregs.idt.limit = 0;
    sregs.cr3 = linux64::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PROTECTED_PAGED;
    sregs.efer = EFER_LONG_MODE;
}

fn set_apic_mode(apic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes: [u8; 4] = std::array::from_fn(|at| apic.regs[register + at] as u8);
    let value = u32::from_le_bytes(bytes) & !APIC_MODE_MASK | mode;
    for (slot, byte) in apic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *slot = byte as _;
    }
}

fn invalid(operation: &'static str) -> Error {
    Error::Kvm { operation, source: std::io::Error::from_raw_os_error(libc::EINVAL) }
}
