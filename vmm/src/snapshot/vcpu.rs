//! The state of a vCPU.
//!
//! The order matters, for KVM lets some of it act on the rest. Read: the run state first, which takes pending INIT and SIPI
//! in; the timer's deadline before the local APIC, so that an interrupt that fires in between is there twice rather than not at all. Written: CPUID first, for it says what registers there are; special registers before
//! the local APIC, whose mode they hold, and before extended registers; the local APIC before its timer's deadline, which is lost
//! otherwise; all time stamp counters before any deadline; events and run state at the end.
//! See Linux, Documentation/virt/kvm/api.rst, sections 4.11 to 4.127.

use kvm_bindings::{
    CpuId, KVM_CAP_XSAVE2, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msrs::{self, TSC_DEADLINE};
use super::{SnapshotError, tsc};
use crate::error::{Error, kvm_error};
use crate::vcpu::run::Vcpu;

/// Words of the part of the extended state that every host has.
const XSAVE_WORDS: usize = 1024;

/// All of one vCPU.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    pub(super) tsc_khz: Option<u32>,
    pub(super) mp_state: kvm_mp_state,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    /// The area of KVM_GET_XSAVE2 as words.
    pub(super) xsave: Vec<u32>,
    pub(super) xcrs: kvm_xcrs,
    pub(super) debug_regs: kvm_debugregs,
    pub(super) lapic: kvm_lapic_state,
    pub(super) msrs: Vec<kvm_msr_entry>,
    pub(super) counter: tsc::Counter,
    pub(super) tsc_deadline: Option<u64>,
    pub(super) events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of `vcpu`, which is out of the guest with its I/O finished, with the registers `msrs`.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    pub(crate) fn read(vcpu: &Vcpu, msrs: &[u32], xsave_len: usize) -> Result<Self, Error> {
        let fd = &vcpu.fd;
        let mp_state = fd.get_mp_state().map_err(kvm_error("KVM_GET_MP_STATE"))?;
        let regs = fd.get_regs().map_err(kvm_error("KVM_GET_REGS"))?;
        let sregs = fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
        let xsave = read_xsave(fd, xsave_len)?;
        let xcrs = fd.get_xcrs().map_err(kvm_error("KVM_GET_XCRS"))?;
        let debug_regs = fd.get_debug_regs().map_err(kvm_error("KVM_GET_DEBUGREGS"))?;
        let events = fd.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?;
        let tsc_deadline = msrs::get(fd, TSC_DEADLINE)?;
        let lapic = fd.get_lapic().map_err(kvm_error("KVM_GET_LAPIC"))?;
        Ok(Self {
            cpuid: vcpu.cpuid.as_slice().to_vec(),
            tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz > 0),
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debug_regs,
            lapic,
            msrs: msrs::read(fd, msrs)?,
            counter: tsc::Counter::read(fd)?,
            tsc_deadline,
            events,
        })
    }

    /// Puts back what the vCPU is: before any state, for all vCPUs.
    fn restore_identity(&self, vcpu: &mut Vcpu) -> Result<(), Error> {
        vcpu.cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| SnapshotError::Damaged("its CPUID is too long".to_owned()))?;
        vcpu.fd.set_cpuid2(&vcpu.cpuid).map_err(kvm_error("KVM_SET_CPUID2"))?;
        let present = vcpu.fd.get_tsc_khz().ok();
        match self.tsc_khz.filter(|saved| present != Some(*saved)) {
            // Small differences between two boots of a host need no scaling, and KVM takes them.
            Some(saved) if vcpu.fd.set_tsc_khz(saved).is_err() => {
                let present = present.unwrap_or(0);
                Err(SnapshotError::TscFrequency { saved, present }.into())
            }
            _ => Ok(()),
        }
    }

    fn restore_registers(&self, vcpu: &VcpuFd, xsave_len: usize) -> Result<(), Error> {
        vcpu.set_regs(&self.regs).map_err(kvm_error("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(kvm_error("KVM_SET_XCRS"))?;
        write_xsave(vcpu, &self.xsave, xsave_len)?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(kvm_error("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm_error("KVM_SET_LAPIC"))?;
        msrs::write(vcpu, &self.msrs)
    }

    fn restore_events(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        if let Some(deadline) = self.tsc_deadline.filter(|&deadline| deadline != 0) {
            msrs::set(vcpu, TSC_DEADLINE, deadline)?;
        }
        vcpu.set_vcpu_events(&self.events).map_err(kvm_error("KVM_SET_VCPU_EVENTS"))?;
        vcpu.set_mp_state(self.mp_state).map_err(kvm_error("KVM_SET_MP_STATE"))
    }
}

/// Puts `states` into the fresh `vcpus`, of which there are as many.
///
/// # Errors
/// [`Error::Kvm`] and [`Error::Snapshot`] when KVM refuses something.
pub(crate) fn restore_all(
    vcpus: &mut [Vcpu],
    states: &[VcpuState],
    xsave_len: usize,
) -> Result<(), Error> {
    for (vcpu, state) in vcpus.iter_mut().zip(states) {
        state.restore_identity(vcpu)?;
    }
    for (vcpu, state) in vcpus.iter().zip(states) {
        state.restore_registers(&vcpu.fd, xsave_len)?;
    }
    let fds: Vec<&VcpuFd> = vcpus.iter().map(|vcpu| &vcpu.fd).collect();
    let counters: Vec<_> = states.iter().map(|state| state.counter).collect();
    tsc::restore(&fds, &counters)?;
    for (vcpu, state) in vcpus.iter().zip(states) {
        state.restore_events(&vcpu.fd)?;
        tell_stopped(&vcpu.fd);
    }
    Ok(())
}

/// Tells a guest that uses KVM's clock that it did not run for a while, so that its watchdogs keep quiet.
pub(crate) fn tell_stopped(vcpu: &VcpuFd) {
    // Refused when the guest does not use that clock.
    let _ = vcpu.kvmclock_ctrl();
}

/// Returns the bytes of the extended state on this host.
pub(crate) fn xsave_len(vm: &VmFd) -> usize {
    let len = vm.check_extension_raw(KVM_CAP_XSAVE2.into());
    usize::try_from(len).unwrap_or(0).max(XSAVE_WORDS * 4).next_multiple_of(4)
}

fn read_xsave(vcpu: &VcpuFd, len: usize) -> Result<Vec<u32>, Error> {
    if len <= XSAVE_WORDS * 4 {
        let xsave = vcpu.get_xsave().map_err(kvm_error("KVM_GET_XSAVE"))?;
        return Ok(xsave.region.to_vec());
    }
    let mut xsave = wide(len / 4 - XSAVE_WORDS)?;
    // SAFETY: the buffer has the length that KVM_CAP_XSAVE2 gives, and no state is enabled after that was asked.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(kvm_error("KVM_GET_XSAVE2"))?;
    let mut words = xsave.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    Ok(words)
}

fn write_xsave(vcpu: &VcpuFd, words: &[u32], len: usize) -> Result<(), Error> {
    let extra = words.len().checked_sub(XSAVE_WORDS).filter(|_| words.len() * 4 <= len);
    let Some(extra) = extra else {
        let what = format!("its extended state has {} bytes, not {len}", words.len() * 4);
        return Err(SnapshotError::Damaged(what).into());
    };
    // As long as KVM reads on this host; what the snapshot does not have stays zero.
    let mut xsave = wide(len / 4 - XSAVE_WORDS)?;
    let (region, rest) = words.split_at(XSAVE_WORDS);
    xsave.as_mut_slice()[..extra].copy_from_slice(rest);
    // SAFETY: the number of entries is not touched.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region.copy_from_slice(region);
    // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 gives, which the buffer has.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(kvm_error("KVM_SET_XSAVE"))
}

fn wide(extra: usize) -> Result<Xsave, Error> {
    Xsave::new(extra).map_err(|_| Error::Kvm {
        operation: "building the extended state",
        source: std::io::Error::from_raw_os_error(libc::EINVAL),
    })
}
