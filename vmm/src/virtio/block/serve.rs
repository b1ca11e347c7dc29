//! The thread of one block queue: takes requests, carries them out, gives them back.
//!
//! Completions are batched: the driver is interrupted when the ring is empty, when enough has piled
//! up, and before a request that may take long. With event indices the driver decides besides.

use kvmbake_disk::{Error as DiskError, ErrorKind};

use super::request::{self, Parsed, Request, Status};
use super::{BOUNCE, Disk};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Chain, Cursor, Segment};
use crate::virtio::queue::{Popped, QueueFault, Virtqueue};
use crate::virtio::wait;
use crate::virtio::worker::{Progress, Stop};

/// Completed requests that are enough for an interrupt.
const BATCH_REQUESTS: u32 = 8;
/// Moved bytes that are enough for an interrupt.
const BATCH_BYTES: u64 = 256 << 10;

/// Serves `queue` until asked to stop or until the driver has broken it.
pub(super) fn serve(disk: &Disk, queue: Virtqueue, stop: &Stop) -> Progress {
    let mut server = Server {
        disk,
        queue,
        chain: Chain::default(),
        buffer: Vec::new(),
        unnoticed: 0,
        unnoticed_bytes: 0,
    };
    if let Err(fault) = server.run(stop) {
        server.queue.signals().needs_reset(fault);
    }
    vec![(server.queue.index(), server.queue.state())]
}

struct Server<'d> {
    disk: &'d Disk,
    queue: Virtqueue,
    chain: Chain,
    buffer: Vec<u8>,
    /// Requests completed since the driver was last considered for an interrupt.
    unnoticed: u32,
    unnoticed_bytes: u64,
}

impl Server<'_> {
    fn run(&mut self, stop: &Stop) -> Result<(), QueueFault> {
        loop {
            wait::clear(self.queue.kick());
            self.queue.disable_kicks()?;
            while !stop.is_set() && self.next()? {}
            self.notify()?;
            if stop.is_set() {
                return Ok(());
            }
            // The ring is looked at once more between asking for kicks and going to sleep.
            if self.queue.enable_kicks()? {
                continue;
            }
            let fds = [wait::fd(self.queue.kick()), wait::fd(stop.event())];
            if let Err(error) = wait::readable(fds, None) {
                self.queue.signals().needs_reset(error);
                return Ok(());
            }
        }
    }

    /// Serves one request; returns whether there was one.
    fn next(&mut self) -> Result<bool, QueueFault> {
        let written = match self.queue.pop(&mut self.chain)? {
            Popped::Empty => return Ok(false),
            Popped::Malformed(malformed) => {
                self.queue.signals().complain(malformed);
                0
            }
            Popped::Request => self.request()?,
        };
        self.queue.publish(&[(self.chain.head, written)])?;
        self.unnoticed += 1;
        self.unnoticed_bytes += u64::from(written);
        if self.unnoticed >= BATCH_REQUESTS || self.unnoticed_bytes >= BATCH_BYTES {
            self.notify()?;
        }
        Ok(true)
    }

    fn notify(&mut self) -> Result<(), QueueFault> {
        (self.unnoticed, self.unnoticed_bytes) = (0, 0);
        self.queue.notify()
    }

    /// Carries out the request in `chain` and writes its status. Returns the bytes written.
    fn request(&mut self) -> Result<u32, QueueFault> {
        // The chain leaves its place so that the queue stays free for the notification.
        let chain = std::mem::take(&mut self.chain);
        let written = match request::parse(self.queue.memory(), &chain) {
            Ok(parsed) => {
                if may_take_long(parsed.request) {
                    self.notify()?;
                }
                self.answer(&chain, parsed)
            }
            Err(error) => {
                self.queue.signals().complain(error);
                0
            }
        };
        self.chain = chain;
        Ok(written)
    }

    fn answer(&mut self, chain: &Chain, parsed: Parsed<'_>) -> u32 {
        let room = parsed.data_in_len;
        let (status, len) = match self.carry_out(chain, parsed) {
            Ok(len) => (Status::Ok, len),
            Err(status) => (status, 0),
        };
        let memory = self.queue.memory();
        match write_status(memory, &chain.writable, status.byte()) {
            // Data and status are what was written; saturated, for a chain of 4 GiB and more.
            true if len == room => u32::try_from(room + 1).unwrap_or(u32::MAX),
            true => u32::try_from(len).unwrap_or(u32::MAX).max(1),
            false => {
                self.queue.signals().complain("status byte of a block request is not in memory");
                0
            }
        }
    }

    /// Returns how many bytes were written to the chain, the status not counted.
    fn carry_out(&mut self, chain: &Chain, mut parsed: Parsed<'_>) -> Result<u64, Status> {
        match parsed.request {
            Request::Refused(status) => Err(status),
            Request::Read { offset, len } => self.read(&chain.writable, offset, len),
            Request::GetId => {
                let memory = self.queue.memory();
                let len = parsed.data_in_len.min(self.disk.serial.len() as u64);
                let mut data = Cursor::new(&chain.writable);
                let written = data.write(memory, &self.disk.serial[..len as usize]);
                written.map(|len| len as u64).map_err(|_| Status::IoError)
            }
            Request::Flush => self.flush(),
            _ if self.disk.read_only => Err(Status::IoError),
            Request::Write { offset, len } => self.write(&mut parsed.data_out, offset, len),
            Request::Discard { count } => self.ranges(&mut parsed.data_out, count, false),
            Request::WriteZeroes { count } => self.ranges(&mut parsed.data_out, count, true),
        }
    }

    fn read(&mut self, segments: &[Segment], offset: u64, len: u64) -> Result<u64, Status> {
        self.check(offset, len)?;
        let mut data = Cursor::new(segments);
        let mut done = 0;
        while done < len {
            let part = bounce(&mut self.buffer, len - done);
            let read = self.disk.block.read_at(part, offset + done);
            read.map_err(|error| self.disk.status(&error))?;
            data.write(self.queue.memory(), part).map_err(|_| Status::IoError)?;
            done += part.len() as u64;
        }
        Ok(len)
    }

    fn write(&mut self, data: &mut Cursor<'_>, offset: u64, len: u64) -> Result<u64, Status> {
        self.check(offset, len)?;
        let mut done = 0;
        while done < len {
            let part = bounce(&mut self.buffer, len - done);
            data.read(self.queue.memory(), part).map_err(|_| Status::IoError)?;
            let written = self.disk.block.write_at(part, offset + done);
            written.map_err(|error| self.disk.status(&error))?;
            done += part.len() as u64;
        }
        Ok(0)
    }

    fn flush(&mut self) -> Result<u64, Status> {
        if self.disk.read_only {
            return Ok(0);
        }
        self.disk.block.flush().map_err(|error| self.disk.status(&error))?;
        Ok(0)
    }

    fn ranges(&mut self, data: &mut Cursor<'_>, count: u64, zero: bool) -> Result<u64, Status> {
        for _ in 0..count {
            let range = request::next_range(self.queue.memory(), data, zero)?;
            self.check(range.offset, range.len)?;
            if range.len == 0 {
                continue;
            }
            let block = &self.disk.block;
            let done = if zero {
                block.write_zeroes(range.offset, range.len)
            } else {
                block.discard(range.offset, range.len)
            };
            done.map_err(|error| self.disk.status(&error))?;
        }
        Ok(0)
    }

    /// Refuses what ends beyond the disk as a whole, before a piece of it is carried out.
    fn check(&self, offset: u64, len: u64) -> Result<(), Status> {
        match offset.checked_add(len) {
            Some(end) if end <= self.disk.block.len() => Ok(()),
            _ => Err(Status::IoError),
        }
    }
}

impl Disk {
    /// Tells the owner of `error`, unless the guest alone is to blame, and the guest what it may
    /// know.
    fn status(&self, error: &DiskError) -> Status {
        if !matches!(error.kind(), ErrorKind::OutOfRange | ErrorKind::ReadOnly)
            && let Some(on_error) = &self.on_error
        {
            on_error(error);
        }
        Status::IoError
    }
}

fn may_take_long(request: Request) -> bool {
    matches!(request, Request::Flush | Request::Discard { .. } | Request::WriteZeroes { .. })
}

/// Returns `wanted` bytes of the buffer, or as many as it may have. It grows to what is needed.
fn bounce(buffer: &mut Vec<u8>, wanted: u64) -> &mut [u8] {
    let len = usize::try_from(wanted).unwrap_or(BOUNCE).min(BOUNCE);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Writes the last byte of `segments`.
fn write_status(memory: &GuestMemory, segments: &[Segment], status: u8) -> bool {
    let Some(last) = segments.iter().rev().find(|segment| segment.len > 0) else { return false };
    let Some(address) = last.address.0.checked_add(u64::from(last.len) - 1) else { return false };
    let place = [Segment { address: vm_memory::GuestAddress(address), len: 1 }];
    Cursor::new(&place).write(memory, &[status]).is_ok()
}
