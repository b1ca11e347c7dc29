//! A machine leaves nothing behind, at whatever stage it is dropped. Alone in its process, for it counts threads and descriptors.

use std::fs;

use kvmbake_vmm::boot::KernelImage;
use kvmbake_vmm::{Exit, Image, Machine, MachineConfig};

/// `jmp $` behind an ELF64 header with one segment at 0x100000.
fn spinning_kernel() -> KernelImage {
    let mut file = vec![0u8; 122];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(72, &120u64.to_le_bytes());
    put(88, &0x10_0000u64.to_le_bytes());
    put(96, &2u64.to_le_bytes());
    put(104, &2u64.to_le_bytes());
    put(120, &[0xeb, 0xfe]);
    KernelImage::parse(file).unwrap()
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

fn machine() -> Machine {
    Machine::new(&MachineConfig { cpus: 2, memory: 32 << 20 }).expect("a usable /dev/kvm")
}

fn loaded() -> Machine {
    let mut machine = machine();
    machine.set_console(Box::new(std::io::sink()));
    machine.load_image(&Image { kernel: &spinning_kernel(), initrd: None, cmdline: "" }).unwrap();
    machine
}

#[test]
fn no_descriptor_and_no_thread_stays() {
    let stages: [(&str, fn()); 6] = [
        ("built", || drop(machine())),
        ("loaded", || drop(loaded())),
        ("running", || drop(loaded().start().unwrap())),
        ("stopped", || {
            let running = loaded().start().unwrap();
            running.handle().stop();
            assert_eq!(running.wait(), Exit::Stopped);
        }),
        ("paused and resumed", || {
            let running = loaded().start().unwrap();
            running.handle().pause().unwrap().resume().unwrap();
        }),
        ("paused, saved and restored", || {
            let running = loaded().start().unwrap();
            let paused = running.handle().pause().unwrap();
            let state = paused.state().unwrap();
            let mut restored = machine();
            restored.restore(&state).unwrap();
            drop(restored.start().unwrap());
            drop(paused);
            assert_eq!(running.wait(), Exit::Stopped);
        }),
    ];
    // The first round opens what the process keeps.
    for round in 0..3 {
        for (stage, act) in stages {
            let before = (count("/proc/self/fd"), count("/proc/self/task"));
            act();
            if round > 0 {
                assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), before, "{stage}");
            }
        }
    }
}
