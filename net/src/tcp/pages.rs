//! The memory of a flow's two buffers: pages of its own, straight from the system (mmap(2)).
//!
//! Pages that are never touched are never there, so a flow that carries little occupies little however
//! large its windows are. Memory of the allocator's would be touched again and again: what one flow has
//! given back is zeroed for the next.

use std::io;
use std::ptr::{self, NonNull};

/// Zeroed pages, given back when dropped.
#[derive(Debug)]
pub(super) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages are this value's alone, like those of a `Box<[u8]>`.
unsafe impl Send for Pages {}

impl Pages {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(super) fn new(len: usize) -> io::Result<Pages> {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the system chooses the place of a new mapping, so none that is in use is changed.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would be there as a whole for the first byte. Where there are none, this fails.
        // SAFETY: the range has just been mapped, and the advice changes no content.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pages { start, len })
    }

    /// Returns the two halves of the pages.
    ///
    /// # Safety
    /// The call is the only one, and both halves are gone before the pages are dropped.
    pub(super) unsafe fn halves(&mut self) -> (&'static mut [u8], &'static mut [u8]) {
        // SAFETY: the range is mapped, zeroed, and this value's alone; the caller sees to it that it
        // outlives what is returned, and that nothing else is.
        let all = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) };
        all.split_at_mut(self.len / 2)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped as such, and whoever took its halves has dropped them.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_touched_is_there() {
        const LEN: usize = 4 << 20;
        let mut pages = Pages::new(LEN).unwrap();
        // SAFETY: the only call, and the halves are not used after the end of the test.
        let (first, second) = unsafe { pages.halves() };
        assert_eq!((first.len(), second.len()), (LEN / 2, LEN / 2));
        first[0] = 1;
        second[LEN / 2 - 1] = 2;
        let mut resident = vec![0u8; LEN / 4096];
        // SAFETY: the range is mapped, and the vector has a byte for each of its pages (mincore(2)).
        let result =
            unsafe { libc::mincore(pages.start.as_ptr().cast(), LEN, resident.as_mut_ptr()) };
        assert_eq!(result, 0);
        let expected: Vec<usize> = vec![0, LEN / 4096 - 1];
        let there: Vec<usize> = (0..resident.len()).filter(|at| resident[*at] & 1 == 1).collect();
        assert_eq!(there, expected);
    }
}
