//! Saved states of machines that never ran: what is refused and why, and that what is taken back is what was saved.

use std::sync::Arc;

use kvm_bindings::kvm_mp_state;
use kvmbake_disk::MemoryBlock;

use super::file::{DIGEST, HEADER, digest};
use super::{Host, MachineState, SnapshotError, encode};
use crate::error::Error;
use crate::machine::{Machine, MachineConfig};
use crate::virtio::driver::Dice;
use crate::virtio::{BlockDevice, BlockOptions, RngDevice};

const CONFIG: MachineConfig = MachineConfig { cpus: 2, memory: 16 << 20 };

fn machine() -> Machine {
    Machine::new(&CONFIG).expect("a usable /dev/kvm")
}

fn refusal(result: Result<MachineState, SnapshotError>) -> String {
    result.err().expect("must be refused").to_string()
}

/// Makes the digest right again after a change.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let right = digest(&bytes);
    bytes[DIGEST..HEADER].copy_from_slice(&right);
    bytes
}

#[test]
fn bytes_come_back_as_they_were() {
    let state = machine().state();
    let bytes = state.to_bytes();
    assert_eq!(sealed(bytes.clone()), bytes);
    let again = MachineState::from_bytes(&bytes).unwrap();
    assert_eq!(again.to_bytes(), bytes);
    assert_eq!(again.config(), CONFIG);
    assert!(bytes.len() < 64 << 10, "{} bytes for two vCPUs", bytes.len());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = machine().state().to_bytes();
    for len in (0..200).chain((200..bytes.len()).step_by(97)) {
        let error = refusal(MachineState::from_bytes(&bytes[..len]));
        let told = if len < 8 { "Not a machine snapshot" } else { "damaged" };
        assert!(error.contains(told), "{len}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(refusal(MachineState::from_bytes(&longer)).contains("damaged"));
}

#[test]
fn every_flipped_bit_is_refused() {
    let bytes = machine().state().to_bytes();
    let mut dice = Dice::new(3);
    let header = 0..HEADER * 8;
    let body = (0..500).map(|_| dice.below(bytes.len() as u64 * 8) as usize);
    for bit in header.chain(body.collect::<Vec<_>>()) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(MachineState::from_bytes(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn other_formats_and_releases_are_named() {
    let mut bytes = machine().state().to_bytes();
    bytes[8] = 200;
    assert!(refusal(MachineState::from_bytes(&bytes)).contains("format 200"));
    let mut bytes = machine().state().to_bytes();
    bytes[16..24].copy_from_slice(b"9.8.7\0\0\0");
    let error = refusal(MachineState::from_bytes(&sealed(bytes)));
    assert_eq!(
        error,
        format!(
            "Snapshot was taken by kvmbake 9.8.7, this is kvmbake {}",
            env!("CARGO_PKG_VERSION")
        )
    );
}

/// Whoever can compute a digest can write any state: that is an error or a strange guest, never a panic.
#[test]
fn hostile_states_with_a_right_digest_do_no_harm() {
    let bytes = machine().state().to_bytes();
    let mut taken = 0;
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut hostile = bytes.clone();
        for _ in 0..1 + dice.below(12) {
            let at = HEADER + dice.below((bytes.len() - HEADER) as u64) as usize;
            hostile[at] = dice.pick(&[0, 1, 0x7f, 0x80, 0xff]);
        }
        if let Ok(state) = MachineState::from_bytes(&sealed(hostile)) {
            taken += 1;
            let _ = machine().restore(&state);
        }
    }
    assert!(taken > 10, "only {taken} states could be read at all");
    // A list that claims to be longer than anything.
    let mut hostile = bytes[..HEADER].to_vec();
    hostile.extend_from_slice(&[1, 1]);
    hostile.extend_from_slice(&[0xff; 40]);
    let len = hostile.len() as u64 - HEADER as u64;
    hostile[48..56].copy_from_slice(&len.to_le_bytes());
    assert!(refusal(MachineState::from_bytes(&sealed(hostile))).contains("malformed"));
}

#[test]
fn other_sizes_are_refused_by_name() {
    let (state, host) = (machine().state(), Host::probe().unwrap());
    state.check(&CONFIG, &host).unwrap();
    let check = |cpus, memory| state.check(&MachineConfig { cpus, memory }, &host).unwrap_err();
    assert_eq!(
        check(1, CONFIG.memory).to_string(),
        "Snapshot is of a machine with vCPUs = 2, this one has 1"
    );
    assert!(check(2, 32 << 20).to_string().contains("bytes of memory = 16777216"));
}

#[test]
fn other_processors_are_refused_by_name() {
    let (state, host) = (machine().state(), Host::probe().unwrap());
    let mut model = state.clone();
    // The stepping of the first processor.
    for entry in model.vcpus[0].cpuid.iter_mut().filter(|entry| entry.function == 1) {
        entry.eax ^= 1;
    }
    let error = model.check(&CONFIG, &host).unwrap_err();
    assert!(matches!(error, SnapshotError::Processor { .. }), "{error}");
    let mut poorer = host.clone();
    for entry in &mut poorer.cpuid {
        match (entry.function, entry.index) {
            // SSE2, a part of every 64-bit processor; KVM's clock.
            (1, 0) => entry.edx &= !(1 << 26),
            (0x4000_0001, 0) => entry.eax &= !(1 << 3),
            _ => {}
        }
    }
    let error = state.check(&CONFIG, &poorer).unwrap_err().to_string();
    assert_eq!(
        error,
        "Snapshot needs of the processor what this host does not offer: sse2, kvmclock2"
    );
    let mut narrower = host.clone();
    narrower.xsave_len -= 64;
    let error = state.check(&CONFIG, &narrower).unwrap_err().to_string();
    assert!(error.contains("bytes of extended state"), "{error}");
}

#[test]
fn other_frequencies_are_refused_unless_they_can_be_scaled() {
    let (mut state, mut host) = (machine().state(), Host::probe().unwrap());
    (host.tsc_khz, host.tsc_scaling) = (Some(2_000_000), false);
    let mut check = |khz, scaling| {
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = Some(khz));
        host.tsc_scaling = scaling;
        state.check(&CONFIG, &host)
    };
    check(2_000_400, false).unwrap();
    check(2_001_000, true).unwrap();
    let error = check(2_001_000, false).unwrap_err().to_string();
    assert!(error.contains("2001000 kHz, this host's at 2000000 kHz"), "{error}");
}

#[test]
fn other_devices_are_refused_by_name() {
    let disk = |bytes: u64, serial: &str| {
        let block = Arc::new(MemoryBlock::zeroes(bytes as usize));
        let options = BlockOptions { serial: serial.to_owned(), ..BlockOptions::default() };
        BlockDevice::new(block, options)
    };
    let with = |device: Option<Box<dyn crate::virtio::VirtioDevice>>| {
        let mut machine = machine();
        device.into_iter().for_each(|device| machine.add_virtio(device).unwrap());
        machine
    };
    let state = with(Some(Box::new(disk(1 << 20, "root")))).state();
    with(Some(Box::new(disk(1 << 20, "root")))).restore(&state).unwrap();
    let refusal = |device| with(device).restore(&state).unwrap_err().to_string();
    assert_eq!(refusal(None), "Snapshot is of a machine with PCI devices = 2, this one has 1");
    let error = refusal(Some(Box::new(RngDevice::new())));
    assert_eq!(error, "Snapshot does not fit device blk-root in PCI slot 1: not rng");
    let error = refusal(Some(Box::new(disk(2 << 20, "root"))));
    assert!(error.ends_with("a disk of 1048576 bytes, not 2097152"), "{error}");
    let error = refusal(Some(Box::new(disk(1 << 20, "other"))));
    assert!(error.ends_with("another serial number"), "{error}");
    let mut missing = state.clone();
    missing.mmio.push((0x1234_5000, encode(&7u8)));
    let mut machine = with(Some(Box::new(disk(1 << 20, "root"))));
    let error = machine.restore(&missing).unwrap_err().to_string();
    assert_eq!(error, "Snapshot has a device that this machine has not: at 0x12345000");
}

/// The registers are set through KVM, so that what comes back cannot be a fresh machine's.
#[test]
fn restored_registers_are_those_that_were_saved() {
    const HALTED: u32 = 3;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    let machine = machine();
    let mut state = machine.state();
    for (vcpu, number) in state.vcpus.iter_mut().zip(0x1000u64..) {
        (vcpu.regs.rax, vcpu.regs.r15, vcpu.regs.rip) = (number, !number, number << 12);
        (vcpu.sregs.cr2, vcpu.sregs.fs.base) = (number, number << 4);
        vcpu.debug_regs.db[1] = number;
        vcpu.mp_state = kvm_mp_state { mp_state: HALTED };
        let gs = vcpu.msrs.iter_mut().find(|msr| msr.index == KERNEL_GS_BASE).unwrap();
        gs.data = number << 8;
        // The second SSE register.
        vcpu.xsave[44] = number as u32;
        // It must be among the components that are in use.
        vcpu.xsave[128] |= 3;
        // Bit 0x51 of the request register.
        vcpu.lapic.regs[0x220] |= 1 << 1;
        vcpu.events.nmi.pending = 1;
    }
    let mut fresh = self::machine();
    fresh.restore(&state).unwrap();
    let restored = fresh.state();
    for (saved, restored) in state.vcpus.iter().zip(&restored.vcpus) {
        assert_eq!(restored.regs, saved.regs);
        assert_eq!(restored.sregs, saved.sregs);
        assert_eq!(restored.debug_regs.db, saved.debug_regs.db);
        assert_eq!(restored.mp_state.mp_state, HALTED);
        assert_eq!(restored.msrs, saved.msrs);
        assert_eq!(restored.xsave[44], saved.xsave[44]);
        assert_eq!(restored.xcrs, saved.xcrs);
        assert_eq!(restored.lapic.regs[..0x380], saved.lapic.regs[..0x380]);
        assert_eq!(restored.events.nmi.pending, 1);
        assert_eq!(restored.cpuid, saved.cpuid);
    }
    assert_eq!(restored.functions, state.functions);
    assert_eq!(encode(&restored.platform.chips), encode(&state.platform.chips));
}

#[test]
fn time_goes_on_from_where_it_stood() {
    /// Seconds within which the test surely restores.
    const SOON: u64 = 30;
    const DAYS: u64 = 3 * 86_400;
    let soon = |saved: u64, now: u64, second: u64| {
        assert!(now >= saved && now < saved + SOON * second, "{saved} became {now}");
    };
    let mut state = machine().state();
    state.platform.clock = DAYS * 1_000_000_000;
    let mut same = machine();
    same.restore(&state).unwrap();
    soon(state.platform.clock, same.state().platform.clock, 1_000_000_000);

    let khz = u64::from(state.vcpus[0].tsc_khz.expect("KVM tells the frequency"));
    let ahead = state.vcpus[0].counter.value + DAYS * 1000 * khz;
    for (vcpu, apart) in state.vcpus.iter_mut().zip([0, 12_345]) {
        vcpu.counter.value = ahead;
        vcpu.counter.offset = vcpu.counter.offset.map(|_| 777_000 + apart);
    }
    let mut later = machine();
    match later.restore(&state) {
        Ok(()) => {
            let counters = later.state().vcpus.into_iter().map(|vcpu| vcpu.counter);
            let counters: Vec<_> = counters.collect();
            counters.iter().for_each(|counter| soon(ahead, counter.value, 1000 * khz));
            if let [Some(first), Some(second)] = [counters[0].offset, counters[1].offset] {
                assert_eq!(second.wrapping_sub(first), 12_345);
            }
        }
        // A KVM that only emulates has no counter but the host's own: the guest must not see it go back.
        Err(error) => {
            let told = "this host cannot set that of a guest";
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}

#[test]
fn refused_register_is_named() {
    let mut state = machine().state();
    // A base that is not canonical.
    let gs = state.vcpus[1].msrs.iter_mut().find(|msr| msr.index == 0xc000_0102).unwrap();
    gs.data = 0x1234_5678_9abc_def0;
    let error = machine().restore(&state).unwrap_err();
    assert!(matches!(error, Error::Snapshot(_)), "{error}");
    assert!(
        error.to_string().contains("0x123456789abcdef0 of the model-specific register 0xc0000102")
    );
}
