//! Virtio entropy device: fills what the driver offers with random bytes of the host.
//!
//! A request is served up to [`MAX_FILL`] bytes; a driver that wants more asks again.
//! See VIRTIO 1.2, section 5.4.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueState;

use super::chain::{Chain, Cursor};
use super::queue::Virtqueue;
use super::worker::{Worker, stop_all};
use super::{ActivateError, Activation, VirtioDevice, serve};
use crate::random;

/// Most bytes for one request.
pub const MAX_FILL: usize = 4096;

/// Where the bytes come from: fills the slice whole.
pub type Source = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// An entropy device.
pub struct RngDevice {
    source: Arc<Mutex<Source>>,
    workers: Vec<Worker>,
}

impl Default for RngDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl RngDevice {
    /// Returns a device that gives the host kernel's random bytes.
    pub fn new() -> Self {
        Self::with_source(Box::new(random::fill))
    }

    /// Returns a device that gives the bytes of `source`.
    pub fn with_source(source: Source) -> Self {
        Self { source: Arc::new(Mutex::new(source)), workers: Vec::new() }
    }
}

impl VirtioDevice for RngDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> String {
        "rng".to_owned()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues.into_iter().next().ok_or(ActivateError::MissingQueue(0))?;
        let source = self.source.clone();
        let worker = Worker::spawn("rng", move |stop| {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            serve::serve(vec![queue], stop, |queue, chain| fill(queue, chain, &mut source))
        })?;
        self.workers.push(worker);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        stop_all(&mut self.workers)
    }
}

/// Fills the buffers of a request. Returns the bytes written.
fn fill(queue: &Virtqueue, chain: &Chain, source: &mut Source) -> u32 {
    let mut data = Cursor::new(&chain.writable);
    let mut bytes = [0; MAX_FILL];
    let len = data.remaining().min(MAX_FILL as u64) as usize;
    if let Err(error) = source(&mut bytes[..len]) {
        tracing::error!(%error, "the host gives no random bytes");
        return 0;
    }
    match data.write(queue.memory(), &bytes[..len]) {
        Ok(written) => written as u32,
        Err(error) => {
            queue.signals().complain(error);
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver::{DATA, Guest, into, out};

    #[test]
    fn requests_are_filled_up_to_the_bound() {
        let mut device = RngDevice::new();
        let mut guest = Guest::new(device.queue_sizes());
        guest.activate(&mut device, 0);
        assert_eq!(guest.request(0, &[into(DATA, 32), into(DATA + 64, 32)]), 64);
        assert_ne!(guest.get(DATA, 32), [0; 32]);
        assert_ne!(guest.get(DATA + 64, 32), guest.get(DATA, 32));
        assert_eq!(guest.request(0, &[into(DATA, 1 << 20)]), MAX_FILL as u32);
        assert_eq!(guest.get(DATA + MAX_FILL as u64, 8), [0; 8]);
    }

    #[test]
    fn nonsense_is_given_back_empty() {
        let mut device = RngDevice::new();
        let mut guest = Guest::new(device.queue_sizes());
        guest.activate(&mut device, 0);
        for buffer in [out(DATA, 32), into(DATA, 0), into(u64::MAX - 3, 32), into(8 << 20, 1)] {
            assert_eq!(guest.request(0, &[buffer]), 0);
        }
        assert_eq!(guest.request(0, &[into(DATA, 7)]), 7);
    }
}
