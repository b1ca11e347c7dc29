//! Paused, saved and restored tiny guests: whatever the moment, they come to the result that they come to undisturbed.
//!
//! Guests are saved while they compute, take interrupts, wait, and read from a disk; they go on in the same machine, in another
//! machine, and in another process. They need a usable `/dev/kvm`, but no hardware virtualization behind it.

mod guests;
#[path = "../tiny_guest/harness.rs"]
#[allow(dead_code)]
mod harness;
mod pauses;
#[path = "../tiny_guest/guests.rs"]
#[allow(dead_code)]
mod tiny_guests;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvmbake_disk::{Block, Error as DiskError, Extent};
use kvmbake_vmm::memory::{self, GuestMemory};
use kvmbake_vmm::virtio::{BlockDevice, BlockOptions};
use kvmbake_vmm::{Error, Exit, Machine, MachineConfig, MachineState, Paused};
use vm_memory::{Bytes, GuestAddress};

use harness::{DEADLINE, Guest, LOAD_ADDRESS, SECOND_ADDRESS, Started};

const MEMORY: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Compute,
    Pair,
    Disk,
    Deadline,
    OneShot,
}

/// Held by the tests whose guests keep all processors busy: side by side they would wait for each other's time slices.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const KINDS: [Kind; 5] = [Kind::Compute, Kind::Pair, Kind::Disk, Kind::Deadline, Kind::OneShot];

impl Kind {
    fn config(self) -> MachineConfig {
        MachineConfig { cpus: if matches!(self, Kind::Pair) { 2 } else { 1 }, memory: MEMORY }
    }

    /// Builds the machine, with the guest loaded or around a saved guest's `memory`.
    fn build(self, memory: Option<GuestMemory>) -> Guest {
        let fresh = memory.is_none();
        let memory = memory.unwrap_or_else(|| memory::reserve(MEMORY).unwrap());
        let machine = Machine::with_memory(&self.config(), memory).expect("a usable /dev/kvm");
        let mut guest = Guest::around(machine);
        if matches!(self, Kind::Disk) {
            let disk = BlockDevice::new(Arc::new(Pattern), BlockOptions::default());
            guest.machine.add_virtio(Box::new(disk)).unwrap();
        }
        if fresh {
            match self {
                Kind::Compute => guest.load(&[(LOAD_ADDRESS, guests::COMPUTE)]),
                Kind::Disk => guest.load(&[(LOAD_ADDRESS, guests::DISK)]),
                Kind::Deadline => guest.load(&[(LOAD_ADDRESS, guests::DEADLINE)]),
                Kind::OneShot => guest.load(&[(LOAD_ADDRESS, guests::ONE_SHOT)]),
                Kind::Pair => guest.load(&[
                    (LOAD_ADDRESS, guests::PAIR_FIRST),
                    (SECOND_ADDRESS, guests::PAIR_SECOND),
                ]),
            }
        }
        guest
    }

    /// What the guest writes, computed here.
    fn expected(self) -> String {
        match self {
            Kind::Compute => {
                let (mut number, mut sum) = (0x9e37_79b9_7f4a_7c15u64, 0u64);
                for _ in 0..60_000 {
                    number ^= number << 13;
                    number ^= number >> 7;
                    number ^= number << 17;
                    sum = sum.wrapping_add(number);
                }
                const SET: u64 = 0x1122_3344_5566;
                let parts =
                    [0x0123_4567_89ab_cdef, 200 * 0x0008_1b36, SET, SET.rotate_left(8), SET];
                sum = parts.into_iter().fold(sum, u64::wrapping_add);
                ".,".repeat(200) + &digits(sum, 16)
            }
            Kind::Pair => {
                let step = |number: u32, factor: u32, add: u32| {
                    number.wrapping_mul(factor).wrapping_add(add)
                };
                let turn = |number, _| step(step(number, 69_069, 1), 1_664_525, 1_013_904_223);
                "0".to_owned() + &digits((0..4000).fold(0, turn).into(), 8)
            }
            Kind::Deadline | Kind::OneShot => ".".repeat(150),
            Kind::Disk => {
                let sector = |sum: u64, sector: u64| {
                    let sum = sum.wrapping_add(Pattern::word(sector * 64)).rotate_left(1);
                    sum.wrapping_add(Pattern::word(sector * 64 + 63))
                };
                ".".repeat(400) + &digits((0..400).fold(0, sector), 16)
            }
        }
    }

    /// Waits for a moment that `dice` chooses. The guest has written `before` bytes in other machines.
    fn wait(self, started: &Started, before: usize, dice: &mut Dice) {
        // The last digits come all at once; the pair writes nothing before them.
        let last = self.expected().len().saturating_sub(20);
        let len = last.saturating_sub(before).min(dice.below(100) as usize);
        while started.output().len() < len {
            started.news.recv_timeout(DEADLINE).expect("the guest hangs");
        }
        std::thread::sleep(Duration::from_micros(dice.below(15_000)));
    }
}

/// The lowest `count` hexadecimal digits as the guests write them.
fn digits(number: u64, count: u32) -> String {
    (0..count).rev().map(|digit| char::from(b'A' + (number >> (4 * digit) & 15) as u8)).collect()
}

/// A disk of 4 MiB in which every 8 bytes tell their place, slow enough for a pause to find requests under way.
struct Pattern;

impl Pattern {
    fn word(index: u64) -> u64 {
        (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Block for Pattern {
    fn len(&self) -> u64 {
        4 << 20
    }
    fn cluster_size(&self) -> u64 {
        4096
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        std::thread::sleep(Duration::from_micros(500));
        for (word, bytes) in (offset / 8..).zip(buf.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&Self::word(word).to_le_bytes());
        }
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<(), DiskError> {
        unreachable!("the disk is read-only")
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        unreachable!("the disk is read-only")
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), DiskError> {
        unreachable!("the disk is read-only")
    }
    fn next_data(&self, _: u64) -> Result<Option<Extent>, DiskError> {
        Ok(None)
    }
    fn is_read_only(&self) -> bool {
        true
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit
    }
}

/// Pauses the machine; `None` when its guest has come to its end.
fn pause(started: &Started) -> Option<Paused> {
    match started.running.handle().pause() {
        Ok(paused) => Some(paused),
        Err(Error::Ended(exit)) if *exit == Exit::Shutdown => None,
        Err(error) => panic!("{error}"),
    }
}

fn ram(paused: &Paused) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    paused.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Builds the machine anew and puts the saved one into it.
fn restored(kind: Kind, state: &[u8], ram: &[u8]) -> Guest {
    let mut guest = unrestored(kind, ram);
    guest.machine.restore(&MachineState::from_bytes(state).unwrap()).unwrap();
    guest
}

/// Builds the machine anew around the saved one's memory.
fn unrestored(kind: Kind, ram: &[u8]) -> Guest {
    let memory = memory::reserve(MEMORY).unwrap();
    memory.write_slice(ram, GuestAddress(0)).unwrap();
    kind.build(Some(memory))
}

#[test]
fn guests_come_to_their_result_undisturbed() {
    let _alone = alone();
    for kind in KINDS {
        assert_eq!(kind.build(None).run(), (Exit::Shutdown, kind.expected()), "{kind:?}");
    }
}

#[test]
fn pausing_at_any_moment_changes_no_result() {
    let _alone = alone();
    for kind in KINDS {
        let mut dice = Dice::new(1);
        let started = kind.build(None).start();
        let mut pauses = 0;
        while pauses < 40 {
            std::thread::sleep(Duration::from_micros(dice.below(15_000)));
            let Some(paused) = pause(&started) else { break };
            if dice.below(4) == 0 {
                paused.state().unwrap();
            }
            paused.resume().unwrap();
            pauses += 1;
        }
        assert!(pauses > 0, "{kind:?} ended before it was paused");
        assert_eq!(started.end(), (Exit::Shutdown, kind.expected()), "{kind:?}");
    }
}

#[test]
fn guests_restored_at_any_moment_come_to_their_result() {
    let _alone = alone();
    for kind in KINDS {
        for seed in 0..2 {
            let mut dice = Dice::new(seed);
            let (mut started, mut output) = (kind.build(None).start(), String::new());
            let mut restores = 0;
            while restores < 6 {
                kind.wait(&started, output.len(), &mut dice);
                let Some(paused) = pause(&started) else { break };
                let (state, ram) = (paused.state().unwrap().to_bytes(), ram(&paused));
                drop(paused);
                let (exit, text) = started.end();
                assert_eq!(exit, Exit::Stopped);
                output += &text;
                started = restored(kind, &state, &ram).start();
                restores += 1;
            }
            let (exit, text) = started.end();
            assert_eq!(
                (exit, output + &text),
                (Exit::Shutdown, kind.expected()),
                "{kind:?} {seed}"
            );
            assert!(restores > 0, "{kind:?} {seed} ended before it was saved");
        }
    }
}

/// Name the folder in which a child of [`another_process_goes_on`] finds its guest, which guest it is, how much it has
/// written, and how many processes have gone on with it.
const FOLDER: &str = "KVMBAKE_TEST_SNAPSHOT";
const KIND: &str = "KVMBAKE_TEST_SNAPSHOT_KIND";
const WRITTEN: &str = "KVMBAKE_TEST_SNAPSHOT_WRITTEN";
const ROUND: &str = "KVMBAKE_TEST_SNAPSHOT_ROUND";
/// Processes that save their guest again; the next one goes on to the end.
const PROCESSES: usize = 6;

#[test]
fn another_process_goes_on() {
    let _alone = alone();
    for (index, kind) in KINDS.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let started = kind.build(None).start();
        kind.wait(&started, 0, &mut Dice::new(7));
        save(&pause(&started).expect("still running"), folder.path());
        let (exit, mut output) = started.end();
        assert_eq!(exit, Exit::Stopped);
        let mut processes = 0;
        while !folder.path().join("ended").exists() {
            assert!(processes <= PROCESSES, "the last process goes on to the end");
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "the_other_process", "--nocapture"])
                .env(FOLDER, folder.path())
                .env(KIND, index.to_string())
                .env(WRITTEN, output.len().to_string())
                .env(ROUND, processes.to_string())
                .output()
                .unwrap();
            assert!(child.status.success(), "{kind:?}: {child:?}");
            output += &fs::read_to_string(folder.path().join("output")).unwrap();
            processes += 1;
        }
        assert_eq!(output, kind.expected(), "{kind:?} in {processes} processes");
    }
}

/// Only what [`another_process_goes_on`] starts does something here: it goes on with the guest for a while and saves it again.
#[test]
fn the_other_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let kind = KINDS[number(KIND)];
    let folder = Path::new(&folder);
    let read = |name| fs::read(folder.join(name)).unwrap();
    let guest = restored(kind, &read("state"), &read("ram"));
    let started = guest.start();
    let paused = if number(ROUND) < PROCESSES {
        kind.wait(&started, number(WRITTEN), &mut Dice::new(number(ROUND) as u64));
        pause(&started)
    } else {
        None
    };
    if let Some(paused) = &paused {
        save(paused, folder);
    }
    let saved = paused.is_some();
    drop(paused);
    let (exit, output) = started.end();
    fs::write(folder.join("output"), output).unwrap();
    if saved {
        assert_eq!(exit, Exit::Stopped);
    } else {
        assert_eq!(exit, Exit::Shutdown);
        fs::write(folder.join("ended"), "").unwrap();
    }
}

fn save(paused: &Paused, folder: &Path) {
    fs::write(folder.join("state"), paused.state().unwrap().to_bytes()).unwrap();
    fs::write(folder.join("ram"), ram(paused)).unwrap();
}
