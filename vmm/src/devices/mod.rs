//! The devices of a PC that are not on the PCI bus. Each keeps its registers in a plain struct and knows nothing of KVM.

pub mod acpi_pm;
pub mod cmos;
pub mod i8042;
pub mod reset;
pub mod serial;
pub mod vmgenid;
