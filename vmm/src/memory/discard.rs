//! Taking pages back that the guest says it does not use: they cost nothing until it touches them again, and are never saved.
//!
//! They read as zero then. In memory mapped from layers, giving back alone would bring the layer's bytes back, so the range is mapped
//! anew, anonymously. That can split mappings, of which a process may have only so many: there, only whole huge pages are taken,
//! whatever smaller is left as it is.

use std::io;
use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::restore::replace;
use super::{GuestMemory, HOST_PAGE, HUGE_PAGE, PAGE, advise_range};

/// Largest memory mapped from layers of which pages are taken: beyond it, one mapping for each huge page could be too many.
const LARGEST_SPLIT: u64 = 32 << 30;

/// Takes back the whole pages within `range`, guest-physical addresses that a guest may have made up: what is not RAM is left
/// out. Returns how many bytes were taken.
///
/// # Errors
/// What the system says when it refuses; pages of earlier parts of the range are gone then.
pub fn discard(memory: &GuestMemory, range: Range<u64>) -> io::Result<u64> {
    let mut taken = 0;
    let split = memory.iter().map(|region| region.len()).sum::<u64>() <= LARGEST_SPLIT;
    for region in memory.iter() {
        let base = region.start_addr().0;
        let start = range.start.clamp(base, base + region.len()) - base;
        let end = range.end.clamp(base, base + region.len()) - base;
        let mapped = region.file_offset().is_some();
        let unit = if mapped { HUGE_PAGE } else { HOST_PAGE };
        // The host address counts: a small RAM may lie at any page.
        let host = region.as_ptr() as usize;
        let first = (host + start as usize).next_multiple_of(unit);
        let last = (host + end as usize) / unit * unit;
        if first >= last || mapped && !split {
            continue;
        }
        let len = last - first;
        if mapped {
            replace(first, len as u64 / PAGE, None)?;
            advise_range(first, len);
        } else {
            // SAFETY: the range is within the region's own private anonymous mapping, whose content only the guest and its devices
            // use, by volatile accesses.
            let result = unsafe { libc::madvise(first as *mut _, len, libc::MADV_DONTNEED) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        taken += len as u64;
    }
    Ok(taken)
}
