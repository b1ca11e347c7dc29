//! The guest's RAM: private anonymous memory, its pages taken from the host when the guest first touches them.
//!
//! Private and not a memfd, because hosts give transparent huge pages to anonymous memory by default and to shared memory not:
//! with small pages a booting guest faults fifty times as often.
//!
//! [`SavedMemory`] is RAM on disk, as a chain of layers; [`discard`] takes pages back that the guest no longer uses.

mod chain;
mod discard;
mod error;
mod layers;
mod page_map;
mod ram;
mod residency;
mod restore;
mod save;

#[cfg(test)]
mod layers_tests;

pub use discard::discard;
pub use error::MemoryError;
pub use layers::{MemoryLayer, SavedMemory};
pub use page_map::{PAGE, PageKind, PageMap, PageRun};
pub use restore::EAGER_LIMIT;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::error::{Error, kvm_error};
use crate::layout;

const HUGE_PAGE: usize = 2 << 20;
/// The host's small page; x86-64 has no other.
const HOST_PAGE: usize = 4096;

/// The guest's memory as every part of the machine uses it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Reserves `bytes` of RAM at the addresses of [`layout`], without taking any page yet.
///
/// # Errors
/// [`Error::Memory`] when the host refuses the reservation.
pub fn reserve(bytes: u64) -> Result<GuestMemory, Error> {
    build(bytes, |len, _| anonymous(len)).map_err(|source| Error::Memory { bytes, source })
}

/// Builds a RAM of mappings that `map` makes, given a length and a RAM offset.
fn build(
    bytes: u64,
    map: impl Fn(usize, u64) -> Result<MmapRegion<()>, MmapRegionError>,
) -> io::Result<GuestMemory> {
    let (low, high) = layout::ram(bytes);
    let mut regions = Vec::with_capacity(2);
    let mut offset = 0;
    for range in [Some(low), high].into_iter().flatten() {
        let len = range.end - range.start;
        let mapping = aligned(len as usize, |len| map(len, offset)).map_err(io::Error::other)?;
        advise_range(mapping.as_ptr() as usize, mapping.size());
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
        regions.push(region.ok_or_else(|| io::Error::other("the address range wraps"))?);
        offset += len;
    }
    GuestMemory::from_regions(regions).map_err(io::Error::other)
}

fn anonymous(len: usize) -> Result<MmapRegion<()>, MmapRegionError> {
    MmapRegion::new(len)
}

/// Maps `len` bytes, if it can be at a huge page's boundary: guest-physical addresses are congruent then, and KVM can map
/// huge pages.
///
/// Newer kernels align large mappings by themselves. Older ones put each mapping right below the last one, so a mapping of the
/// right size in between moves the next one to a boundary.
fn aligned(
    len: usize,
    map: impl Fn(usize) -> Result<MmapRegion<()>, MmapRegionError>,
) -> Result<MmapRegion<()>, MmapRegionError> {
    const ATTEMPTS: usize = 8;
    let first = map(len)?;
    let skew = first.as_ptr() as usize % HUGE_PAGE;
    if skew == 0 || len < HUGE_PAGE {
        return Ok(first);
    }
    drop(first);
    for attempt in 0..ATTEMPTS {
        let _spacer = MmapRegion::<()>::new(skew + attempt * HUGE_PAGE)?;
        let mapping = map(len)?;
        if (mapping.as_ptr() as usize).is_multiple_of(HUGE_PAGE) {
            return Ok(mapping);
        }
    }
    map(len)
}

/// Tells `vm` about the memory, one slot a region.
///
/// # Errors
/// [`Error::Kvm`] when KVM refuses a slot.
pub fn register(memory: &GuestMemory, vm: &VmFd) -> Result<(), Error> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is dropped only after the vCPU threads have been joined, and nobody else unmaps it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Asks for huge pages, and keeps the guest's memory out of core dumps. A refusal costs only speed or disk.
fn advise_range(host: usize, len: usize) {
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: the callers pass guest RAM that they hold, and neither advice changes content.
        unsafe { libc::madvise(host as *mut _, len, advice) };
    }
}

/// Does `work` on each item, on two threads when the host has them, and returns the results in the items' order. Each thread has
/// a scratch value of its own. After an error no further item is begun.
fn side_by_side<T: Sync, S, R: Send>(
    items: &[T],
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&T, &mut S) -> Result<R, MemoryError> + Sync,
) -> Result<Vec<R>, MemoryError> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut scratch = scratch();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return Ok(done) };
            let result = work(item, &mut scratch);
            done.push((index, result.inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?));
        }
    };
    let wanted = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(items.len()));
    let mut results = thread::scope(|scope| {
        let other = (wanted > 1)
            .then(|| thread::Builder::new().name("memory".to_owned()).spawn_scoped(scope, run));
        let mut results = run()?;
        // A host that refuses the thread has let this one do everything.
        if let Some(Ok(other)) = other {
            match other.join() {
                Ok(more) => results.extend(more?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(results)
    })?;
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_is_reserved_lazily_on_both_sides_of_the_hole() {
        let memory = reserve(5 << 30).unwrap();
        memory.write_obj(0x1234_5678u32, GuestAddress(layout::LOW_RAM_END - 4)).unwrap();
        memory.write_obj(0x9abc_def0u32, GuestAddress(layout::HIGH_RAM_START)).unwrap();
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(layout::LOW_RAM_END - 4)).unwrap(),
            0x1234_5678
        );
        assert!(
            memory.read_obj::<u32>(GuestAddress(layout::LOW_RAM_END - 2)).is_err(),
            "the hole is not RAM"
        );
        let resident = resident_pages(&memory) * 4096;
        assert!(resident <= 8 << 20, "two touched places must not take {resident} bytes");
    }

    #[test]
    fn large_memory_begins_at_a_huge_page() {
        let memory = reserve(64 << 20).unwrap();
        for region in memory.iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
    }

    fn resident_pages(memory: &GuestMemory) -> usize {
        let mut resident = 0;
        for region in memory.iter() {
            let mut pages = vec![0u8; region.len().div_ceil(4096) as usize];
            // SAFETY: the vector has one byte for each page of the region's own mapping.
            let result = unsafe {
                libc::mincore(region.as_ptr().cast(), region.len() as usize, pages.as_mut_ptr())
            };
            assert_eq!(result, 0);
            resident += pages.iter().filter(|page| **page & 1 != 0).count();
        }
        resident
    }
}
