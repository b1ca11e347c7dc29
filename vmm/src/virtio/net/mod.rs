//! Virtio network device over a [`kvmbake_net::Link`]: one pair of queues, one thread.
//!
//! Offered: mergeable receive buffers, checksum and TCP segmentation offload in both directions,
//! MAC, MTU and link status. With them a frame may be 64 KiB long, which matters more for speed
//! than anything else.
//!
//! Left out: the control queue (nothing it controls exists here: one station, no filters, one pair
//! of queues), UDP segmentation, RSS, notification coalescing.
//! See VIRTIO 1.2, section 5.1.

mod header;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvmbake_net::link::{GuestOffloads, Link, Pulled};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::QueueState;

use super::worker::{Worker, stop_all};
use super::{ActivateError, Activation, VirtioDevice, feature, read_bytes};
use crate::snapshot::{RestoreError, decode, encode};

const RX: u16 = 0;
const TX: u16 = 1;
const RX_SIZE: u16 = 512;
const TX_SIZE: u16 = 256;

/// A network device.
pub struct NetDevice {
    /// Held by the worker as long as it runs.
    port: Arc<Mutex<Port>>,
    config: [u8; 12],
    workers: Vec<Worker>,
}

/// The end of the cable.
struct Port {
    link: Box<dyn Link>,
    /// A frame that had left the link and still waited for buffers when the worker stopped.
    staged: Option<(Pulled, Vec<u8>)>,
}

impl NetDevice {
    /// Returns a device whose cable is `link`.
    pub fn new(link: Box<dyn Link>) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&link.mac());
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&link.mtu().to_le_bytes());
        let port = Arc::new(Mutex::new(Port { link, staged: None }));
        Self { port, config, workers: Vec::new() }
    }

    /// Returns the port, which must not be held by a worker.
    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> String {
        "net".to_owned()
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ]
        .into_iter()
        .fold(0, |features, bit| features | feature(bit))
    }

    fn queue_sizes(&self) -> &[u16] {
        &[RX_SIZE, TX_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let csum = activation.has(VIRTIO_NET_F_GUEST_CSUM);
        let offloads = GuestOffloads {
            csum,
            tso4: csum && activation.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: csum && activation.has(VIRTIO_NET_F_GUEST_TSO6),
        };
        let mergeable = activation.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut queues = activation.queues.into_iter();
        let mut take = |index| {
            let queue = queues.next().filter(|queue| queue.index() == index);
            queue.ok_or(ActivateError::MissingQueue(index))
        };
        let (rx, tx) = (take(RX)?, take(TX)?);
        let port = self.port.clone();
        let worker = Worker::spawn("net", move |stop| {
            serve::serve(&port, offloads, mergeable, rx, tx, stop)
        })?;
        self.workers.push(worker);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        stop_all(&mut self.workers)
    }

    fn reset(&mut self) {
        self.quiesce();
        let mut port = self.port();
        // The next driver may not want what this frame leaves to it.
        port.staged = None;
        // What tells the link that the driver is gone; a pause must not.
        port.link.set_guest_offloads(GuestOffloads::default());
    }

    fn save(&self) -> Vec<u8> {
        encode(&(self.config, self.port().link.save()))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let (config, link): ([u8; 12], Vec<u8>) = decode(state)?;
        if config != self.config {
            return Err(RestoreError::new("another MAC address or MTU"));
        }
        self.port().link.restore(&link).map_err(|error| RestoreError::new(error.to_string()))
    }
}
