//! A descriptor chain as plain values: what the device may read, what it may write.
//!
//! A [`Chain`] is filled again and again, so that serving a queue allocates nothing. The guest's
//! descriptors are read once, here; whether their addresses are memory shows when a [`Cursor`]
//! copies. See VIRTIO 1.2, section 2.7.4 (message framing) and 2.7.5.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// Most segments in one chain. Drivers stay within the queue size, and no queue is larger.
pub const MAX_SEGMENTS: usize = 1024;

/// A piece of guest memory that a descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes; may be 0.
    pub len: u32,
}

/// One request of the driver.
#[derive(Debug, Default)]
pub struct Chain {
    /// The descriptor that names the chain in the rings.
    pub head: u16,
    /// What the driver has put there for the device.
    pub readable: Vec<Segment>,
    /// Where the driver expects the device's answer.
    pub writable: Vec<Segment>,
}

/// A chain that does not hold together: a loop, an index or an indirect table out of range, memory
/// that does not exist, readable behind writable, no descriptor at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Descriptor chain at {0} is malformed")]
pub struct MalformedChain(pub u16);

impl Chain {
    /// Replaces the content by the descriptors of `source`.
    ///
    /// # Errors
    /// [`MalformedChain`]; `head` is valid even then.
    pub fn fill(&mut self, source: DescriptorChain<&GuestMemory>) -> Result<(), MalformedChain> {
        self.head = source.head_index();
        self.readable.clear();
        self.writable.clear();
        // The iterator ends early, and without a word, on whatever it cannot follow: what is left
        // of a whole chain is that its last descriptor has no successor.
        let mut ended = false;
        for descriptor in source {
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return Err(MalformedChain(self.head));
            }
            if self.readable.len() + self.writable.len() > MAX_SEGMENTS {
                return Err(MalformedChain(self.head));
            }
            ended = !descriptor.has_next();
        }
        if ended { Ok(()) } else { Err(MalformedChain(self.head)) }
    }
}

/// Returns the sum of the segments' lengths.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// A place in a list of segments, from which bytes are copied in or out one after the other.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    segments: &'a [Segment],
    offset: u32,
}

/// A segment that is not in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Buffer of {len} bytes at {address:#x} is not in memory")]
pub struct NotMemory {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: usize,
}

impl<'a> Cursor<'a> {
    /// Returns a cursor at the first byte.
    pub fn new(segments: &'a [Segment]) -> Self {
        Self { segments, offset: 0 }
    }

    /// Returns how many bytes follow.
    pub fn remaining(&self) -> u64 {
        total(self.segments) - u64::from(self.offset)
    }

    /// Fills the front of `data` from guest memory and returns how many bytes there were.
    ///
    /// # Errors
    /// [`NotMemory`]; some bytes may have been copied.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<usize, NotMemory> {
        let mut done = 0;
        while done < data.len() {
            let Some(segment) = self.step(data.len() - done) else { break };
            let part = &mut data[done..done + segment.len as usize];
            done += part.len();
            memory.read_slice(part, segment.address).map_err(|_| not_memory(segment))?;
        }
        Ok(done)
    }

    /// Copies the front of `data` to guest memory and returns how many bytes there was room for.
    ///
    /// # Errors
    /// [`NotMemory`]; some bytes may have been copied.
    pub fn write(&mut self, memory: &GuestMemory, data: &[u8]) -> Result<usize, NotMemory> {
        let mut done = 0;
        while done < data.len() {
            let Some(segment) = self.step(data.len() - done) else { break };
            let part = &data[done..done + segment.len as usize];
            done += part.len();
            memory.write_slice(part, segment.address).map_err(|_| not_memory(segment))?;
        }
        Ok(done)
    }

    /// Moves on by at most `most` bytes within one segment and returns them.
    fn step(&mut self, most: usize) -> Option<Segment> {
        loop {
            let (first, rest) = self.segments.split_first()?;
            let left = first.len - self.offset;
            if left == 0 {
                self.segments = rest;
                self.offset = 0;
                continue;
            }
            let len = u32::try_from(most).unwrap_or(u32::MAX).min(left);
            // An address that wraps is in no memory: the copy will say so.
            let address = first.address.0.saturating_add(u64::from(self.offset));
            self.offset += len;
            return Some(Segment { address: GuestAddress(address), len });
        }
    }
}

fn not_memory(segment: Segment) -> NotMemory {
    NotMemory { address: segment.address.0, len: segment.len as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)])
            .unwrap()
    }

    fn segment(address: u64, len: u32) -> Segment {
        Segment { address: GuestAddress(address), len }
    }

    #[test]
    fn cursor_copies_across_segments_and_regions() {
        let memory = memory();
        let segments = [segment(0xffe, 4), segment(5, 0), segment(0x100, 3)];
        let mut cursor = Cursor::new(&segments);
        assert_eq!(cursor.remaining(), 7);
        assert_eq!(cursor.write(&memory, b"abc"), Ok(3));
        assert_eq!(cursor.remaining(), 4);
        assert_eq!(cursor.write(&memory, b"defghij"), Ok(4));
        assert_eq!(cursor.remaining(), 0);
        let mut data = [0; 9];
        assert_eq!(Cursor::new(&segments).read(&memory, &mut data), Ok(7));
        assert_eq!(&data, b"abcdefg\0\0");
    }

    #[test]
    fn addresses_outside_memory_are_refused() {
        let memory = memory();
        for (address, len) in [(0x2000, 1), (0x1fff, 2), (u64::MAX, 2), (u64::MAX - 1, u32::MAX)] {
            let segments = [segment(address, len)];
            let mut data = [0; 16];
            assert!(Cursor::new(&segments).read(&memory, &mut data).is_err(), "{address:#x}");
            assert!(Cursor::new(&segments).write(&memory, &data).is_err(), "{address:#x}");
        }
    }
}
