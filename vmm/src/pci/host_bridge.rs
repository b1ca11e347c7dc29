//! The host bridge in slot 0: an identity and nothing else. Its windows are told by ACPI.

use super::config::{ConfigSpace, Identity};
use super::{FunctionState, PciFunction};

/// QEMU's generic PCI Express host bridge, which no driver claims.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

pub(super) struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    pub(super) fn new() -> Self {
        Self { config: ConfigSpace::new(IDENTITY) }
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_bar(&mut self, _: usize, _: u64, _: &mut [u8]) {}

    fn write_bar(&mut self, _: usize, _: u64, _: &[u8]) {}

    fn stop(&mut self) {}

    fn save(&self) -> FunctionState {
        let config = self.config.bytes().to_vec();
        FunctionState { name: "host bridge".to_owned(), config, private: Vec::new() }
    }
}
