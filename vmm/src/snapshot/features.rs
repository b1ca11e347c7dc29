//! What CPUID tells of a processor: its model, and its features by name.
//!
//! Names are those of Linux's /proc/cpuinfo where it has one. See Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of a leaf.
#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One register of feature bits: leaf, subleaf, register, the names from bit 0 on; "-" is a bit without a name.
type Word = (u32, u32, Register, &'static str);

const WORDS: &[Word] = &[
    (
        0x1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss \
         ht tm ia64 pbe",
    ),
    (
        0x1,
        0,
        Register::Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
         x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        0x7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap \
         avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        0x7,
        0,
        Register::Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
         avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    (
        0x7,
        0,
        Register::Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear - - tsx_force_abort serialize \
         hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp flush_l1d \
         arch_capabilities core_capabilities ssbd",
    ),
    (
        0x7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx_fp16 \
         hreset avx_ifma - - lam",
    ),
    (
        0xd,
        0,
        Register::Eax,
        "x87-state sse-state avx-state bndregs-state bndcsr-state opmask-state zmm_hi256-state hi16_zmm-state pt-state pkru-state",
    ),
    (0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        0x4000_0001,
        0,
        Register::Eax,
        "kvmclock nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time pv_eoi pv_unhalt - pv_tlb_flush asyncpf_vmexit \
         pv_ipi poll_control pv_sched_yield asyncpf_int msi_ext_dest_id hc_map_gpa_range migration_control - - - - - - \
         kvmclock_stable",
    ),
    (
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce \
         - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    (
        0x8000_0001,
        0,
        Register::Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (0x8000_0007, 0, Register::Edx, "- - - - - - - - constant_tsc"),
    (
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero irperf xsaveerptr - rdpru - mba - - wbnoinvd - - ibpb - amd_ibrs amd_stibp - stibp_always_on - - - - - \
         amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret",
    ),
    (
        0x8000_0021,
        0,
        Register::Eax,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs",
    ),
];

/// Returns the names of the features that `saved` has and `present` has not.
pub(super) fn missing(saved: &[kvm_cpuid_entry2], present: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut names = Vec::new();
    for &(function, index, register, words) in WORDS {
        let bits =
            word(saved, function, index, register) & !word(present, function, index, register);
        for bit in (0..32).filter(|bit| bits & 1 << bit != 0) {
            names.push(match words.split(' ').nth(bit as usize) {
                Some(name) if name != "-" => name.to_owned(),
                _ => format!("CPUID leaf {function:#x} subleaf {index} bit {bit}"),
            });
        }
    }
    names
}

/// Returns the processor's maker, family, model and stepping, and the name that it gives itself.
pub(super) fn model(cpuid: &[kvm_cpuid_entry2]) -> String {
    let registers = |function| {
        let found = cpuid.iter().find(|entry| entry.function == function);
        found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    let [_, b, c, d] = registers(0);
    let vendor = text(&[b, d, c]);
    let [signature, ..] = registers(1);
    let (family, model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    let extended = if family == 0xf { signature >> 20 & 0xff } else { 0 };
    let model = if matches!(family, 0x6 | 0xf) { signature >> 12 & 0xf0 | model } else { model };
    let stepping = signature & 0xf;
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(registers).collect();
    let place = format!("{vendor} family {} model {model} stepping {stepping}", family + extended);
    match text(&brand).trim() {
        "" => place,
        brand => format!("{brand} ({place})"),
    }
}

/// Returns the text in registers, without what a terminal would act on.
fn text(registers: &[u32]) -> String {
    let bytes = registers.iter().flat_map(|register| register.to_le_bytes());
    bytes.filter(|byte| matches!(byte, b' '..=b'~')).map(char::from).collect()
}

fn word(cpuid: &[kvm_cpuid_entry2], function: u32, index: u32, register: Register) -> u32 {
    let found = cpuid.iter().find(|entry| entry.function == function && entry.index == index);
    found.map_or(0, |entry| match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn missing_features_have_the_names_of_cpuinfo() {
        // Bits as the manuals number them: AES 25, AVX 28; AVX2 5, AVX512F 16; LA57 16; NX 20, long mode 29; invariant TSC 8.
        let saved = [
            leaf(1, 0, [0, 0, 1 << 25 | 1 << 28, 1 << 26]),
            leaf(7, 0, [0, 1 << 5 | 1 << 16, 1 << 16, 1 << 4 | 1 << 17]),
            leaf(0x8000_0001, 0, [0, 0, 0, 1 << 20 | 1 << 29]),
            leaf(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
            leaf(0x4000_0001, 0, [1 << 24, 0, 0, 0]),
        ];
        let present =
            [leaf(1, 0, [0, 0, 1 << 25, 1 << 26]), leaf(0x8000_0001, 0, [0, 0, 0, 1 << 29])];
        let names = missing(&saved, &present);
        let expected = [
            "avx",
            "avx2",
            "avx512f",
            "la57",
            "fsrm",
            "CPUID leaf 0x7 subleaf 0 bit 17",
            "kvmclock_stable",
        ];
        assert_eq!(names, [&expected[..], &["nx", "constant_tsc"]].concat());
        assert!(missing(&present, &saved).is_empty(), "more than promised does no harm");
    }

    #[test]
    fn model_is_told_as_the_maker_counts() {
        let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
        let cpuid = [
            leaf(0, 0, [0x10, word(b"Auth"), word(b"cAMD"), word(b"enti")]),
            // An EPYC 7742: family 0x17, model 0x31, stepping 0.
            leaf(1, 0, [0x0083_0f10, 0, 0, 0]),
            leaf(0x8000_0002, 0, [word(b"AMD "), word(b"EPYC"), 0x1b, 0]),
        ];
        assert_eq!(model(&cpuid), "AMD EPYC (AuthenticAMD family 23 model 49 stepping 0)");
    }
}
