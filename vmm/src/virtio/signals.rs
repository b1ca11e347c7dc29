//! The device's side of everything that is not in a ring: interrupts, status, log lines.
//!
//! Shared between the transport, which answers the guest's register accesses, and the device's
//! threads. All atomics: a worker never waits for a vCPU here, nor the other way round.

use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU16};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

use crate::pci::MessageVector;
use crate::snapshot::RestoreError;

/// The vector number that means none.
pub const NO_VECTOR: u16 = 0xffff;

/// Time between two log lines about one device's guest.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The signals of one device.
pub struct Signals {
    name: String,
    vectors: Vec<Arc<dyn MessageVector>>,
    status: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    complaints: Mutex<Complaints>,
}

/// The registers as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSignals {
    status: u8,
    generation: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    suppressed: u64,
}

impl Signals {
    /// Returns the signals of device `name` with `queues` queues over `vectors`.
    pub fn new(name: String, queues: usize, vectors: Vec<Arc<dyn MessageVector>>) -> Arc<Self> {
        Arc::new(Self {
            name,
            vectors,
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            complaints: Mutex::default(),
        })
    }

    /// Interrupts the driver because of used buffers in queue `index`.
    pub fn queue_used(&self, index: u16) {
        self.trigger(self.queue_vector(index));
    }

    /// Tells the driver that the device's configuration has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.trigger(self.config_vector());
    }

    /// Gives up on the driver: says so in the device's status, and why in the log.
    pub fn needs_reset(&self, reason: impl fmt::Display) {
        self.complain(format_args!("{reason}; it needs a reset"));
        let before = self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET as u8, SeqCst);
        if before & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0 {
            self.trigger(self.config_vector());
        }
    }

    /// Logs what the guest has done wrong, at most one line in ten seconds.
    pub fn complain(&self, reason: impl fmt::Display) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            complaints.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut complaints.suppressed);
        complaints.last = Some(Instant::now());
        tracing::warn!(device = self.name, suppressed, "virtio device is in trouble: {reason}");
    }

    /// Returns the device status register.
    pub fn status(&self) -> u8 {
        self.status.load(SeqCst)
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the configuration's generation.
    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(SeqCst)
    }

    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, SeqCst);
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Relaxed)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Relaxed);
    }

    pub(crate) fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Relaxed))
    }

    pub(crate) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Relaxed);
        }
    }

    /// Back to the state before a driver came. The complaints stay: a driver that resets after
    /// each fault is no reason to flood the log.
    pub(crate) fn reset(&self) {
        self.status.store(0, SeqCst);
        self.config_vector.store(NO_VECTOR, Relaxed);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Relaxed));
    }

    /// Returns the registers, for [`Signals::restore`].
    pub(crate) fn save(&self) -> SavedSignals {
        SavedSignals {
            status: self.status(),
            generation: self.generation(),
            config_vector: self.config_vector(),
            queue_vectors: (0..)
                .zip(&self.queue_vectors)
                .map(|(i, _)| self.queue_vector(i))
                .collect(),
        }
    }

    /// Takes back what [`Signals::save`] has returned.
    ///
    /// # Errors
    /// [`RestoreError`] when the number of queues is another.
    pub(crate) fn restore(&self, saved: &SavedSignals) -> Result<(), RestoreError> {
        if saved.queue_vectors.len() != self.queue_vectors.len() {
            let (saved, present) = (saved.queue_vectors.len(), self.queue_vectors.len());
            return Err(RestoreError::new(format!("{saved} queues, not {present}")));
        }
        self.status.store(saved.status, SeqCst);
        self.generation.store(saved.generation, SeqCst);
        self.set_config_vector(saved.config_vector);
        for (index, &vector) in (0..).zip(&saved.queue_vectors) {
            self.set_queue_vector(index, vector);
        }
        Ok(())
    }

    /// Returns `vector` if it exists, else none: that is how a driver learns that it does not.
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn trigger(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            vector.trigger();
        }
    }
}
