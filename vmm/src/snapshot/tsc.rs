//! The time stamp counters of all vCPUs: saved as values, restored so that they go on together.
//!
//! A counter is the host's plus an offset. Where KVM shows the offsets (Linux 5.16), the first vCPU's is chosen so that its counter
//! goes on from the saved value, and the others keep their distance to it, exact to the tick. Elsewhere the same value is written
//! to all within a moment, which KVM takes as the wish to keep them together. A KVM without hardware behind it may do neither; as
//! long as its counter is past the saved one, the guest only sees that time has passed.
//! See Linux, Documentation/virt/kvm/devices/vcpu.rst, 4.1 ATTRIBUTE: KVM_VCPU_TSC_OFFSET.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::{SnapshotError, msrs};
use crate::error::Error;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// One vCPU's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counter {
    /// What it showed.
    pub(super) value: u64,
    /// Its distance to the host's, where KVM tells.
    pub(super) offset: Option<u64>,
}

impl Counter {
    /// Reads the counter of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM does not tell.
    pub(super) fn read(vcpu: &VcpuFd) -> Result<Self, Error> {
        let value = msrs::get(vcpu, msrs::TSC)?.unwrap_or(0);
        Ok(Self { value, offset: offset(vcpu) })
    }
}

/// Lets the counters of `vcpus` go on from `saved`, of which there are as many.
///
/// # Errors
/// [`Error::Kvm`] when KVM refuses a value, [`SnapshotError::TimeStampCounter`] when it takes one without effect and the guest's
/// time would go back.
pub(super) fn restore(vcpus: &[&VcpuFd], saved: &[Counter]) -> Result<(), Error> {
    let (Some(first), Some(base)) = (vcpus.first(), saved.first()) else { return Ok(()) };
    let (present, now) = (offset(first), msrs::get(first, msrs::TSC)?.unwrap_or(0));
    for (vcpu, counter) in vcpus.iter().zip(saved) {
        let ahead = counter.offset.zip(base.offset).map(|(own, base)| own.wrapping_sub(base));
        let exact = present.zip(ahead).is_some_and(|(present, ahead)| {
            let of_first = present.wrapping_add(base.value).wrapping_sub(now);
            set_offset(vcpu, of_first.wrapping_add(ahead))
        });
        if !exact {
            msrs::set(vcpu, msrs::TSC, base.value)?;
        }
        let saved = base.value.wrapping_add(if exact { ahead.unwrap_or(0) } else { 0 });
        let present = msrs::get(vcpu, msrs::TSC)?.unwrap_or(0);
        // A guest may have set a processor's counter below zero: what counts is the distance.
        if (present.wrapping_sub(saved) as i64) < 0 {
            return Err(SnapshotError::TimeStampCounter { saved, present }.into());
        }
    }
    Ok(())
}

/// Returns the offset of the counter of `vcpu`, where KVM tells.
fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut value = 0u64;
    let attribute = attribute(&raw mut value);
    // SAFETY: the kernel writes 8 bytes at the attribute's address, which is that of `value`.
    let result = unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &attribute) };
    (result == 0).then_some(value)
}

/// Returns whether KVM has taken the offset.
fn set_offset(vcpu: &VcpuFd, mut value: u64) -> bool {
    let attribute = attribute(&raw mut value);
    // SAFETY: the kernel reads 8 bytes at the attribute's address, which is that of `value`.
    let result = unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR(), &attribute) };
    result == 0
}

fn attribute(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
    }
}
