//! The DSDT: the namespace with the PCI root, the serial port, the clock, the generation ID and the sleeping state S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Return, Scope,
};

use super::{Hardware, encode};
use crate::devices::acpi_pm;
use crate::layout;

/// Returns the AML behind the table header.
pub(super) fn body(hardware: Hardware) -> Vec<u8> {
    let mut aml = Vec::new();
    let s5 = acpi_pm::SLEEP_TYPE_S5;
    Name::new(Path::new("_S5_"), &Package::new(vec![&s5, &s5, &0u8, &0u8])).to_aml_bytes(&mut aml);
    pci_root(hardware.memory, &mut aml);
    reserved(&mut aml);
    serial_port(&mut aml);
    clock(&mut aml);
    generation_id(&mut aml);
    events(&mut aml);
    aml
}

/// The host bridge of bus 0. No `_PRT`: every function uses MSI-X. No `_OSC`: hotplug and error reporting do not exist.
fn pci_root(memory: u64, aml: &mut Vec<u8>) {
    let window_32 = layout::PCI_WINDOW_32;
    let window_64 = layout::pci_window_64(memory);
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window_32.start as u32,
        window_32.end as u32 - 1,
        None,
    );
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window_64.start,
        window_64.end - 1,
        None,
    );
    let device = encode(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&buses, &config, &low, &high]),
            ),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}

/// Motherboard resources: guests use the configuration space only when it is reserved here.
fn reserved(aml: &mut Vec<u8>) {
    let ecam = layout::ECAM;
    let space = Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32);
    let pm = IO::new(layout::ACPI_PM as u16, layout::ACPI_PM as u16, 1, acpi_pm::LEN as u8);
    let device = encode(&Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&space, &pm])),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}

fn serial_port(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::COM1 as u16, layout::COM1 as u16, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::COM1_IRQ);
    let device = encode(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}

fn clock(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::CMOS as u16, layout::CMOS as u16, 1, 2);
    let device = encode(&Device::new(
        Path::new("RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}

/// The VM generation ID, as Microsoft's specification of that name wants it: the address in two halves, low first.
fn generation_id(aml: &mut Vec<u8>) {
    let (low, high) = (layout::GENERATION_ID as u32, (layout::GENERATION_ID >> u32::BITS) as u32);
    let address = Package::new(vec![&low, &high]);
    let device = encode(&Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"KVMB0001"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Method::new(Path::new("ADDR"), 0, false, vec![&Return::new(&address)]),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}

/// The generic event device (ACPI 6.5, section 5.6.9): its interrupt says that the generation ID has changed.
fn events(aml: &mut Vec<u8>) {
    const CHANGED: u8 = 0x80;
    let interrupt = Interrupt::new(true, true, false, false, layout::EVENT_IRQ);
    let generation_id = Path::new("\\_SB_.VGEN");
    let changed = Notify::new(&generation_id, &CHANGED);
    let device = encode(&Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&If::new(&Equal::new(&Arg(0), &layout::EVENT_IRQ), vec![&changed])],
            ),
        ],
    ));
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), device));
}
