//! Memory to read into and write from, aligned to pages: the kernel copies to and from odd
//! addresses, such as a large `Vec` begins at, at about half the speed.

use std::ops::{Deref, DerefMut};

const ALIGNMENT: usize = 4096;

/// A page-aligned slice of bytes of fixed length.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Returns `len` zero bytes.
    pub(crate) fn new(len: usize) -> Buffer {
        let memory = vec![0; len + ALIGNMENT].into_boxed_slice();
        // Should the offset not be found (it would be usize::MAX), unaligned memory works too.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer { memory, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_their_length() {
        for len in [0, 1, 4096, 1 << 20] {
            let mut buffer = Buffer::new(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGNMENT), (len, 0));
            buffer.fill(7);
        }
    }
}
