//! What the guest learns from the CPUID instruction.
//!
//! The base is what KVM supports on this host. On top come the topology (one socket, one thread a core, APIC ids from 0), the
//! frequencies that spare the guest its calibration loops, and the hypervisor's leaves. Taken away is what this machine does not
//! have: nested virtualization, performance counters, MWAIT.
//! See Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::error::Error;

const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// The local APIC's timer runs at 1 GHz in KVM.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What a vCPU's CPUID depends on.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// This vCPU's number and APIC id.
    pub index: u8,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Frequency of the time stamp counter, when known.
    pub tsc_khz: Option<u32>,
    /// KVM emulates the TSC-deadline timer, which it does not report by itself.
    pub tsc_deadline: bool,
}

/// Returns the CPUID of one vCPU, made from what KVM supports.
///
/// # Errors
/// [`Error::Config`] when the table grows beyond KVM's limit, which no known host comes near.
pub fn build(supported: &CpuId, topology: Topology) -> Result<CpuId, Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let intel = is_intel(&entries);
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x15 | 0x16 | HYPERVISOR_TIMING));
    for entry in &mut entries {
        adjust(entry, topology);
    }
    let maximum = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    if maximum >= 0xb {
        entries.extend(extended_topology(topology));
    }
    if let Some(khz) = topology.tsc_khz {
        if intel && maximum >= 0x16 {
            entries.extend(intel_frequencies(khz));
        }
        entries.push(plain(HYPERVISOR_TIMING, [khz, APIC_BUS_KHZ, 0, 0]));
    }
    CpuId::from_entries(&entries).map_err(|_| Error::Config {
        what: "CPUID entries",
        value: entries.len() as u64,
        reason: "KVM takes fewer".to_owned(),
    })
}

fn is_intel(entries: &[kvm_cpuid_entry2]) -> bool {
    let leaf_0 = entries.iter().find(|entry| entry.function == 0);
    leaf_0.is_some_and(|entry| entry.ebx == u32::from_le_bytes(*b"Genu"))
}

fn plain(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !(1 << bit) | u32::from(on) << bit;
}

/// Bits of the APIC id that number a core within the socket.
fn core_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let cpus = u32::from(topology.cpus);
    let id = u32::from(topology.index);
    let smp = topology.cpus > 1;
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | cpus << 16 | id << 24;
            const MONITOR: u32 = 3;
            const VMX: u32 = 5;
            const PERFMON_CAPABILITY: u32 = 15;
            const TSC_DEADLINE: u32 = 24;
            const HYPERVISOR: u32 = 31;
            for bit in [MONITOR, VMX, PERFMON_CAPABILITY] {
                set_bit(&mut entry.ecx, bit, false);
            }
            set_bit(&mut entry.ecx, TSC_DEADLINE, topology.tsc_deadline);
            set_bit(&mut entry.ecx, HYPERVISOR, true);
            const MULTITHREADING: u32 = 28;
            set_bit(&mut entry.edx, MULTITHREADING, smp);
        }
        // Deterministic cache parameters, Intel and AMD: a cache of level 3 is shared by all, the others by none.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | shared << 14;
            if entry.function == 0x4 {
                entry.eax = entry.eax & !(0x3f << 26) | ((1 << core_bits(topology.cpus)) - 1) << 26;
            }
        }
        // MWAIT, and performance monitoring of Intel and AMD.
        0x5 | 0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        HYPERVISOR_BASE => entry.eax = HYPERVISOR_TIMING,
        0x8000_0001 => {
            const CMP_LEGACY: u32 = 1;
            const SVM: u32 = 2;
            if !smp {
                set_bit(&mut entry.ecx, CMP_LEGACY, false);
            }
            // SVM, instruction-based sampling, and three kinds of counters.
            for bit in [SVM, 10, 23, 24, 28] {
                set_bit(&mut entry.ecx, bit, false);
            }
        }
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | core_bits(topology.cpus) << 12 | (cpus - 1)
        }
        // Nested virtualization.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Leaf 0xb: threads within a core, then cores within the socket, then nothing.
fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: topology.index.into(),
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, core_bits(topology.cpus), topology.cpus.into(), 2),
        level(2, 0, 0, 0),
    ]
}

/// Leaves 0x15 and 0x16: the counter's ratio to a 1 GHz crystal, which is also the APIC timer's, and the nominal frequency.
fn intel_frequencies(tsc_khz: u32) -> [kvm_cpuid_entry2; 2] {
    let mhz = tsc_khz / 1000;
    [plain(0x15, [APIC_BUS_KHZ, tsc_khz, APIC_BUS_KHZ * 1000, 0]), plain(0x16, [mhz, mhz, 100, 0])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPOLOGY: Topology =
        Topology { index: 2, cpus: 3, tsc_khz: Some(2_400_000), tsc_deadline: true };

    fn sample() -> CpuId {
        let vendor = u32::from_le_bytes(*b"Genu");
        CpuId::from_entries(&[
            plain(0, [0x16, vendor, 0, 0]),
            plain(1, [0, 0x0700_0800, 1 << 5 | 1 << 3, 0]),
            kvm_cpuid_entry2 {
                function: 4,
                index: 3,
                flags: 1,
                eax: 0xfc00_0163,
                ..Default::default()
            },
            plain(0xa, [0x0730_0404, 1, 1, 1]),
            plain(HYPERVISOR_BASE, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            plain(0x8000_0001, [0, 0, 1 << 2 | 1 << 22, 0]),
            plain(0x8000_0008, [0x3030, 0, 0x7007, 0]),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn topology_is_one_socket_with_single_thread_cores() {
        let cpuid = build(&sample(), TOPOLOGY).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).ebx, 0x0203_0800);
        assert_eq!(leaf(&cpuid, 4, 3).eax, 3 << 26 | 2 << 14 | 0x163);
        assert_eq!(
            (leaf(&cpuid, 0xb, 1).eax, leaf(&cpuid, 0xb, 1).ebx, leaf(&cpuid, 0xb, 1).edx),
            (2, 3, 2)
        );
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 2 << 12 | 2);
    }

    #[test]
    fn what_the_machine_lacks_is_hidden() {
        let cpuid = build(&sample(), TOPOLOGY).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).ecx, 1 << 31 | 1 << 24);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & 1 << 2, 0);
        assert_eq!(leaf(&cpuid, 0xa, 0).eax, 0);
    }

    #[test]
    fn frequencies_are_told() {
        let cpuid = build(&sample(), TOPOLOGY).unwrap();
        assert_eq!(leaf(&cpuid, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
        assert_eq!(leaf(&cpuid, HYPERVISOR_TIMING, 0).eax, 2_400_000);
        let ratio = leaf(&cpuid, 0x15, 0);
        assert_eq!(
            u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax),
            2_400_000_000
        );
    }
}
