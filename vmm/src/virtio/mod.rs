//! Virtio devices and what they share: queues, descriptor chains, worker threads.
//!
//! A [`VirtioDevice`] knows its features, its configuration and its queues, and never sees PCI; the
//! [`transport`] turns a guest driver's register accesses into the calls below. When the driver
//! says that it is ready, the device gets an [`Activation`] and starts one thread per queue (or per
//! pair of queues). [`VirtioDevice::quiesce`] takes the threads back and says, in plain values, how
//! far each queue has come: the same values, given back in an activation, let the device go on.
//!
//! Offered by every device: VERSION_1, RING_EVENT_IDX, INDIRECT_DESC. Left out: packed rings,
//! RING_RESET, legacy drivers, shared memory regions.
//! See Virtual I/O Device (VIRTIO) Version 1.2, chapter 2.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod net;
pub mod queue;
pub mod rng;
mod serve;
pub mod signals;
pub mod transport;
mod wait;
mod worker;

#[cfg(test)]
pub(crate) mod driver;

pub use balloon::BalloonDevice;
pub use block::{BlockDevice, BlockOptions};
pub use chain::{Chain, Cursor, Segment};
pub use net::NetDevice;
pub use queue::{QueueFault, Virtqueue};
pub use rng::RngDevice;
pub use signals::Signals;
pub use virtio_queue::QueueState;

use std::sync::Arc;

use crate::snapshot::RestoreError;

/// A virtio device, apart from how the guest reaches it.
///
/// Calls come from one thread at a time. What the guest chooses (offsets, values, anything in its
/// memory) may make the device stop with [`Signals::needs_reset`], and never panic.
pub trait VirtioDevice: Send {
    /// Returns the device type (VIRTIO 1.2, chapter 5).
    fn device_type(&self) -> u32;

    /// Returns a name for threads and log lines.
    fn name(&self) -> String;

    /// Returns the feature bits of the device itself; the transport adds those of the rings.
    fn features(&self) -> u64;

    /// Returns the largest size of each queue, all powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the device's configuration. It arrives zeroed: what lies beyond the
    /// configuration is left alone.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to the device's configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts to serve the queues. Called when the device is fresh or after [`quiesce`].
    ///
    /// # Errors
    /// [`ActivateError`]; the device then stays as it was, and the guest sees it needing a reset.
    ///
    /// [`quiesce`]: VirtioDevice::quiesce
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes the requests under way, stops the threads and joins them. Returns how far each
    /// active queue has come, with its index; requests not begun stay in the rings.
    fn quiesce(&mut self) -> Vec<(u16, QueueState)>;

    /// Stops the threads, joined when it returns, and forgets the queues. The device can be
    /// activated again.
    fn reset(&mut self) {
        self.quiesce();
    }

    /// Returns what the device must remember when the machine is saved, beside its queues. Called while it is quiet.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes back what [`save`] has returned, before the first activation.
    ///
    /// # Errors
    /// [`RestoreError`] when the state is not one of this device's.
    ///
    /// [`save`]: VirtioDevice::save
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let _ = state;
        Ok(())
    }
}

/// What a device serves from the driver's DRIVER_OK on.
pub struct Activation {
    /// The feature bits that driver and device have agreed on.
    pub features: u64,
    /// The queues that the driver has enabled, in the order of their index.
    pub queues: Vec<Virtqueue>,
    /// The way to the driver for everything beside used buffers.
    pub signals: Arc<Signals>,
}

impl Activation {
    /// Returns whether feature `bit` was agreed on.
    pub fn has(&self, bit: u32) -> bool {
        self.features & feature(bit) != 0
    }
}

/// Returns the mask of feature `bit`, as virtio-bindings numbers them.
pub const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver has not enabled a queue that the device cannot work without.
    #[error("Driver has not set up queue {0}")]
    MissingQueue(u16),
    /// A ring lies outside the guest's memory, or its addresses are not aligned.
    #[error("Driver has put queue {0} where no memory is")]
    BadQueue(u16),
    /// The host refused a thread or a descriptor.
    #[error("Cannot start the device's thread")]
    Host(#[from] std::io::Error),
}

/// Copies the part of `config` that lies at `offset` into `data`.
fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(index);
        if let Some(value) = config.get(at) {
            *byte = *value;
        }
    }
}
