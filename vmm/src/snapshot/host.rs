//! What a host offers to a saved guest.

use kvm_bindings::{KVM_CAP_TSC_CONTROL, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::vcpu::{VcpuState, xsave_len};
use super::{SnapshotError, features};
use crate::error::{Error, kvm_error};
use crate::host;
use crate::vcpu::cpuid::{self, Topology};

/// How far two measurements of one frequency may be apart, in parts of a million; KVM's own default.
const TSC_TOLERANCE: u64 = 250;

/// The processor and the KVM of a host, as a machine on it would see them.
#[derive(Clone)]
pub struct Host {
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    pub(super) tsc_khz: Option<u32>,
    pub(super) tsc_scaling: bool,
    pub(super) xsave_len: usize,
}

impl Host {
    /// Looks at this host.
    ///
    /// # Errors
    /// [`Error::NoKvm`] and [`Error::Kvm`] when the host cannot run a machine.
    pub fn probe() -> Result<Self, Error> {
        let kvm = host::open()?;
        let vm = host::create_vm(&kvm)?;
        let vcpu = vm.create_vcpu(0).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        Self::new(&kvm, &vm, vcpu.get_tsc_khz().ok())
    }

    /// Looks at the host of `vm`, whose vCPUs' time stamp counters run at `tsc_khz`.
    pub(crate) fn new(kvm: &Kvm, vm: &VmFd, tsc_khz: Option<u32>) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        // With several vCPUs, so that what belongs to those is among the features.
        let topology = Topology { index: 0, cpus: 2, tsc_khz, tsc_deadline };
        Ok(Self {
            cpuid: cpuid::build(&supported, topology)?.as_slice().to_vec(),
            tsc_khz: tsc_khz.filter(|&khz| khz > 0),
            tsc_scaling: kvm.check_extension_raw(KVM_CAP_TSC_CONTROL.into()) > 0,
            xsave_len: xsave_len(vm),
        })
    }

    /// Returns the bytes of a vCPU's extended state.
    pub(crate) fn xsave_len(&self) -> usize {
        self.xsave_len
    }

    /// Tells why this host cannot go on with `vcpu`.
    ///
    /// # Errors
    /// [`SnapshotError`] with the first reason.
    pub(super) fn check(&self, vcpu: &VcpuState) -> Result<(), SnapshotError> {
        let (saved, present) = (features::model(&vcpu.cpuid), features::model(&self.cpuid));
        if saved != present {
            return Err(SnapshotError::Processor { saved, present });
        }
        let mut missing = features::missing(&vcpu.cpuid, &self.cpuid);
        let len = vcpu.xsave.len() * 4;
        if len > self.xsave_len {
            missing.push(format!("{len} bytes of extended state"));
        }
        if !missing.is_empty() {
            return Err(SnapshotError::Features(missing));
        }
        match (vcpu.tsc_khz, self.tsc_khz) {
            (Some(saved), Some(present)) if !self.tsc_scaling && !close(saved, present) => {
                Err(SnapshotError::TscFrequency { saved, present })
            }
            _ => Ok(()),
        }
    }
}

fn close(saved: u32, present: u32) -> bool {
    u64::from(saved.abs_diff(present)) * 1_000_000 <= u64::from(present) * TSC_TOLERANCE
}
