//! Virtio block device over a [`kvmbake_disk::Block`]: several queues, one thread each.
//!
//! A chain becomes a plain [`request::Request`] that is carried out against the backend; the
//! backend never sees descriptors or guest memory. Data passes through one bounce buffer per queue
//! of at most [`BOUNCE`] bytes. That costs a copy, and pays for it: a request of 256 scattered pages
//! is one call of the backend and not 256, qcow2 sees whole clusters, and no Rust slice ever aliases
//! memory that the guest changes at will.
//!
//! Errors of the host go to the owner's [`BlockOptions::on_error`] besides the guest, which can only
//! be told "I/O error".
//!
//! Left out: CONFIG_WCE (the cache is always write-back, the driver flushes), secure erase, zones.
//! See VIRTIO 1.2, section 5.2.

mod request;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kvmbake_disk::{Block, Error as DiskError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;

use super::worker::{Worker, stop_all};
use super::{ActivateError, Activation, VirtioDevice, feature, read_bytes};
use crate::snapshot::{RestoreError, decode, encode};

/// Bytes of a sector, the unit of the protocol.
pub const SECTOR: u64 = 512;
/// Largest bounce buffer of a queue; a longer request is carried out in pieces.
pub const BOUNCE: usize = 1 << 20;
/// Bytes of the serial number.
pub const SERIAL_LEN: usize = 20;

const QUEUE_SIZE: u16 = 256;
/// Most queues: beyond that threads cost more than they bring.
const MAX_QUEUES: u16 = 16;
/// Data segments of a request: the rest of the ring's chain is header and status.
const MAX_DATA_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Most ranges in one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 32;
/// Longest range of one, 2 GiB: a worker must not be away for too long.
pub const MAX_RANGE_SECTORS: u32 = 4 << 20;
/// The drive's physical blocks as told to the guest: 4096 bytes, to which partitions are aligned.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// Called with each error of the host, from the queue's thread.
pub type OnError = Arc<dyn Fn(&DiskError) + Send + Sync>;

/// How a disk appears to the guest.
#[derive(Clone)]
pub struct BlockOptions {
    /// Serial number, found in `/dev/disk/by-id`; cut at 20 bytes.
    pub serial: String,
    /// Number of queues, 1 to 16; one per vCPU is right.
    pub queues: u16,
    /// Whether the guest may only read, beyond what the backend refuses.
    pub read_only: bool,
    /// What to do with errors of the host, such as a full disk.
    pub on_error: Option<OnError>,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self { serial: String::new(), queues: 1, read_only: false, on_error: None }
    }
}

/// A disk as a virtio device.
pub struct BlockDevice {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    config: [u8; 60],
    workers: Vec<Worker>,
}

/// What the queues' threads share.
struct Disk {
    block: Arc<dyn Block>,
    read_only: bool,
    serial: [u8; SERIAL_LEN],
    on_error: Option<OnError>,
}

impl BlockDevice {
    /// Returns a device that shows `block` as `options` say. A rest of less than a sector at the
    /// end of `block` is not shown.
    pub fn new(block: Arc<dyn Block>, options: BlockOptions) -> Self {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let mut serial = [0; SERIAL_LEN];
        let text = options.serial.as_bytes();
        let len = text.len().min(SERIAL_LEN);
        serial[..len].copy_from_slice(&text[..len]);
        let read_only = options.read_only || block.is_read_only();
        Self {
            config: config(block.len(), block.cluster_size(), queues),
            disk: Arc::new(Disk { block, read_only, serial, on_error: options.on_error }),
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            workers: Vec::new(),
        }
    }
}

impl VirtioDevice for BlockDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> String {
        let serial: Vec<u8> = self.disk.serial.iter().copied().take_while(|&b| b != 0).collect();
        format!("blk-{}", String::from_utf8_lossy(&serial))
    }

    fn features(&self) -> u64 {
        let common = feature(VIRTIO_BLK_F_SEG_MAX)
            | feature(VIRTIO_BLK_F_BLK_SIZE)
            | feature(VIRTIO_BLK_F_TOPOLOGY)
            | feature(VIRTIO_BLK_F_FLUSH)
            | feature(VIRTIO_BLK_F_MQ);
        common
            | if self.disk.read_only {
                feature(VIRTIO_BLK_F_RO)
            } else {
                feature(VIRTIO_BLK_F_DISCARD) | feature(VIRTIO_BLK_F_WRITE_ZEROES)
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::MissingQueue(0));
        }
        for queue in activation.queues {
            let disk = self.disk.clone();
            let name = format!("{}-{}", self.name(), queue.index());
            let worker = Worker::spawn(&name, move |stop| serve::serve(&disk, queue, stop));
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    self.quiesce();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        stop_all(&mut self.workers)
    }

    fn save(&self) -> Vec<u8> {
        encode(&(self.disk.block.len(), self.disk.serial))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let (len, serial): (u64, [u8; SERIAL_LEN]) = decode(state)?;
        if len != self.disk.block.len() {
            let present = self.disk.block.len();
            return Err(RestoreError::new(format!("a disk of {len} bytes, not {present}")));
        }
        if serial != self.disk.serial {
            return Err(RestoreError::new("another serial number"));
        }
        Ok(())
    }
}

/// Returns `struct virtio_blk_config` (VIRTIO 1.2, 5.2.4) up to write_zeroes_may_unmap.
fn config(len: u64, cluster_size: u64, queues: u16) -> [u8; 60] {
    let cluster = u32::try_from(cluster_size / SECTOR).unwrap_or(u32::MAX).max(1);
    let mut config = [0; 60];
    let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
    put(0, &(len / SECTOR).to_le_bytes());
    put(12, &MAX_DATA_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
    // In sectors: the smallest good request is a physical block, the best one a cluster.
    put(26, &(1u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
    put(28, &cluster.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &cluster.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}
