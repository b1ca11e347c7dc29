//! The 64-bit Linux boot protocol: an uncompressed kernel entered at its ELF entry point.
//!
//! The guest's CPU starts in long mode with the first 4 GiB identity-mapped, RSI pointing at `boot_params`. The kernel lies
//! where its program headers want it, the initrd as high as the kernel allows, everything else in conventional memory.
//! Decompressing a bzImage is [`crate::boot`]'s work. See Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::boot::{KernelImage, PayloadError};
use crate::error::Error;
use crate::layout;
use crate::memory::GuestMemory;

/// Global descriptor table; `boot.rst` prescribes the selectors.
pub(crate) const GDT: u64 = 0x500;
/// Empty interrupt descriptor table.
pub(crate) const IDT: u64 = 0x540;
const ZERO_PAGE: u64 = 0x7000;
const STACK_TOP: u64 = 0x8ff0;
/// Level 4, level 3, then four level 2 tables of 2 MiB pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
const SETUP_DATA: u64 = 0xf000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_LIMIT: u64 = 0x1_0000;

const PAGE: u64 = 0x1000;
const PAGE_PRESENT_WRITABLE: u64 = 0x3;
const PAGE_LARGE: u64 = 0x80;

const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 0x01;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const DEFAULT_COMMAND_LINE_SIZE: u32 = 2047;
const DEFAULT_INITRD_MAX: u32 = 0x7fff_ffff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const SETUP_RNG_SEED: u32 = 9;
const SEED_LEN: usize = 32;

/// What is loaded.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// The command line without a closing NUL.
    pub cmdline: &'a str,
}

/// Where the first CPU enters what was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// Argument: the address of `boot_params`.
    pub rsi: u64,
    /// A little stack.
    pub rsp: u64,
}

/// Loads `image` into the `bytes` of RAM that `memory` is. `rsdp` is the address of ACPI's root pointer; `seed` initializes the
/// guest's random pool.
///
/// # Errors
/// [`Error::Load`] when something is malformed or does not fit.
pub fn load(
    memory: &GuestMemory,
    bytes: u64,
    image: &Image<'_>,
    rsdp: u64,
    seed: &[u8; SEED_LEN],
) -> Result<Entry, Error> {
    let mut header = header(image.kernel.setup_header.as_deref())?;
    let place = |address, bytes: &[u8]| {
        let room = memory.write_slice(bytes, GuestAddress(address));
        room.map_err(|error| PayloadError::NoRoom(error.to_string()))
    };
    let kernel = image.kernel.load(place).map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Error::Load(format!("{error}{}", source.unwrap_or_default()))
    })?;
    let mut params = boot_params { acpi_rsdp_addr: rsdp, ..Default::default() };
    if let Some(initrd) = image.initrd {
        let address = place_initrd(bytes, kernel.end, initrd.len() as u64, header.initrd_addr_max)?;
        write(memory, initrd, address)?;
        header.ramdisk_image = address as u32;
        header.ramdisk_size = initrd.len() as u32;
    }
    write_command_line(memory, image.cmdline, header.cmdline_size)?;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= LOADED_HIGH;
    write_seed(memory, seed)?;
    header.setup_data = SETUP_DATA;
    params.hdr = header;
    let map = memory_map(bytes);
    params.e820_entries = map.len() as u8;
    params.e820_table[..map.len()].copy_from_slice(&map);
    // SAFETY: the struct is packed plain old data, written byte by byte and never read back as something else.
    let page = unsafe {
        std::slice::from_raw_parts(
            (&raw const params).cast::<u8>(),
            std::mem::size_of::<boot_params>(),
        )
    };
    write(memory, page, ZERO_PAGE)?;
    write_page_tables(memory)?;
    write_descriptor_tables(memory)?;
    Ok(Entry { rip: kernel.entry, rsi: ZERO_PAGE, rsp: STACK_TOP })
}

/// The guest's memory map: RAM around the hole, with the firmware's places reserved.
fn memory_map(bytes: u64) -> Vec<boot_e820_entry> {
    let (low, high) = layout::ram(bytes);
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, layout::CONVENTIONAL_END, E820_RAM),
        entry(layout::CONVENTIONAL_END, 0xa_0000, E820_RESERVED),
        entry(layout::ACPI_TABLES.start, layout::ACPI_TABLES.end, E820_RESERVED),
        entry(layout::EXTENDED_START, low.end, E820_RAM),
        entry(layout::ECAM.start, layout::ECAM.end, E820_RESERVED),
        entry(layout::KVM_IDENTITY_MAP, layout::KVM_TSS + 3 * PAGE, E820_RESERVED),
    ];
    map.extend(high.map(|high| entry(high.start, high.end, E820_RAM)));
    map
}

fn header(bytes: Option<&[u8]>) -> Result<setup_header, Error> {
    let mut header = setup_header::default();
    if let Some(bytes) = bytes {
        // SAFETY: the struct is packed plain old data for which every bit pattern is valid.
        let raw = unsafe {
            std::slice::from_raw_parts_mut(
                (&raw mut header).cast::<u8>(),
                std::mem::size_of::<setup_header>(),
            )
        };
        let len = bytes.len().min(raw.len());
        raw[..len].copy_from_slice(&bytes[..len]);
        let (flag, magic) = (header.boot_flag, header.header);
        if flag != BOOT_FLAG || magic != HEADER_MAGIC {
            return Err(Error::Load(format!(
                "the setup header has boot flag {flag:#x} and magic {magic:#x}"
            )));
        }
    } else {
        header.boot_flag = BOOT_FLAG;
        header.header = HEADER_MAGIC;
        header.version = 0x20f;
        header.kernel_alignment = 0x100_0000;
    }
    if header.cmdline_size == 0 {
        header.cmdline_size = DEFAULT_COMMAND_LINE_SIZE;
    }
    if header.initrd_addr_max == 0 {
        header.initrd_addr_max = DEFAULT_INITRD_MAX;
    }
    // What a boot loader leaves behind for another one means nothing here.
    header.ramdisk_image = 0;
    header.ramdisk_size = 0;
    Ok(header)
}

fn place_initrd(memory: u64, kernel_end: u64, len: u64, highest: u32) -> Result<u64, Error> {
    let end = layout::ram(memory).0.end.min(u64::from(highest) + 1);
    let start = end.checked_sub(len).map(|start| start & !(PAGE - 1));
    start.filter(|&start| start >= kernel_end.max(layout::EXTENDED_START)).ok_or_else(|| {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Error::Load(format!(
            "the initrd of {} MiB does not fit between the kernel's end at {} MiB and {} MiB: give the machine more memory",
            mib(len),
            mib(kernel_end),
            mib(end)
        ))
    })
}

fn write_command_line(memory: &GuestMemory, cmdline: &str, limit: u32) -> Result<(), Error> {
    let limit = u64::from(limit).min(COMMAND_LINE_LIMIT - 1);
    if cmdline.len() as u64 > limit {
        let len = cmdline.len();
        return Err(Error::Load(format!(
            "the command line has {len} bytes, and the kernel takes {limit}"
        )));
    }
    if cmdline.contains('\0') {
        return Err(Error::Load("the command line contains a NUL".to_owned()));
    }
    write(memory, cmdline.as_bytes(), COMMAND_LINE)?;
    write(memory, &[0], COMMAND_LINE + cmdline.len() as u64)
}

/// One `setup_data` node: no successor, the type, the length, then the bytes.
fn write_seed(memory: &GuestMemory, seed: &[u8; SEED_LEN]) -> Result<(), Error> {
    let mut node = [0; 16 + SEED_LEN];
    node[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node[12..16].copy_from_slice(&(SEED_LEN as u32).to_le_bytes());
    node[16..].copy_from_slice(seed);
    write(memory, &node, SETUP_DATA)
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), Error> {
    let level_3 = PAGE_TABLES + PAGE;
    let level_2 = level_3 + PAGE;
    write_entry(memory, PAGE_TABLES, level_3 | PAGE_PRESENT_WRITABLE)?;
    for gib in 0..4 {
        write_entry(memory, level_3 + gib * 8, (level_2 + gib * PAGE) | PAGE_PRESENT_WRITABLE)?;
    }
    for page in 0..4 * 512 {
        write_entry(memory, level_2 + page * 8, page << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE)?;
    }
    Ok(())
}

fn write_descriptor_tables(memory: &GuestMemory) -> Result<(), Error> {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    const TASK: u64 = 0x0080_8b00_0000_0067;
    for (index, descriptor) in (0..).zip([0, 0, CODE, DATA, TASK, 0]) {
        write_entry(memory, GDT + index * 8, descriptor)?;
    }
    write_entry(memory, IDT, 0)
}

fn write_entry<T: ByteValued>(memory: &GuestMemory, address: u64, value: T) -> Result<(), Error> {
    write(memory, value.as_slice(), address)
}

fn write(memory: &GuestMemory, bytes: &[u8], address: u64) -> Result<(), Error> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|error| {
        Error::Load(format!("{} bytes do not fit at {address:#x}: {error}", bytes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_has_no_overlap_and_covers_the_ram() {
        for bytes in [64 << 20, 3 << 30, 9u64 << 30] {
            let map = memory_map(bytes);
            for pair in map.windows(2) {
                let (end, next) = (pair[0].addr + pair[0].size, pair[1].addr);
                assert!(end <= next, "{end:#x} {next:#x}");
            }
            let ram: u64 = map.iter().filter(|e| { e.r#type } == E820_RAM).map(|e| e.size).sum();
            assert_eq!(ram, bytes - (layout::EXTENDED_START - layout::CONVENTIONAL_END));
        }
    }

    #[test]
    fn initrd_goes_below_the_kernels_limit() {
        assert_eq!(place_initrd(1 << 30, 0x200_0000, 4097, 0x7fff_ffff).unwrap(), (1 << 30) - 8192);
        assert_eq!(place_initrd(3 << 30, 0x200_0000, 4096, 0x7fff_ffff).unwrap(), 0x7fff_f000);
        let error = place_initrd(64 << 20, 0x300_0000, 40 << 20, 0x7fff_ffff).unwrap_err();
        assert!(error.to_string().contains("more memory"), "{error}");
    }

    #[test]
    fn command_line_is_bounded_by_the_kernel() {
        let memory = crate::memory::reserve(1 << 20).unwrap();
        write_command_line(&memory, "console=ttyS0", 2047).unwrap();
        assert!(write_command_line(&memory, &"x".repeat(2048), 2047).is_err());
        assert!(write_command_line(&memory, "a\0b", 2047).is_err());
    }

    #[test]
    fn nonsense_setup_header_and_elf_are_refused() {
        assert!(header(Some(&[0; 100])).is_err());
        let memory = crate::memory::reserve(1 << 20).unwrap();
        let kernel = KernelImage::parse(b"\x7fELF, and then nothing".to_vec()).unwrap();
        let image = Image { kernel: &kernel, initrd: None, cmdline: "" };
        assert!(matches!(load(&memory, 1 << 20, &image, 0, &[0; 32]), Err(Error::Load(_))));
    }
}
