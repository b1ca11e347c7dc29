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
        // A device that panicked takes its vCPU down; the others may still finish their access.
        let lock = || entry.device.lock().unwrap_or_else(PoisonError::into_inner);
        entry.range.contains(&address).then(|| (address - entry.range.start, lock()))
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
}
