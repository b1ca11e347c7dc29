//! MSI-X: the table of messages that the guest programs, the pending bits, the masks.
//!
//! A vector delivers when MSI-X is enabled, the function is not masked and its entry is not
//! masked. While it may not, its interrupt is latched in the vector and shows in the pending bit
//! array; the unmasking delivers it. A message is handed on when its vector is unmasked, so that a
//! guest that writes it in pieces behind the mask costs one routing change.
//! See PCI Local Bus Specification 3.0, section 6.8.2.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use super::wiring::MessageVector;
use crate::error::Error;
use crate::snapshot::RestoreError;

/// Capability number of MSI-X.
const CAPABILITY: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_LEN: usize = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u8 = 1;
const ENTRY_CONTROL: usize = 12;

#[derive(Clone, Copy)]
struct Entry {
    bytes: [u8; ENTRY_LEN],
    delivers: bool,
}

impl Entry {
    fn is_masked(&self) -> bool {
        self.bytes[ENTRY_CONTROL] & ENTRY_MASKED != 0
    }

    fn message(&self) -> (u64, u32) {
        let [a, b, c, d, e, f, g, h, data @ .., _, _, _, _] = self.bytes;
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes(data))
    }
}

/// One entry as it is saved: its bytes in the table, and its pending bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEntry {
    bytes: [u8; ENTRY_LEN],
    pending: bool,
}

/// The MSI-X state of one function.
pub struct Msix {
    capability: usize,
    entries: Vec<Entry>,
    vectors: Vec<Arc<dyn MessageVector>>,
    control: u16,
}

impl Msix {
    /// Adds the capability to `config`, table at `table` and pending bits at `pending` of BAR `bar`.
    pub fn new(
        config: &mut ConfigSpace,
        vectors: Vec<Arc<dyn MessageVector>>,
        bar: usize,
        table: u32,
        pending: u32,
    ) -> Self {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | bar as u32).to_le_bytes());
        body[6..].copy_from_slice(&(pending | bar as u32).to_le_bytes());
        let writable = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();
        let capability = config.add_capability(CAPABILITY, &body, &writable);
        let mut entry = Entry { bytes: [0; ENTRY_LEN], delivers: false };
        entry.bytes[ENTRY_CONTROL] = ENTRY_MASKED;
        Self { capability, entries: vec![entry; vectors.len()], vectors, control: 0 }
    }

    /// Takes over what the guest may have changed in the capability's message control.
    pub fn config_written(&mut self, config: &ConfigSpace) {
        let control = config.u16(self.capability + 2);
        if control != self.control {
            self.control = control;
            (0..self.entries.len()).for_each(|index| self.update(index));
        }
    }

    /// Waits until every message sent so far has reached the guest's processors.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    pub fn settle(&self) -> Result<(), Error> {
        self.vectors.iter().try_for_each(|vector| vector.settle())
    }

    /// Returns the table and the pending bits; message control is in the configuration space.
    pub fn save(&self) -> Vec<SavedEntry> {
        let entries = self.entries.iter().zip(&self.vectors);
        let save = |(entry, vector): (&Entry, &Arc<dyn MessageVector>)| SavedEntry {
            bytes: entry.bytes,
            pending: vector.is_pending(),
        };
        entries.map(save).collect()
    }

    /// Takes back what [`Msix::save`] has returned. Vectors become effective with [`Msix::config_written`].
    ///
    /// # Errors
    /// [`RestoreError`] when the number of entries is another.
    pub fn restore(&mut self, saved: &[SavedEntry]) -> Result<(), RestoreError> {
        if saved.len() != self.entries.len() {
            return Err(RestoreError::new(format!(
                "{} interrupt vectors, not {}",
                saved.len(),
                self.entries.len()
            )));
        }
        for ((entry, vector), saved) in self.entries.iter_mut().zip(&self.vectors).zip(saved) {
            entry.bytes = saved.bytes;
            entry.bytes[ENTRY_CONTROL] &= ENTRY_MASKED;
            entry.bytes[ENTRY_CONTROL + 1..].fill(0);
            if saved.pending {
                // Fresh vectors are masked: this only latches.
                vector.trigger();
            }
        }
        Ok(())
    }

    /// Fills `data` from the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let address = (offset as usize).saturating_add(index);
            let (entry, at) = (address / ENTRY_LEN, address % ENTRY_LEN);
            *byte = self.entries.get(entry).map_or(0, |entry| entry.bytes[at]);
        }
    }

    /// Takes a write to the table: 4 or 8 bytes inside one entry, others have no meaning.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let (index, at) = (offset as usize / ENTRY_LEN, offset as usize % ENTRY_LEN);
        let aligned = matches!(data.len(), 4 | 8) && at.is_multiple_of(data.len());
        let Some(entry) = self.entries.get_mut(index).filter(|_| aligned) else { return };
        let before = entry.message();
        entry.bytes[at..at + data.len()].copy_from_slice(data);
        // Of the vector control only the mask bit exists.
        entry.bytes[ENTRY_CONTROL] &= ENTRY_MASKED;
        entry.bytes[ENTRY_CONTROL + 1..].fill(0);
        let (message, delivers) = (entry.message(), entry.delivers);
        if delivers && message != before {
            self.vectors[index].set_route(message.0, message.1);
        }
        self.update(index);
    }

    /// Fills `data` from the pending bit array.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize).saturating_add(index).saturating_mul(8);
            let pending = |bit: &usize| {
                self.vectors.get(first.saturating_add(*bit)).is_some_and(|v| v.is_pending())
            };
            *byte = (0..8).filter(pending).fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// Brings the vector's mask in line with the registers.
    fn update(&mut self, index: usize) {
        let enabled = self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
        let (entry, vector) = (&mut self.entries[index], &self.vectors[index]);
        let delivers = enabled && !entry.is_masked();
        if delivers == entry.delivers {
            return;
        }
        entry.delivers = delivers;
        if delivers {
            let (address, data) = entry.message();
            vector.set_route(address, data);
        }
        vector.set_masked(!delivers);
        if self.control & CONTROL_ENABLE == 0 {
            // Turned off altogether: what was latched is lost, as on hardware.
            vector.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Identity;
    use super::super::wiring::fake::FakeVector;
    use super::*;

    struct Setup {
        config: ConfigSpace,
        msix: Msix,
        vectors: Vec<Arc<FakeVector>>,
    }

    impl Setup {
        fn new(count: usize) -> Self {
            let mut config = ConfigSpace::new(Identity {
                vendor: 1,
                device: 1,
                revision: 0,
                class: 0,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            let vectors: Vec<_> = (0..count).map(|_| Arc::new(FakeVector::default())).collect();
            let dynamic = vectors.iter().map(|v| v.clone() as Arc<dyn MessageVector>).collect();
            let msix = Msix::new(&mut config, dynamic, 0, 0x4000, 0x5000);
            Self { config, msix, vectors }
        }

        fn control(&mut self, value: u16) {
            self.config.write(self.msix.capability + 2, &value.to_le_bytes());
            self.msix.config_written(&self.config);
        }

        fn entry(&mut self, index: u64, address: u64, data: u32, masked: u32) {
            let base = index * 16;
            self.msix.write_table(base, &(address as u32).to_le_bytes());
            self.msix.write_table(base + 4, &((address >> 32) as u32).to_le_bytes());
            self.msix.write_table(base + 8, &data.to_le_bytes());
            self.msix.write_table(base + 12, &masked.to_le_bytes());
        }

        fn pending(&self) -> u64 {
            let mut bits = [0; 8];
            self.msix.read_pending(0, &mut bits);
            u64::from_le_bytes(bits)
        }
    }

    #[test]
    fn capability_tells_where_the_tables_are() {
        let setup = Setup::new(3);
        let at = setup.msix.capability;
        assert_eq!(setup.config.u32(at) >> 16, 2);
        assert_eq!(setup.config.u32(at + 4), 0x4000);
        assert_eq!(setup.config.u32(at + 8), 0x5000);
    }

    #[test]
    fn masked_interrupts_show_as_pending_and_arrive_on_unmask() {
        let mut setup = Setup::new(10);
        setup.control(CONTROL_ENABLE);
        setup.entry(9, 0xfee0_1000, 0x41, 1);
        setup.vectors[9].trigger();
        assert_eq!(setup.pending(), 1 << 9);
        setup.msix.write_table(9 * 16 + 12, &[0; 4]);
        assert_eq!(setup.pending(), 0);
        let state = setup.vectors[9].state();
        assert_eq!((state.delivered, state.route), (1, Some((0xfee0_1000, 0x41))));
    }

    #[test]
    fn function_mask_holds_every_vector_back() {
        let mut setup = Setup::new(2);
        setup.entry(0, 0xfee0_0000, 1, 0);
        setup.entry(1, 0xfee0_0000, 2, 0);
        setup.control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        setup.vectors.iter().for_each(|vector| vector.trigger());
        assert_eq!(setup.pending(), 3);
        setup.control(CONTROL_ENABLE);
        assert_eq!(setup.vectors.iter().map(|v| v.state().delivered).sum::<u64>(), 2);
    }

    #[test]
    fn disabling_forgets_what_was_latched() {
        let mut setup = Setup::new(1);
        setup.entry(0, 0xfee0_0000, 1, 0);
        setup.control(CONTROL_ENABLE);
        setup.control(0);
        setup.vectors[0].trigger();
        assert!(setup.vectors[0].state().masked);
        assert_eq!(setup.vectors[0].state().delivered, 0);
    }

    #[test]
    fn restored_vectors_deliver_and_pending_ones_wait() {
        let mut saved = Setup::new(3);
        saved.entry(0, 0xfee0_0000, 0x41, 0);
        saved.entry(1, 0xfee0_1000, 0x42, 1);
        saved.control(CONTROL_ENABLE);
        saved.vectors[1].trigger();
        let mut restored = Setup::new(3);
        restored.msix.restore(&saved.msix.save()).unwrap();
        assert!(restored.config.restore(saved.config.bytes()));
        restored.msix.config_written(&restored.config);
        assert_eq!(restored.msix.save(), saved.msix.save());
        assert_eq!((restored.pending(), restored.vectors[1].state().delivered), (2, 0));
        assert_eq!(restored.vectors[0].state().route, Some((0xfee0_0000, 0x41)));
        restored.vectors[0].trigger();
        assert_eq!(restored.vectors[0].state().delivered, 1);
        restored.msix.write_table(16 + 12, &[0; 4]);
        assert_eq!(restored.vectors[1].state().delivered, 1);
        assert!(restored.msix.restore(&saved.msix.save()[1..]).is_err());
    }

    #[test]
    fn moving_an_unmasked_vector_takes_effect() {
        let mut setup = Setup::new(1);
        setup.control(CONTROL_ENABLE);
        setup.entry(0, 0xfee0_0000, 1, 0);
        setup.msix.write_table(8, &7u32.to_le_bytes());
        assert_eq!(setup.vectors[0].state().route, Some((0xfee0_0000, 7)));
    }

    #[test]
    fn nonsense_accesses_are_ignored() {
        let mut setup = Setup::new(1);
        for offset in [1u64, 3, 12, 16, 4096, u64::MAX - 8] {
            for len in [1usize, 2, 3, 4, 8] {
                setup.msix.write_table(offset, &vec![0xff; len]);
                setup.msix.read_table(offset, &mut vec![0; len]);
                setup.msix.read_pending(offset, &mut vec![0; len]);
            }
        }
        let mut control = [0; 4];
        setup.msix.read_table(12, &mut control);
        assert_eq!(control, [1, 0, 0, 0], "reserved bits stay zero");
    }
}
