//! A virtqueue in the hands of the thread that serves it: chains out, used buffers in, and the
//! suppression of notifications in both directions.
//!
//! The available side is virtio-queue's. The used side is ours: several buffers that make up one
//! frame must become visible at once (VIRTIO 1.2, 5.1.6.4.1), for which that crate has no call.
//! See VIRTIO 1.2, section 2.7.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as RingError, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::ActivateError;
use super::chain::{Chain, MalformedChain};
use super::signals::Signals;
use crate::memory::GuestMemory;

/// A ring that can no longer be served: the driver has broken it.
#[derive(Debug, thiserror::Error)]
#[error("Queue {index} is broken ({reason})")]
pub struct QueueFault {
    /// The queue.
    pub index: u16,
    /// What is wrong with it.
    pub reason: RingError,
}

/// What [`Virtqueue::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// A request, now in the chain.
    Request,
    /// A chain that makes no sense. It still belongs to the device, which gives it back unserved.
    Malformed(MalformedChain),
    /// Nothing.
    Empty,
}

/// One queue of an active device.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: GuestMemory,
    kick: Arc<EventFd>,
    signals: Arc<Signals>,
    /// The used index when the driver was last considered for an interrupt.
    considered: Wrapping<u16>,
}

impl Virtqueue {
    /// Returns queue `index` as `state` describes it.
    ///
    /// # Errors
    /// [`ActivateError::BadQueue`] when the rings are not in `memory`.
    pub fn new(
        index: u16,
        state: QueueState,
        memory: GuestMemory,
        kick: Arc<EventFd>,
        signals: Arc<Signals>,
    ) -> Result<Self, ActivateError> {
        let bad = |_| ActivateError::BadQueue(index);
        let queue = Queue::try_from(state).map_err(bad)?;
        if !queue.is_valid(&memory) {
            return Err(ActivateError::BadQueue(index));
        }
        let considered = Wrapping(state.next_used);
        Ok(Self { index, queue, memory, kick, signals, considered })
    }

    /// Returns the queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns the number of entries in its rings.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Returns the guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Returns the eventfd that the driver's notification signals.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Returns the signals of the queue's device.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Returns the queue as plain values, from which it can go on later.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next request into `chain`.
    ///
    /// # Errors
    /// [`QueueFault`] when the ring itself makes no sense; the device must stop serving it.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Popped, QueueFault> {
        let index = self.index;
        let fault = |reason| QueueFault { index, reason };
        let before = self.queue.next_avail();
        let popped = self.queue.iter(&self.memory).map_err(fault)?.next();
        match popped.map(|source| chain.fill(source)) {
            Some(Ok(())) => Ok(Popped::Request),
            Some(Err(malformed)) if malformed.0 < self.queue.size() => {
                Ok(Popped::Malformed(malformed))
            }
            Some(Err(_)) => {
                self.queue.set_next_avail(before);
                Err(fault(RingError::InvalidDescriptorIndex))
            }
            None => Ok(Popped::Empty),
        }
    }

    /// Puts the last `count` popped chains back into the available ring.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Gives buffers back to the driver, each with the bytes written to it; all of them become
    /// visible at once. The interrupt is left to [`notify`](Virtqueue::notify).
    ///
    /// # Errors
    /// [`QueueFault`] when the ring is not in memory, which was checked on activation.
    pub fn publish(&mut self, used: &[(u16, u32)]) -> Result<(), QueueFault> {
        let fault = |reason| QueueFault { index: self.index, reason };
        let mut next = Wrapping(self.queue.next_used());
        for &(head, len) in used {
            let slot = u64::from(next.0 % self.queue.size());
            let address = self.used_field(4 + 8 * slot).map_err(fault)?;
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&len.to_le_bytes());
            let written = self.memory.write_slice(&element, address);
            written.map_err(|error| fault(RingError::GuestMemory(error)))?;
            next += 1;
        }
        self.queue.set_next_used(next.0);
        let address = self.used_field(2).map_err(fault)?;
        let stored = self.memory.store(next.0.to_le(), address, Ordering::Release);
        stored.map_err(|error| fault(RingError::GuestMemory(error)))
    }

    /// Interrupts the driver if it wants to hear of what was published since the last call.
    ///
    /// # Errors
    /// [`QueueFault`] when the ring is not in memory.
    pub fn notify(&mut self) -> Result<(), QueueFault> {
        let used = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.considered, used);
        if used == before {
            return Ok(());
        }
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx_enabled() {
            let event = Wrapping(self.avail_u16(4 + 2 * u64::from(self.queue.size()))?);
            used - event - Wrapping(1) < used - before
        } else {
            self.avail_u16(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        };
        if wanted {
            self.signals.queue_used(self.index);
        }
        Ok(())
    }

    /// Asks the driver to notify of new requests. Returns whether there are some already, in which
    /// case no notification may come for them.
    ///
    /// # Errors
    /// [`QueueFault`] when the ring is not in memory.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueFault> {
        let index = self.index;
        self.queue.enable_notification(&self.memory).map_err(|reason| QueueFault { index, reason })
    }

    /// Tells the driver that notifications are not needed for now.
    ///
    /// # Errors
    /// [`QueueFault`] when the ring is not in memory.
    pub fn disable_kicks(&mut self) -> Result<(), QueueFault> {
        let index = self.index;
        self.queue.disable_notification(&self.memory).map_err(|reason| QueueFault { index, reason })
    }

    fn used_field(&self, offset: u64) -> Result<GuestAddress, RingError> {
        GuestAddress(self.queue.used_ring()).checked_add(offset).ok_or(RingError::AddressOverflow)
    }

    fn avail_u16(&self, offset: u64) -> Result<u16, QueueFault> {
        let fault = |reason| QueueFault { index: self.index, reason };
        let address = GuestAddress(self.queue.avail_ring())
            .checked_add(offset)
            .ok_or_else(|| fault(RingError::AddressOverflow))?;
        let value = self.memory.load::<u16>(address, Ordering::Relaxed);
        value.map(u16::from_le).map_err(|error| fault(RingError::GuestMemory(error)))
    }
}
