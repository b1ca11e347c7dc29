//! The guest's RAM: one memfd, mapped shared, its pages taken from the host when the guest first touches them.
//!
//! Transparent huge pages are asked for and not insisted on: a host may not allow them for shared memory.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::error::{Error, kvm_error};
use crate::layout;

/// The guest's memory as every part of the machine uses it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Reserves `bytes` of RAM at the addresses of [`layout`], without taking any page yet.
///
/// # Errors
/// [`Error::Memory`] when the host refuses the reservation.
pub fn reserve(bytes: u64) -> Result<GuestMemory, Error> {
    let memory_error = |source| Error::Memory { bytes, source };
    let file = memfd(bytes).map_err(memory_error)?;
    let (low, high) = layout::ram(bytes);
    let mut ranges = Vec::with_capacity(2);
    let mut offset = 0;
    for range in [Some(low), high].into_iter().flatten() {
        let len = range.end - range.start;
        let backing = FileOffset::new(file.try_clone().map_err(memory_error)?, offset);
        ranges.push((GuestAddress(range.start), len as usize, Some(backing)));
        offset += len;
    }
    let memory = GuestMemory::from_ranges_with_files(ranges)
        .map_err(|error| memory_error(io::Error::other(error.to_string())))?;
    memory.iter().for_each(advise_huge_pages);
    Ok(memory)
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
        // SAFETY: the mapping outlives the VM: `Machine` and `Running` drop their vCPUs and the VM before the memory, and
        // nobody else unmaps it.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn memfd(bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string, and the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"kvmbake-guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

fn advise_huge_pages(region: &GuestRegionMmap<()>) {
    // SAFETY: the range is exactly the region's own mapping; the advice changes no content. A refusal costs only speed.
    unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
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
        let file = memory.iter().next().unwrap().file_offset().unwrap().file();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 <= 8 << 20, "two touched places must not take {blocks} blocks");
    }
}
