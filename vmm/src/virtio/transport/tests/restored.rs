//! A driver whose device is paused, saved and put into another machine while requests are under way.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvmbake_disk::{Block, Error as DiskError, Extent, MemoryBlock};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::*;
use crate::snapshot::{decode, encode};
use crate::virtio::driver::out;
use crate::virtio::{BlockDevice, BlockOptions};

const SECTORS: u64 = 512;
const DEADLINE: Duration = Duration::from_secs(60);

/// A disk that takes its time while it is asked to.
struct Slow {
    inner: MemoryBlock,
    slow: AtomicBool,
}

impl Slow {
    fn new() -> Arc<Self> {
        let inner = MemoryBlock::zeroes((SECTORS * 512) as usize);
        Arc::new(Self { inner, slow: AtomicBool::new(true) })
    }

    fn wait(&self) {
        if self.slow.load(SeqCst) {
            sleep(Duration::from_micros(300));
        }
    }
}

impl Block for Slow {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn cluster_size(&self) -> u64 {
        self.inner.cluster_size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.wait();
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.wait();
        self.inner.write_at(buf, offset)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inner.write_zeroes(offset, len)
    }
    fn next_data(&self, from: u64) -> Result<Option<Extent>, DiskError> {
        self.inner.next_data(from)
    }
    fn is_read_only(&self) -> bool {
        false
    }
}

impl Machine {
    fn with_disk(disk: &Arc<Slow>, memory: GuestMemory) -> Self {
        let device = BlockDevice::new(disk.clone(), BlockOptions::default());
        Self::with_memory(Box::new(device), memory)
    }

    /// Moves the driver's device into a new machine around the same memory.
    fn moved(self, disk: &Arc<Slow>) -> Self {
        self.root.pause().unwrap();
        let saved = encode(&self.root.save());
        let memory = self.memory.clone();
        drop(self);
        let machine = Self::with_disk(disk, memory);
        machine.root.restore(&decode::<Vec<_>>(&saved).unwrap()).unwrap();
        assert_eq!(encode(&machine.root.save()), saved, "what is restored is what was saved");
        machine.root.resume().unwrap();
        machine
    }
}

/// The place of request `number`'s header; its data and its status follow.
fn place(number: u64) -> u64 {
    DATA + number * 0x400
}

/// Offers a request to write or to read back sector `number`.
fn offer(machine: &Machine, ring: &mut Ring, number: u64, write: bool) -> u16 {
    let header = place(number);
    let kind = if write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
    machine.memory.write_obj(kind, GuestAddress(header)).unwrap();
    machine.memory.write_obj(number, GuestAddress(header + 8)).unwrap();
    machine.memory.write_obj(0xffu8, GuestAddress(header + 0x300)).unwrap();
    let content = if write { number as u8 } else { 0xee };
    machine.memory.write_slice(&[content; 512], GuestAddress(header + 0x100)).unwrap();
    let data = if write { out(header + 0x100, 512) } else { into(header + 0x100, 512) };
    ring.add(&[out(header, 16), data, into(header + 0x300, 1)])
}

/// Takes `count` used buffers, by interrupt wherever none has come yet, and returns their heads.
fn take(machine: &Machine, ring: &mut Ring, event_idx: bool, count: usize) -> Vec<u32> {
    let (vector, deadline) = (machine.vectors.get(1), Instant::now() + DEADLINE);
    let mut heads = Vec::new();
    while heads.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} requests were served", heads.len());
        let seen = vector.state().delivered;
        if event_idx {
            ring.want_interrupt_after(1);
        }
        match ring.take_used() {
            Some((head, _)) => heads.push(head),
            None => drop(vector.wait_beyond(seen)),
        }
    }
    heads
}

#[test]
fn requests_under_way_are_served_once_whoever_serves_them() {
    for seed in 0..4 {
        let event_idx = seed % 2 == 1;
        let features = VERSION_1 | if event_idx { feature(VIRTIO_RING_F_EVENT_IDX) } else { 0 };
        let (mut dice, disk) = (Dice::new(seed), Slow::new());
        let mut machine = Machine::with_disk(&disk, memory());
        let mut ring = Ring::new(&machine.memory, 0, 128);
        machine.bring_up(features, &ring);
        for write in [true, false] {
            let mut number = 0;
            while number < 200 {
                let batch = (1 + dice.below(40)).min(200 - number);
                let offered: Vec<u32> = (number..number + batch)
                    .map(|number| offer(&machine, &mut ring, number, write).into())
                    .collect();
                // A kick that never reaches the worker must not matter: it looks at the ring when it begins.
                if dice.below(2) == 0 {
                    machine.write::<2>(0x3000, 0);
                }
                sleep(Duration::from_micros(dice.below(3000)));
                for _ in 0..1 + dice.below(3) {
                    machine = machine.moved(&disk);
                }
                assert_eq!(take(&machine, &mut ring, event_idx, batch as usize), offered);
                assert_eq!(ring.take_used(), None, "nothing is served twice");
                number += batch;
            }
        }
        for number in 0..200 {
            let mut data = [0; 512];
            machine.memory.read_slice(&mut data, GuestAddress(place(number) + 0x100)).unwrap();
            assert_eq!(data, [number as u8; 512], "sector {number}, seed {seed}");
            let status: u8 = machine.memory.read_obj(GuestAddress(place(number) + 0x300)).unwrap();
            assert_eq!(status, 0);
        }
    }
}

#[test]
fn paused_device_serves_nothing_and_goes_on_by_itself() {
    let disk = Slow::new();
    disk.slow.store(false, SeqCst);
    let machine = Machine::with_disk(&disk, memory());
    let mut ring = Ring::new(&machine.memory, 0, 128);
    machine.bring_up(VERSION_1, &ring);
    machine.root.pause().unwrap();
    let head = offer(&machine, &mut ring, 3, true);
    machine.write::<2>(0x3000, 0);
    sleep(Duration::from_millis(20));
    assert_eq!(ring.take_used(), None);
    machine.root.resume().unwrap();
    assert_eq!(take(&machine, &mut ring, false, 1), [u32::from(head)]);
    machine.root.pause().unwrap();
    machine.root.pause().unwrap();
    machine.root.resume().unwrap();
    machine.root.resume().unwrap();
    let head = offer(&machine, &mut ring, 4, true);
    machine.write::<2>(0x3000, 0);
    assert_eq!(take(&machine, &mut ring, false, 1), [u32::from(head)]);
}

#[test]
fn device_without_a_driver_and_moved_bars_are_restored() {
    let disk = Slow::new();
    let machine = Machine::with_disk(&disk, memory()).moved(&disk);
    assert_eq!(machine.status(), 0);
    let mut ring = Ring::new(&machine.memory, 0, 128);
    machine.bring_up(VERSION_1, &ring);
    machine.config_write::<2>(4, 0);
    machine.config_write::<8>(0x10, 0x1_0000_0000);
    machine.config_write::<2>(4, 6);
    let machine = machine.moved(&disk);
    let hung: Vec<_> = machine.doorbells.0.lock().unwrap().iter().copied().collect();
    assert_eq!(hung, [0x1_0000_3000], "the doorbell is where the guest has put it");
    let head = offer(&machine, &mut ring, 0, true);
    machine.high.lock().unwrap().write(0x3000, &[0, 0]);
    assert_eq!(take(&machine, &mut ring, false, 1), [u32::from(head)]);
    let kept = machine.vectors.get(1).state().route;
    assert_eq!(kept, Some((0xfee0_0000, 0x41)), "the vector is the guest's");
}

#[test]
fn hostile_states_are_refused_or_the_guest_may_reset() {
    let disk = Slow::new();
    disk.slow.store(false, SeqCst);
    let machine = Machine::with_disk(&disk, memory());
    let ring = Ring::new(&machine.memory, 0, 128);
    machine.bring_up(VERSION_1, &ring);
    machine.root.pause().unwrap();
    let saved = machine.root.save();
    drop(machine);
    let mut taken = 0;
    for seed in 0..300 {
        let (mut dice, mut hostile) = (Dice::new(seed), saved.clone());
        for _ in 0..1 + dice.below(4) {
            let private = &mut hostile[1].private;
            let at = dice.below(private.len() as u64) as usize;
            private[at] = dice.pick(&[0, 1, 2, 0x7f, 0xff]);
        }
        let machine = Machine::with_disk(&disk, memory());
        if machine.root.restore(&hostile).is_err() {
            continue;
        }
        taken += 1;
        machine.root.resume().unwrap();
        machine.write::<2>(0x3000, 0);
        let mut ring = Ring::new(&machine.memory, 0, 128);
        machine.config_write::<2>(4, 0);
        machine.config_write::<8>(0x10, BAR);
        machine.config_write::<2>(4, 6);
        machine.bring_up(VERSION_1, &ring);
        let head = offer(&machine, &mut ring, 1, true);
        machine.write::<2>(0x3000, 0);
        assert_eq!(take(&machine, &mut ring, false, 1), [u32::from(head)], "seed {seed}");
    }
    assert!(taken > 50, "only {taken} states were taken at all");
}
