//! The address decoder of the machine: which device answers a guest-physical or I/O-port address.
//!
//! One [`Bus`] serves MMIO, another port I/O. Ranges never overlap and are registered before the vCPUs start; afterwards the
//! map is read without a lock. Each device has its own lock, held for one access only: lock order is device first,
//! then whatever the device locks itself (the interrupt table is always last).
//! Devices whose address the guest may move (PCI BARs) register one fixed window and dispatch within it.
//!
//! Addresses that nobody claims read as all ones and swallow writes, as on a PC.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::snapshot::{RestoreError, SnapshotError};

/// What a write asks of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the device.
    None,
    /// The guest asked for a reset.
    Reset,
    /// The guest turned the machine off.
    Shutdown,
}

/// A device that answers loads and stores in a window of a bus.
///
/// `offset` counts from the base of the registered range and lies inside it; `data` is 1 to 8 bytes long and may reach past the
/// end of the range, which the device must tolerate. The guest chooses both: no access may panic or block for long.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads. It arrives filled with 0xff: a device leaves alone what it does not answer.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote and says what the machine has to do about it.
    fn write(&mut self, offset: u64, data: &[u8]) -> Action;
    /// Returns what the device must remember when the machine is saved. A device of several ranges is
    /// asked for each of them.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes back what [`BusDevice::save`] has returned, before the first access.
    ///
    /// # Errors
    /// [`RestoreError`] when the state is not one of this device's.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let _ = state;
        Ok(())
    }
}

/// A device as the buses hold it; one device may be registered at several ranges.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// The refusal to register a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Bus range {base:#x}..+{len:#x} is empty, wraps, or overlaps another device's")]
pub struct RangeTaken {
    /// First address of the range.
    pub base: u64,
    /// Length of the range in bytes.
    pub len: u64,
}

struct Entry {
    range: Range<u64>,
    device: SharedDevice,
}

/// A map from address ranges to devices.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// Returns a bus on which nobody answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `device` for the addresses `base..base + len`.
    ///
    /// # Errors
    /// [`RangeTaken`] when the range is empty, wraps around, or overlaps a registered one.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), RangeTaken> {
        let taken = RangeTaken { base, len };
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(taken)?;
        let at = self.entries.partition_point(|entry| entry.range.start < base);
        let clear_before = at == 0 || self.entries[at - 1].range.end <= base;
        let clear_after = self.entries.get(at).is_none_or(|next| end <= next.range.start);
        if !(clear_before && clear_after) {
            return Err(taken);
        }
        self.entries.insert(at, Entry { range: base..end, device });
        Ok(())
    }

    /// Returns what the devices must remember, with the base addresses of their ranges; devices with nothing to say are left out.
    pub(crate) fn save(&self) -> Vec<(u64, Vec<u8>)> {
        let saved = self.entries.iter().map(|entry| (entry.range.start, entry.lock().save()));
        saved.filter(|(_, state)| !state.is_empty()).collect()
    }

    /// Gives every device back what [`Bus::save`] has returned for it.
    ///
    /// # Errors
    /// [`SnapshotError`] when a state's device is missing, or refuses it.
    pub(crate) fn restore(&self, states: &[(u64, Vec<u8>)]) -> Result<(), SnapshotError> {
        for (base, state) in states {
            let found = self.entries.binary_search_by_key(base, |entry| entry.range.start);
            let device = || format!("at {base:#x}");
            let at = found.map_err(|_| SnapshotError::MissingDevice { device: device() })?;
            let restored = self.entries[at].lock().restore(state);
            restored.map_err(|reason| SnapshotError::Device { device: device(), reason })?;
        }
        Ok(())
    }

    /// Serves a guest load. Returns whether a device claimed the address; else `data` reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(address) {
            Some((offset, mut device)) => {
                device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Serves a guest store. Returns `None` when no device claimed the address.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Action> {
        self.find(address).map(|(offset, mut device)| device.write(offset, data))
    }

    fn find(&self, address: u64) -> Option<(u64, MutexGuard<'_, dyn BusDevice + 'static>)> {
        let at =
            self.entries.partition_point(|entry| entry.range.start <= address).checked_sub(1)?;
        let entry = &self.entries[at];
        entry.range.contains(&address).then(|| (address - entry.range.start, entry.lock()))
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, dyn BusDevice + 'static> {
        // A device that panicked takes its vCPU down; the others may still finish their access.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Register {
        value: u8,
        offset: u64,
    }

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.offset = offset;
            data[0] = self.value;
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Action {
            self.offset = offset;
            self.value = data[0];
            if data[0] == 0xfe { Action::Reset } else { Action::None }
        }
    }

    #[test]
    fn accesses_reach_the_device_with_their_offset() {
        let mut bus = Bus::new();
        let low = Arc::new(Mutex::new(Register::default()));
        let high = Arc::new(Mutex::new(Register::default()));
        bus.insert(0x1000, 0x10, high.clone()).unwrap();
        bus.insert(0x60, 5, low.clone()).unwrap();
        assert_eq!(bus.write(0x64, &[0xfe]), Some(Action::Reset));
        assert_eq!(low.lock().unwrap().offset, 4);
        assert_eq!(bus.write(0x100f, &[7]), Some(Action::None));
        assert_eq!(high.lock().unwrap().offset, 0xf);
        let mut data = [0; 2];
        assert!(bus.read(0x1000, &mut data));
        assert_eq!(data, [7, 0xff]);
    }

    #[test]
    fn unclaimed_addresses_read_as_ones_and_swallow_writes() {
        let mut bus = Bus::new();
        bus.insert(0x10, 2, Arc::new(Mutex::new(Register::default()))).unwrap();
        for address in [0, 0xf, 0x12, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data));
            assert_eq!(data, [0xff; 4]);
            assert_eq!(bus.write(address, &[1]), None);
        }
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        let device = || Arc::new(Mutex::new(Register::default()));
        bus.insert(0x100, 0x10, device()).unwrap();
        for (base, len) in
            [(0x100, 1), (0xff, 2), (0x10f, 1), (0x80, 0x100), (0x200, 0), (u64::MAX, 2)]
        {
            assert_eq!(bus.insert(base, len, device()), Err(RangeTaken { base, len }));
        }
        bus.insert(0x110, 0x10, device()).unwrap();
        bus.insert(0xf0, 0x10, device()).unwrap();
    }

    #[test]
    fn devices_get_their_own_state_back() {
        struct Counter(u8);
        impl BusDevice for Counter {
            fn read(&mut self, _: u64, _: &mut [u8]) {}
            fn write(&mut self, _: u64, _: &[u8]) -> Action {
                Action::None
            }
            fn save(&self) -> Vec<u8> {
                vec![self.0]
            }
            fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
                let [value] = state else { return Err(RestoreError::new("no counter")) };
                self.0 = *value;
                Ok(())
            }
        }
        let bus = |first, second| {
            let mut bus = Bus::new();
            let devices = [first, second].map(|value| Arc::new(Mutex::new(Counter(value))));
            bus.insert(0x10, 1, devices[0].clone()).unwrap();
            bus.insert(0x20, 1, devices[1].clone()).unwrap();
            bus.insert(0x30, 1, Arc::new(Mutex::new(Register::default()))).unwrap();
            (bus, devices)
        };
        let saved = bus(7, 9).0.save();
        assert_eq!(saved, [(0x10, vec![7]), (0x20, vec![9])]);
        let (fresh, devices) = bus(0, 0);
        fresh.restore(&saved).unwrap();
        assert_eq!(devices.map(|device| device.lock().unwrap().0), [7, 9]);
        let error = fresh.restore(&[(0x20, vec![])]).unwrap_err();
        assert_eq!(error.to_string(), "Snapshot does not fit device at 0x20: no counter");
        assert!(fresh.restore(&[(0x11, vec![1])]).is_err());
    }
}
