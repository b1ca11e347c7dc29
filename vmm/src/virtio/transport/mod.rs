//! Virtio over PCI: a [`VirtioDevice`] as a function of the PCI bus.
//!
//! One 64-bit BAR holds the common configuration, the device's configuration, the doorbells (one
//! eventfd a queue, bound to its address in the kernel while the BAR decodes), the MSI-X table and
//! the pending bits. The same registers can be reached through the configuration space by the
//! VIRTIO_PCI_CAP_PCI_CFG capability.
//!
//! Left out: INTx, hence the ISR bits, and the legacy interface.
//! See VIRTIO 1.2, section 4.1.

mod common;
mod function;

pub use function::VirtioFunction;

#[cfg(test)]
mod tests;

/// Layout of the BAR: one page a structure.
mod layout {
    pub const COMMON: u64 = 0x0000;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;
    pub const MSIX_TABLE: u64 = 0x4000;
    pub const MSIX_PENDING: u64 = 0x6000;
    pub const BAR_LEN: u64 = 0x8000;
    pub const PAGE: u64 = 0x1000;
    /// Bytes between the doorbells of two queues.
    pub const NOTIFY_STRIDE: u64 = 4;
    /// Bytes of device configuration that are announced.
    pub const DEVICE_LEN: u64 = 0x100;
}
