//! A driver against the transport, through the PCI root as a vCPU would reach it.

mod restored;

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use crate::bus::{Action, SharedDevice};
use crate::memory::GuestMemory;
use crate::pci::wiring::fake::{FakeDoorbells, FakeVectors};
use crate::pci::{PciRoot, Windows};
use crate::virtio::driver::{DATA, Dice, Ring, into, memory};
use crate::virtio::{ActivateError, Activation, QueueState, RngDevice, VirtioDevice, feature};

const BAR: u64 = 0xc000_0000;
const CONFIG: u64 = 8 << 12;
const VERSION_1: u64 = 1 << 32;

/// A guest's view of one device in slot 1.
struct Machine {
    memory: GuestMemory,
    root: PciRoot,
    ecam: SharedDevice,
    low: SharedDevice,
    high: SharedDevice,
    vectors: FakeVectors,
    doorbells: Arc<FakeDoorbells>,
}

impl Machine {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, memory())
    }

    fn with_memory(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let windows = Windows { low: BAR..0xe000_0000, high: 1 << 32..2 << 32 };
        let root = PciRoot::new(windows);
        let (vectors, doorbells) = (FakeVectors::default(), Arc::new(FakeDoorbells::default()));
        root.add_virtio(device, &memory, &vectors, doorbells.clone()).unwrap();
        let (ecam, low, high) = (root.ecam(), root.low_window(), root.high_window());
        Self { memory, root, ecam, low, high, vectors, doorbells }
    }

    fn read<const N: usize>(&self, offset: u64) -> u64 {
        let mut data = [0xff; N];
        self.low.lock().unwrap().read(offset, &mut data);
        data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn write<const N: usize>(&self, offset: u64, value: u64) {
        let action = self.low.lock().unwrap().write(offset, &value.to_le_bytes()[..N]);
        assert_eq!(action, Action::None);
    }

    fn config_read<const N: usize>(&self, offset: u64) -> u64 {
        let mut data = [0xff; N];
        self.ecam.lock().unwrap().read(CONFIG + offset, &mut data);
        data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn config_write<const N: usize>(&self, offset: u64, value: u64) {
        self.ecam.lock().unwrap().write(CONFIG + offset, &value.to_le_bytes()[..N]);
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14) as u8
    }

    fn set_status(&self, status: u8) {
        self.write::<1>(0x14, status.into());
    }

    fn device_features(&self) -> u64 {
        self.write::<4>(0, 1);
        let high = self.read::<4>(4);
        self.write::<4>(0, 0);
        high << 32 | self.read::<4>(4)
    }

    fn set_features(&self, features: u64) {
        self.write::<4>(8, 0);
        self.write::<4>(0xc, features & 0xffff_ffff);
        self.write::<4>(8, 1);
        self.write::<4>(0xc, features >> 32);
    }

    /// As Linux does: everything up to DRIVER_OK, the vectors programmed and unmasked.
    fn bring_up(&self, features: u64, ring: &Ring) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        self.set_features(features);
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb);
        let msix = self.capability(0x11);
        self.config_write::<2>(msix + 2, 0x8000);
        for vector in 0..2 {
            self.write::<4>(0x4000 + vector * 16, 0xfee0_0000);
            self.write::<4>(0x4008 + vector * 16, 0x40 + vector);
            self.write::<4>(0x400c + vector * 16, 0);
        }
        self.write::<2>(0x10, 0);
        self.write::<2>(0x16, 0);
        self.write::<2>(0x18, ring.size.into());
        self.write::<2>(0x1a, 1);
        self.write::<4>(0x20, ring.desc);
        self.write::<4>(0x24, 0);
        self.write::<8>(0x28, ring.avail);
        self.write::<8>(0x30, ring.used);
        self.write::<2>(0x1c, 1);
        self.set_status(0xf);
    }

    fn capability(&self, id: u64) -> u64 {
        let mut at = self.config_read::<1>(0x34);
        while self.config_read::<1>(at) != id {
            at = self.config_read::<1>(at + 1);
            assert_ne!(at, 0, "no capability {id:#x}");
        }
        at
    }

    /// Returns the offset of the virtio capability of `kind`.
    fn virtio_capability(&self, kind: u64) -> u64 {
        let mut at = self.config_read::<1>(0x34);
        while self.config_read::<1>(at) != 9 || self.config_read::<1>(at + 3) != kind {
            at = self.config_read::<1>(at + 1);
            assert_ne!(at, 0, "no virtio capability {kind}");
        }
        at
    }
}

fn sevens() -> Box<dyn VirtioDevice> {
    Box::new(RngDevice::with_source(Box::new(|bytes| {
        bytes.fill(7);
        Ok(())
    })))
}

#[test]
fn driver_brings_the_device_up_and_gets_an_answer() {
    let machine = Machine::new(sevens());
    for features in [VERSION_1, VERSION_1 | feature(VIRTIO_RING_F_EVENT_IDX)] {
        machine.memory.write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        let mut ring = Ring::new(&machine.memory, 0, 16);
        machine.bring_up(features, &ring);
        assert_eq!(machine.status(), 0xf);
        ring.add(&[into(DATA, 100), into(DATA + 200, 28)]);
        let vector = machine.vectors.get(1);
        let seen = vector.state().delivered;
        machine.write::<2>(0x3000, 0);
        vector.wait_beyond(seen);
        assert_eq!(ring.take_used(), Some((0, 128)));
        assert_eq!(machine.memory.read_obj::<u8>(GuestAddress(DATA + 227)).unwrap(), 7);
        assert_eq!(vector.state().route, Some((0xfee0_0000, 0x41)));
        machine.set_status(0);
        assert_eq!(machine.status(), 0);
        assert_eq!(machine.read::<2>(0x1c), 0, "the queue is off again");
    }
}

#[test]
fn features_are_shown_by_halves_and_foreign_ones_refused() {
    let machine = Machine::new(sevens());
    let offered = machine.device_features();
    assert_eq!(offered, VERSION_1 | 1 << 28 | 1 << 29);
    machine.write::<4>(0, 2);
    assert_eq!(machine.read::<4>(4), 0, "there is no third half");
    for bad in [0, 1 << 28, VERSION_1 | 1, VERSION_1 << 1 | VERSION_1] {
        machine.set_status(0);
        machine.set_status(3);
        machine.set_features(bad);
        machine.set_status(0xb);
        assert_eq!(machine.status(), 3, "{bad:#x} must not be accepted");
        machine.set_status(0xf);
        assert_eq!(machine.status() & 4, 0, "DRIVER_OK needs FEATURES_OK");
    }
    machine.set_status(0);
    machine.set_status(3);
    machine.set_features(VERSION_1);
    machine.set_status(0xb);
    machine.set_features(offered);
    machine.write::<4>(8, 0);
    assert_eq!(machine.read::<4>(0xc), 0, "features are fixed by FEATURES_OK");
}

#[test]
fn queue_registers_take_only_what_makes_sense() {
    let machine = Machine::new(sevens());
    assert_eq!(machine.read::<2>(0x12), 1);
    assert_eq!(machine.read::<2>(0x18), 64);
    for size in [0, 3, 63, 128, 0x8000, 0xffff] {
        machine.write::<2>(0x18, size);
        assert_eq!(machine.read::<2>(0x18), 64, "{size}");
    }
    machine.write::<2>(0x18, 32);
    assert_eq!(machine.read::<2>(0x18), 32);
    machine.write::<2>(0x1a, 2);
    assert_eq!(machine.read::<2>(0x1a), 0xffff, "vector 2 does not exist");
    machine.write::<2>(0x1a, 1);
    assert_eq!(machine.read::<2>(0x1a), 1);
    machine.write::<2>(0x1c, 2);
    assert_eq!(machine.read::<2>(0x1c), 0);
    machine.write::<2>(0x1c, 1);
    machine.write::<4>(0x20, 0x1000);
    assert_eq!(machine.read::<4>(0x20), 0, "an enabled queue stays as it is");
    machine.write::<2>(0x16, 9);
    assert_eq!(machine.read::<2>(0x18), 0, "a queue that does not exist has size 0");
    machine.write::<2>(0x18, 16);
    machine.write::<2>(0x1c, 1);
    assert_eq!(machine.read::<2>(0x1c), 0);
}

#[test]
fn rings_outside_memory_make_the_device_need_a_reset() {
    let machine = Machine::new(sevens());
    for (desc, avail, used) in [
        (0x8000_0000, 0x5000, 0x7000),
        (0x1000, u64::MAX - 1, 0x7000),
        (0x1000, 0x5000, (8 << 20) - 4),
        (0x1008, 0x5000, 0x7000),
        (0x1000, 0x5001, 0x7000),
    ] {
        let mut ring = Ring::new(&machine.memory, 0, 16);
        (ring.desc, ring.avail, ring.used) = (desc, avail, used);
        let vector = machine.vectors.get(0);
        let seen = vector.state().delivered;
        machine.bring_up(VERSION_1, &ring);
        assert_eq!(machine.status(), 0x4f, "{desc:#x} {avail:#x} {used:#x}");
        assert_eq!(vector.state().delivered, seen + 1, "the driver is told");
    }
    let ring = Ring::new(&machine.memory, 0, 16);
    machine.bring_up(VERSION_1, &ring);
    assert_eq!(machine.status(), 0xf, "a reset helps");
}

#[test]
fn driver_without_queues_is_told_to_reset() {
    let machine = Machine::new(sevens());
    machine.set_status(3);
    machine.set_features(VERSION_1);
    machine.set_status(0xb);
    machine.set_status(0xf);
    assert_eq!(machine.status(), 0x4f);
}

#[test]
fn capabilities_lead_to_the_registers() {
    let machine = Machine::new(sevens());
    assert_eq!(machine.config_read::<4>(0), 0x1044_1af4);
    let common = machine.virtio_capability(1);
    assert_eq!(machine.config_read::<1>(common + 2), 16);
    assert_eq!(
        (machine.config_read::<4>(common + 8), machine.config_read::<4>(common + 12)),
        (0, 0x38)
    );
    let notify = machine.virtio_capability(2);
    assert_eq!(machine.config_read::<1>(notify + 2), 20);
    assert_eq!(machine.config_read::<4>(notify + 8), 0x3000);
    assert_eq!(machine.config_read::<4>(notify + 16), 4, "notify_off_multiplier");
    for kind in [3, 4] {
        assert_eq!(machine.config_read::<1>(machine.virtio_capability(kind) + 4), 0);
    }
}

#[test]
fn configuration_access_capability_reaches_the_bar() {
    let machine = Machine::new(sevens());
    let cap = machine.virtio_capability(5);
    machine.config_write::<4>(cap + 8, 0x14);
    machine.config_write::<4>(cap + 12, 1);
    machine.config_write::<1>(cap + 16, 3);
    assert_eq!(machine.status(), 3);
    assert_eq!(machine.config_read::<1>(cap + 16), 3);
    machine.config_write::<4>(cap + 8, 0x12);
    machine.config_write::<4>(cap + 12, 2);
    assert_eq!(machine.config_read::<4>(cap + 16) & 0xffff, 1, "one queue");
    for (bar, offset, len) in [(1, 0, 4), (0, 0x8000, 4), (0, 0xffff_fffc, 4), (0, 1, 2), (0, 0, 3)]
    {
        machine.config_write::<1>(cap + 4, bar);
        machine.config_write::<4>(cap + 8, offset);
        machine.config_write::<4>(cap + 12, len);
        machine.config_write::<4>(cap + 16, 0);
        machine.config_read::<4>(cap + 16);
    }
    assert_eq!(machine.status(), 3, "what points nowhere does nothing");
}

#[test]
fn doorbells_follow_the_bar() {
    let machine = Machine::new(sevens());
    let hung = || machine.doorbells.0.lock().unwrap().iter().copied().collect::<Vec<_>>();
    assert_eq!(hung(), [BAR + 0x3000]);
    machine.config_write::<2>(4, 0);
    assert!(hung().is_empty(), "decoding is off");
    machine.config_write::<4>(0x10, 0xffff_ffff);
    machine.config_write::<4>(0x10, 0);
    machine.config_write::<4>(0x14, 1);
    machine.config_write::<2>(4, 6);
    assert_eq!(hung(), [0x1_0000_3000]);
    let mut count = [0xff; 2];
    machine.high.lock().unwrap().read(0x12, &mut count);
    assert_eq!(count, [1, 0]);
    drop(machine.root);
    drop((machine.ecam, machine.low, machine.high));
    assert!(machine.doorbells.0.lock().unwrap().is_empty(), "nothing may be left behind");
}

/// A device that notes its life and that never starts.
struct Stubborn(Arc<Mutex<Vec<&'static str>>>);

impl VirtioDevice for Stubborn {
    fn device_type(&self) -> u32 {
        4
    }
    fn name(&self) -> String {
        "stubborn".to_owned()
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.0.lock().unwrap().push("activate");
        if activation.has(28) { Err(ActivateError::MissingQueue(3)) } else { Ok(()) }
    }
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        self.0.lock().unwrap().push("quiesce");
        Vec::new()
    }
}

#[test]
fn device_is_stopped_once_for_each_start() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let machine = Machine::new(Box::new(Stubborn(calls.clone())));
    let ring = Ring::new(&machine.memory, 0, 16);
    machine.bring_up(VERSION_1 | 1 << 28, &ring);
    assert_eq!(machine.status(), 0x4f);
    machine.bring_up(VERSION_1, &ring);
    assert_eq!(*calls.lock().unwrap(), ["activate", "activate"]);
    machine.set_status(0xf);
    machine.set_status(0);
    machine.set_status(0);
    machine.bring_up(VERSION_1, &ring);
    machine.root.stop();
    machine.root.stop();
    let life = ["activate", "activate", "quiesce", "activate", "quiesce"];
    assert_eq!(*calls.lock().unwrap(), life);
}

#[test]
fn random_register_accesses_never_harm_the_machine() {
    for seed in 0..10 {
        let machine = Machine::new(sevens());
        let mut dice = Dice::new(seed);
        for _ in 0..4000 {
            let value = dice.pick(&[0, 1, 2, 3, 0xf, 0xffff, 0x1000, u64::MAX, 0xc000_0000]);
            let near =
                dice.pick(&[0, 0x14, 0x18, 0x1c, 0x20, 0x30, 0x2000, 0x3000, 0x4000, 0x6000]);
            let offset = near + dice.below(0x28);
            let mut data = [0; 8];
            match dice.below(8) {
                0 => machine.write::<1>(offset, value),
                1 => machine.write::<2>(offset & !1, value),
                2 => machine.write::<4>(offset & !3, value),
                3 => machine.write::<8>(offset & !7, value),
                4 => machine.config_write::<4>(dice.below(64) * 4, value),
                5 => machine.config_write::<1>(dice.below(4096), value),
                6 => machine.high.lock().unwrap().read(offset, &mut data),
                _ => drop((machine.read::<8>(offset), machine.config_read::<4>(offset & 0xfff))),
            }
        }
        // Wherever the BAR is by now, it can be put back and the device brought up.
        machine.config_write::<2>(4, 0);
        machine.config_write::<8>(0x10, BAR);
        machine.config_write::<2>(4, 6);
        let ring = Ring::new(&machine.memory, 0, 16);
        machine.bring_up(VERSION_1, &ring);
        assert_eq!(machine.status(), 0xf, "seed {seed}");
    }
}
