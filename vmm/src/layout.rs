//! Where things are in the guest's physical address space and on its I/O bus.
//!
//! RAM runs from 0 to at most [`LOW_RAM_END`], the rest from 4 GiB. Between them lie, upwards: the 32-bit PCI window, the PCI Express
//! configuration space, the I/O APIC, KVM's own pages and the local APICs. The 64-bit PCI window follows the end of RAM.

use std::ops::Range;

/// End of the RAM below 4 GiB, when there is that much.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 1 << 32;
/// Window for PCI BARs below 4 GiB.
pub const PCI_WINDOW_32: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI Express configuration space (ECAM) of bus 0, the only one.
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// Registers of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// One page for KVM's identity-mapped page table (real mode on older Intel CPUs).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for KVM's task state segment, right above the identity map.
pub const KVM_TSS: u64 = 0xfeff_d000;
/// Registers of each CPU's local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// End of conventional memory; the extended BIOS data area of a PC would begin here.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables lie here, in what is ROM on a PC.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
/// The 16 bytes of the VM generation ID: a page of its own within [`ACPI_TABLES`], which the memory map reserves.
pub const GENERATION_ID: u64 = 0xf_f000;
/// First byte of extended memory.
pub const EXTENDED_START: u64 = 0x10_0000;

/// First serial port (COM1): 8 ports, IRQ 4.
pub const COM1: u64 = 0x3f8;
/// Interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// CMOS index and data ports.
pub const CMOS: u64 = 0x70;
/// Keyboard controller: data port; the command port is 4 above.
pub const I8042_DATA: u64 = 0x60;
/// Keyboard controller: command and status port.
pub const I8042_COMMAND: u64 = 0x64;
/// PCI configuration address port.
pub const PCI_ADDRESS: u64 = 0xcf8;
/// PCI configuration data port.
pub const PCI_DATA: u64 = 0xcfc;
/// Reset control register.
pub const RESET_CONTROL: u64 = 0xcf9;
/// ACPI fixed hardware: PM1a event block (4), PM1a control block (2), PM timer (4) from +8.
pub const ACPI_PM: u64 = 0x600;
/// System control interrupt of ACPI.
pub const SCI_IRQ: u32 = 9;

/// Interrupt of ACPI's generic event device.
pub const EVENT_IRQ: u32 = 10;

const GIB: u64 = 1 << 30;

/// Returns how `memory` bytes are divided into RAM below and above the hole.
pub fn ram(memory: u64) -> (Range<u64>, Option<Range<u64>>) {
    let low = 0..memory.min(LOW_RAM_END);
    let high = memory.saturating_sub(LOW_RAM_END);
    (low, (high > 0).then(|| HIGH_RAM_START..HIGH_RAM_START + high))
}

/// Returns the window for 64-bit PCI BARs of a machine with `memory` bytes of RAM.
pub fn pci_window_64(memory: u64) -> Range<u64> {
    let top = ram(memory).1.map_or(HIGH_RAM_START, |high| high.end);
    let start = top.next_multiple_of(GIB);
    start..start + 16 * GIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram(GIB), (0..GIB, None));
        assert_eq!(ram(3 * GIB), (0..3 * GIB, None));
        assert_eq!(ram(8 * GIB), (0..3 * GIB, Some(4 * GIB..9 * GIB)));
    }

    #[test]
    fn wide_pci_window_starts_above_ram() {
        assert_eq!(pci_window_64(GIB).start, 4 * GIB);
        assert_eq!(pci_window_64(3 * GIB + 4096).start, 5 * GIB);
    }
}
