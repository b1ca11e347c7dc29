//! Virtio memory balloon, there to take back what the guest has freed: such pages cost the host nothing, and no snapshot holds
//! them.
//!
//! The driver reports free pages by itself (VIRTIO_BALLOON_F_PAGE_REPORTING). The balloon proper is never asked to grow; a driver
//! that grows it all the same gives the pages back to the host, and gets them back by touching them. No statistics, no free page
//! hints, no page poison: a driver that needs reported pages to keep a pattern does not report.
//!
//! The specification numbers the reporting queue 4, and the older drivers number queues without counting those that are not
//! offered: 2. Some look for it at 3, after a mistake of a well-known device. As none of the three has another meaning here, all
//! are reporting queues. See VIRTIO 1.2, section 5.5.

mod request;

#[cfg(test)]
mod tests;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueState;

use super::worker::{Worker, stop_all};
use super::{ActivateError, Activation, VirtioDevice, feature, read_bytes, serve};
use crate::snapshot::RestoreError;

/// The driver may take pages out of the balloon when it runs out of memory.
const DEFLATE_ON_OOM: u32 = 2;
/// The driver reports free pages.
const PAGE_REPORTING: u32 = 5;

/// Inflate, deflate, and the three numbers of the reporting queue.
const QUEUES: usize = serve::MOST_QUEUES;
/// Offset of `actual`, which the driver writes, behind `num_pages`, which stays 0.
const ACTUAL: usize = 4;
/// `num_pages`, `actual`, `free_page_hint_cmd_id` and `poison_val`.
const CONFIG: usize = 16;

/// A balloon device.
#[derive(Default)]
pub struct BalloonDevice {
    /// Pages in the balloon, as the driver says.
    actual: [u8; 4],
    workers: Vec<Worker>,
}

impl BalloonDevice {
    /// Returns an empty balloon.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for BalloonDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> String {
        "balloon".to_owned()
    }

    fn features(&self) -> u64 {
        feature(DEFLATE_ON_OOM) | feature(PAGE_REPORTING)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG];
        config[ACTUAL..ACTUAL + 4].copy_from_slice(&self.actual);
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(index);
            if let Some(slot) = at.checked_sub(ACTUAL).and_then(|at| self.actual.get_mut(at)) {
                *slot = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for needed in 0..2 {
            if !activation.queues.iter().any(|queue| queue.index() == needed) {
                return Err(ActivateError::MissingQueue(needed));
            }
        }
        let queues = activation.queues;
        self.workers.push(Worker::spawn("balloon", move |stop| {
            serve::serve(queues, stop, request::answer)
        })?);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        stop_all(&mut self.workers)
    }

    fn save(&self) -> Vec<u8> {
        self.actual.to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.actual = state.try_into().map_err(|_| RestoreError::new("not four bytes"))?;
        Ok(())
    }

    fn reset(&mut self) {
        self.quiesce();
        self.actual = [0; 4];
    }
}
