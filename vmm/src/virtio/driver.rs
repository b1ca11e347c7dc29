//! The guest's side of virtio for tests: split rings in guest memory, interrupts as counters.
//!
//! See VIRTIO 1.2, section 2.7.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Signals, VirtioDevice, Virtqueue, feature};
use crate::memory::GuestMemory;
use crate::pci::wiring::fake::FakeVector;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Where the data of tests lies; the rings are below.
pub const DATA: u64 = 0x10_0000;
pub const MEMORY: usize = 8 << 20;

pub fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

/// A buffer as a driver thinks of it.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

pub fn out(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

pub fn into(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// One queue as the driver sees it.
pub struct Ring {
    pub memory: GuestMemory,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    next_desc: u16,
    next_avail: u16,
    last_used: u16,
}

impl Ring {
    /// Lays out queue `index` below the data.
    pub fn new(memory: &GuestMemory, index: u16, size: u16) -> Self {
        let base = 0x1000 + u64::from(index) * 0x8000;
        let (desc, avail, used) = (base, base + 0x4000, base + 0x6000);
        let memory = memory.clone();
        Self { memory, size, desc, avail, used, next_desc: 0, next_avail: 0, last_used: 0 }
    }

    pub fn state(&self, event_idx_enabled: bool) -> QueueState {
        QueueState {
            max_size: self.size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        }
    }

    pub fn write_descriptor(&self, table: u64, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        let flags = flags | if buffer.writable { WRITE } else { 0 };
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes `head` available, whatever it names.
    pub fn offer(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.memory.store(self.next_avail, GuestAddress(self.avail + 2), Ordering::SeqCst).unwrap();
    }

    /// Adds a chain of `buffers` and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (position, &buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let flags = if position + 1 < buffers.len() { NEXT } else { 0 };
            self.write_descriptor(self.desc, index, buffer, flags, self.next_desc);
        }
        self.offer(head);
        head
    }

    /// As [`Ring::add`], through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, &buffer) in (0..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            self.write_descriptor(table, index, buffer, if last { 0 } else { NEXT }, index + 1);
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        self.write_descriptor(self.desc, head, out(table, buffers.len() as u32 * 16), INDIRECT, 0);
        self.offer(head);
        head
    }

    /// Returns the device's used index.
    pub fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(self.used + 2), Ordering::SeqCst).unwrap()
    }

    /// Takes the next used buffer: head and bytes written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.last_used {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        self.last_used = self.last_used.wrapping_add(1);
        let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        Some((read(slot), read(slot + 4)))
    }

    /// Asks for an interrupt once the device has used `further` more buffers (event indices).
    pub fn want_interrupt_after(&self, further: u16) {
        let event = self.last_used.wrapping_add(further - 1);
        let address = GuestAddress(self.avail + 4 + 2 * u64::from(self.size));
        self.memory.store(event, address, Ordering::SeqCst).unwrap();
    }
}

/// A guest with one device, reached without a bus.
pub struct Guest {
    pub memory: GuestMemory,
    pub rings: Vec<Ring>,
    pub kicks: Vec<Arc<EventFd>>,
    /// One for each queue.
    pub vectors: Vec<Arc<FakeVector>>,
    /// The configuration's.
    pub config_vector: Arc<FakeVector>,
    pub signals: Arc<Signals>,
    event_idx: bool,
}

impl Guest {
    pub fn new(queue_sizes: &[u16]) -> Self {
        let memory = memory();
        let all: Vec<_> = (0..=queue_sizes.len()).map(|_| FakeVector::unmasked()).collect();
        let dynamic = all.iter().map(|vector| vector.clone() as Arc<_>).collect();
        let signals = Signals::new("test".to_owned(), queue_sizes.len(), dynamic);
        signals.set_config_vector(0);
        let kick = |_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut rings = Vec::new();
        for (index, &size) in (0..).zip(queue_sizes) {
            rings.push(Ring::new(&memory, index, size));
            signals.set_queue_vector(index, index + 1);
        }
        Self {
            memory,
            kicks: queue_sizes.iter().map(kick).collect(),
            rings,
            config_vector: all[0].clone(),
            vectors: all[1..].to_vec(),
            signals,
            event_idx: false,
        }
    }

    /// Starts `device` on the rings as they are, with all its queues.
    pub fn activate(&mut self, device: &mut dyn VirtioDevice, features: u64) {
        let event_idx = features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
        let states: Vec<_> =
            (0..).zip(&self.rings).map(|(index, ring)| (index, ring.state(event_idx))).collect();
        self.resume(device, features, &states);
    }

    /// Starts `device` on queues in the given states.
    pub fn resume(
        &mut self,
        device: &mut dyn VirtioDevice,
        features: u64,
        states: &[(u16, QueueState)],
    ) {
        self.event_idx = features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
        let queue = |&(index, state): &(u16, QueueState)| {
            let kick = self.kicks[usize::from(index)].clone();
            Virtqueue::new(index, state, self.memory.clone(), kick, self.signals.clone()).unwrap()
        };
        let queues = states.iter().map(queue).collect();
        let signals = self.signals.clone();
        device.activate(Activation { features, queues, signals }).unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Waits for the next used buffer of `queue`, by interrupt.
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        loop {
            let seen = self.vectors[queue].state().delivered;
            if self.event_idx {
                self.rings[queue].want_interrupt_after(1);
            }
            if let Some(used) = self.rings[queue].take_used() {
                return used;
            }
            self.vectors[queue].wait_beyond(seen);
        }
    }

    /// Offers `buffers`, kicks, and returns the bytes written once the device is done.
    pub fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.rings[queue].add(buffers);
        self.kick(queue);
        let (used, len) = self.wait_used(queue);
        assert_eq!(used, u32::from(head));
        len
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
