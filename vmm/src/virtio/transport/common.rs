//! The common configuration structure: feature negotiation, queue set-up, device status.
//!
//! Reads may have any width. Writes have effect only with the width of their field, the 64-bit
//! addresses also by halves. A register that the driver may not write at the moment, or a value
//! that it may not have, is left as it is, and the driver sees that when it reads back.
//! See VIRTIO 1.2, section 4.1.4.3 and 3.1 (initialization).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use crate::snapshot::RestoreError;
use crate::virtio::feature;
use crate::virtio::signals::{SavedSignals, Signals};

/// Bytes of the structure.
pub const LEN: usize = 0x38;

/// Bits of the device status that a driver may set.
const DRIVER_BITS: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED) as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;

/// Features that the transport and the rings add to every device.
pub const RING_FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_EVENT_IDX)
    | feature(VIRTIO_RING_F_INDIRECT_DESC);

/// What a write means for the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the register.
    None,
    /// The driver is ready: the device must start.
    Start,
    /// The driver wants the device as it was when it was new.
    Reset,
}

/// The registers as they are saved.
#[derive(Serialize, Deserialize)]
pub struct SavedCommon {
    device_features: u64,
    driver_features: u64,
    device_half: u32,
    driver_half: u32,
    queue_select: u16,
    queues: Vec<SavedQueue>,
    signals: SavedSignals,
}

/// One queue as it is saved.
#[derive(Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    ready: bool,
    next_avail: u16,
    next_used: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl SavedQueue {
    fn new(state: &QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            next_avail: state.next_avail,
            next_used: state.next_used,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }

    fn state(&self) -> QueueState {
        QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
    }
}

/// The registers of the structure.
pub struct Common {
    device_features: u64,
    driver_features: u64,
    device_half: u32,
    driver_half: u32,
    queue_select: u16,
    queues: Vec<QueueState>,
    signals: Arc<Signals>,
}

impl Common {
    /// Returns the registers of a device with `features` and queues of at most `queue_sizes`.
    pub fn new(features: u64, queue_sizes: &[u16], signals: Arc<Signals>) -> Self {
        Self {
            device_features: features | RING_FEATURES,
            driver_features: 0,
            device_half: 0,
            driver_half: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|&size| fresh(size)).collect(),
            signals,
        }
    }

    /// Returns the features that the driver has accepted.
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Returns the queues that the driver has enabled, with their number.
    pub fn enabled_queues(&self) -> impl Iterator<Item = (u16, QueueState)> + '_ {
        let event_idx_enabled = self.driver_features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
        (0..)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.ready)
            .map(move |(index, queue)| (index, QueueState { event_idx_enabled, ..*queue }))
    }

    /// Fills `data` from `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let queue = self.queues.get(usize::from(self.queue_select)).copied().unwrap_or_default();
        let mut bytes = [0; LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &self.device_half.to_le_bytes());
        put(0x04, &half(self.device_features, self.device_half).to_le_bytes());
        put(0x08, &self.driver_half.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_half).to_le_bytes());
        put(0x10, &self.signals.config_vector().to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.signals.status(), self.signals.generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &self.signals.queue_vector(self.queue_select).to_le_bytes());
        put(0x1c, &u16::from(queue.ready).to_le_bytes());
        put(0x1e, &self.queue_select.to_le_bytes());
        put(0x20, &queue.desc_table.to_le_bytes());
        put(0x28, &queue.avail_ring.to_le_bytes());
        put(0x30, &queue.used_ring.to_le_bytes());
        crate::virtio::read_bytes(&bytes, offset, data);
    }

    /// Takes a write at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data.len()) {
            (0x14, 1) => return self.write_status(data[0]),
            (_, 2) => self.write16(offset, u16::from_le_bytes([data[0], data[1]])),
            (_, 4) => self.write32(offset, word(data)),
            (0x20 | 0x28 | 0x30, 8) => {
                self.write32(offset, word(&data[..4]));
                self.write32(offset + 4, word(&data[4..]));
            }
            _ => {}
        }
        Effect::None
    }

    /// Takes over how far the queues have come, as [`quiesce`] says.
    ///
    /// [`quiesce`]: crate::virtio::VirtioDevice::quiesce
    pub fn set_progress(&mut self, progress: &[(u16, QueueState)]) {
        for (index, state) in progress {
            if let Some(queue) = self.queues.get_mut(usize::from(*index)) {
                (queue.next_avail, queue.next_used) = (state.next_avail, state.next_used);
            }
        }
    }

    /// Returns the registers, for [`Common::restore`].
    pub fn save(&self) -> SavedCommon {
        SavedCommon {
            device_features: self.device_features,
            driver_features: self.driver_features,
            device_half: self.device_half,
            driver_half: self.driver_half,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(SavedQueue::new).collect(),
            signals: self.signals.save(),
        }
    }

    /// Takes back what [`Common::save`] has returned.
    ///
    /// # Errors
    /// [`RestoreError`] when it comes from a device that offers other features or queues.
    pub fn restore(&mut self, saved: &SavedCommon) -> Result<(), RestoreError> {
        let refuse = |what: String| Err(RestoreError::new(what));
        if saved.device_features != self.device_features {
            let (saved, present) = (saved.device_features, self.device_features);
            return refuse(format!("virtio features {saved:#x}, not {present:#x}"));
        }
        if saved.queues.len() != self.queues.len() {
            return refuse(format!("{} queues, not {}", saved.queues.len(), self.queues.len()));
        }
        for (queue, saved) in self.queues.iter().zip(&saved.queues) {
            if saved.max_size != queue.max_size || saved.size > queue.max_size {
                return refuse(format!("queues of {}, not {}", saved.max_size, queue.max_size));
            }
        }
        self.signals.restore(&saved.signals)?;
        self.driver_features = saved.driver_features & self.device_features;
        self.device_half = saved.device_half;
        self.driver_half = saved.driver_half;
        self.queue_select = saved.queue_select;
        self.queues = saved.queues.iter().map(SavedQueue::state).collect();
        Ok(())
    }

    /// Back to the state before a driver came.
    pub fn reset(&mut self) {
        self.driver_features = 0;
        (self.device_half, self.driver_half, self.queue_select) = (0, 0, 0);
        self.queues.iter_mut().for_each(|queue| *queue = fresh(queue.max_size));
        self.signals.reset();
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let before = self.signals.status();
        // A driver may only add bits; of those it leaves out, none goes away.
        let mut added = value & DRIVER_BITS & !before;
        if added & FEATURES_OK != 0 && !self.features_fit() {
            self.signals.complain(format_args!(
                "features {:#x} are not among {:#x}, or VERSION_1 is not among them",
                self.driver_features, self.device_features
            ));
            added &= !FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && (before | added) & FEATURES_OK == 0 {
            self.signals.complain("DRIVER_OK came without FEATURES_OK");
            added &= !DRIVER_OK;
        }
        self.signals.add_status(added);
        if added & DRIVER_OK != 0 { Effect::Start } else { Effect::None }
    }

    fn features_fit(&self) -> bool {
        let version_1 = self.driver_features & feature(VIRTIO_F_VERSION_1) != 0;
        version_1 && self.driver_features & !self.device_features == 0
    }

    fn write16(&mut self, offset: u64, value: u16) {
        match offset {
            0x10 => self.signals.set_config_vector(value),
            0x16 => self.queue_select = value,
            0x1a => self.signals.set_queue_vector(self.queue_select, value),
            0x18 => self.set_up(|queue| {
                if value.is_power_of_two() && value <= queue.max_size {
                    queue.size = value;
                }
            }),
            0x1c if value == 1 => self.set_up(|queue| queue.ready = true),
            _ => {}
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.device_half = value,
            0x08 => self.driver_half = value,
            0x0c if self.signals.status() & FEATURES_OK == 0 => match self.driver_half {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => {}
            },
            0x20 => self.set_up(|queue| set_low(&mut queue.desc_table, value)),
            0x24 => self.set_up(|queue| set_high(&mut queue.desc_table, value)),
            0x28 => self.set_up(|queue| set_low(&mut queue.avail_ring, value)),
            0x2c => self.set_up(|queue| set_high(&mut queue.avail_ring, value)),
            0x30 => self.set_up(|queue| set_low(&mut queue.used_ring, value)),
            0x34 => self.set_up(|queue| set_high(&mut queue.used_ring, value)),
            _ => {}
        }
    }

    /// Changes the selected queue, if there is one that the driver has not enabled yet.
    fn set_up(&mut self, change: impl FnOnce(&mut QueueState)) {
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(queue) = queue.filter(|queue| !queue.ready) {
            change(queue);
        }
    }
}

fn fresh(size: u16) -> QueueState {
    QueueState { max_size: size, size, ..QueueState::default() }
}

fn word(data: &[u8]) -> u32 {
    data.try_into().map_or(0, u32::from_le_bytes)
}

fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}
