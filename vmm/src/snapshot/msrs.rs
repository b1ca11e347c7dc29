//! The model-specific registers of a vCPU, read and written in bulk.
//!
//! KVM_GET_MSRS and KVM_SET_MSRS stop at the first register they refuse and say where. A register that cannot be read does not
//! exist for this guest; one that cannot be written matters only if it has another value than the saved one.
//! See Linux, Documentation/virt/kvm/api.rst, KVM_GET_MSR_INDEX_LIST and KVM_SET_MSRS.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::SnapshotError;
use crate::error::{Error, kvm_error};

/// The time stamp counter; see [`super::tsc`].
pub(super) const TSC: u32 = 0x10;
/// When the local APIC's timer fires; counted by the time stamp counter.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// Registers that no guest of this machine has, though KVM lists them: performance counters and their control, what nested
/// virtualization offers, and those of Hyper-V, which writing would bring to life.
const FOREIGN: [RangeInclusive<u32>; 8] = [
    0xc1..=0xc8,
    0x186..=0x18d,
    0x309..=0x30c,
    0x38d..=0x390,
    0x480..=0x493,
    0x4000_0000..=0x4000_0fff,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
];

/// Returns the registers that a guest on this host can have and that its state depends on.
///
/// # Errors
/// [`Error::Kvm`] when KVM does not list them.
pub(crate) fn list(kvm: &Kvm) -> Result<Vec<u32>, Error> {
    let listed = kvm.get_msr_index_list().map_err(kvm_error("KVM_GET_MSR_INDEX_LIST"))?;
    let mut all: Vec<u32> = listed.as_slice().to_vec();
    // The memory types are never listed.
    all.extend((0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..0x270).chain([0x2ff]));
    let apart = |msr: &u32| {
        [TSC, TSC_DEADLINE].contains(msr) || FOREIGN.iter().any(|range| range.contains(msr))
    };
    all.retain(|msr| !apart(msr));
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Reads those of `indices` that `vcpu` has.
///
/// # Errors
/// [`Error::Kvm`] when KVM fails otherwise than by refusing a register.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let wanted: Vec<_> =
            chunk.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = bundle(&wanted)?;
        let count = vcpu.get_msrs(&mut msrs).map_err(kvm_error("KVM_GET_MSRS"))?.min(chunk.len());
        found.extend_from_slice(&msrs.as_slice()[..count]);
        rest = &rest[if count < chunk.len() { count + 1 } else { count }..];
    }
    Ok(found)
}

/// Writes `entries`.
///
/// # Errors
/// [`SnapshotError::Msr`] for a register that KVM refuses and that has another value.
pub(super) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let msrs = bundle(chunk)?;
        let count = vcpu.set_msrs(&msrs).map_err(kvm_error("KVM_SET_MSRS"))?.min(chunk.len());
        if let Some(refused) = chunk.get(count) {
            let present = read(vcpu, &[refused.index])?;
            let same = present.first().is_some_and(|present| present.data == refused.data);
            if !same {
                let (index, value) = (refused.index, refused.data);
                return Err(SnapshotError::Msr { index, value }.into());
            }
        }
        rest = &rest[if count < chunk.len() { count + 1 } else { count }..];
    }
    Ok(())
}

/// Reads one register; `None` when the vCPU does not have it.
///
/// # Errors
/// As [`read`].
pub(super) fn get(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, Error> {
    Ok(read(vcpu, &[index])?.first().map(|entry| entry.data))
}

/// Writes one register.
///
/// # Errors
/// As [`write`].
pub(super) fn set(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), Error> {
    write(vcpu, &[kvm_msr_entry { index, data, ..Default::default() }])
}

fn bundle(entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries).map_err(|_| Error::Kvm {
        operation: "building the MSR list",
        source: std::io::Error::from_raw_os_error(libc::EINVAL),
    })
}
