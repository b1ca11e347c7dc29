//! The root of the bus: finds the function that an access to configuration space or to a memory
//! window means.
//!
//! Configuration space is reached by ECAM (one bus: 1 MiB) and by the ports 0xcf8 and 0xcfc. The
//! windows dispatch by what the BARs hold at that moment, so a guest may move them at will. BARs
//! are placed in the low window in the order of the slots, where Linux leaves them.
//!
//! One lock guards the bus; the functions' own threads never take it, so a function may join them
//! under it. See PCI Local Bus Specification 3.0, 3.2.2.3.2 and PCI Express, 7.2.2.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::host_bridge::HostBridge;
use super::wiring::{DoorbellBus, VectorSource};
use super::{FunctionState, PciFunction, config};
use crate::bus::{Action, BusDevice, SharedDevice};
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::snapshot::{RestoreError, SnapshotError, decode, encode};
use crate::virtio::{VirtioDevice, transport::VirtioFunction};

/// Slots of the bus, the host bridge's included.
pub const SLOTS: usize = 32;
/// Bytes of configuration space that ECAM gives a function.
const ECAM_FUNCTION: u64 = 4096;
/// Functions in a slot.
const FUNCTIONS: u64 = 8;

/// The address ranges in which BARs decode.
#[derive(Clone, Debug)]
pub struct Windows {
    /// The window below 4 GiB, where the BARs are placed.
    pub low: Range<u64>,
    /// The window above the RAM, into which a guest may move them.
    pub high: Range<u64>,
}

struct Slots {
    functions: Vec<Box<dyn PciFunction>>,
    /// What was last written to port 0xcf8.
    address: u32,
    free: u64,
}

/// The PCI root. Clones are the same root.
#[derive(Clone)]
pub struct PciRoot {
    slots: Arc<Mutex<Slots>>,
    windows: Windows,
}

impl PciRoot {
    /// Returns a bus with nothing but its host bridge.
    pub fn new(windows: Windows) -> Self {
        let functions: Vec<Box<dyn PciFunction>> = vec![Box::new(HostBridge::new())];
        let slots = Slots { functions, address: 0, free: windows.low.start };
        Self { slots: Arc::new(Mutex::new(slots)), windows }
    }

    /// Puts `function` into the next slot, its BARs placed, and returns the slot.
    ///
    /// # Errors
    /// [`Error::Device`] when the slots or the window are full.
    pub fn add(&self, mut function: Box<dyn PciFunction>) -> Result<u8, Error> {
        let mut slots = self.lock();
        let slot = slots.functions.len();
        if slot >= SLOTS {
            return Err(Error::Device(format!("PCI bus has no free slot among its {SLOTS}")));
        }
        let bars: Vec<_> = function.config().bars().collect();
        for (index, bar) in bars {
            let address = slots.free.next_multiple_of(bar.size);
            let end = address + bar.size;
            if end > self.windows.low.end {
                return Err(Error::Device(format!(
                    "PCI window {:#x}..{:#x} has no room for {:#x} bytes",
                    self.windows.low.start, self.windows.low.end, bar.size
                )));
            }
            function.config_mut().place_bar(index, address);
            slots.free = end;
        }
        function.config_written();
        slots.functions.push(function);
        Ok(slot as u8)
    }

    /// Puts a virtio device behind the PCI transport into the next slot and returns the slot.
    ///
    /// # Errors
    /// [`Error::Device`] when the bus is full, [`Error::Kvm`] when vectors run out.
    pub fn add_virtio(
        &self,
        device: Box<dyn VirtioDevice>,
        memory: &GuestMemory,
        vectors: &dyn VectorSource,
        doorbells: Arc<dyn DoorbellBus>,
    ) -> Result<u8, Error> {
        self.add(Box::new(VirtioFunction::new(device, memory.clone(), vectors, doorbells)?))
    }

    /// Returns the configuration space as memory, to be registered over 1 MiB.
    pub fn ecam(&self) -> SharedDevice {
        Arc::new(Mutex::new(Ecam(self.clone())))
    }

    /// Returns the address port, to be registered at 0xcf8 for one byte: an access to it is 4 bytes
    /// long, and the bytes behind it belong to others.
    pub fn address_port(&self) -> SharedDevice {
        Arc::new(Mutex::new(AddressPort(self.clone())))
    }

    /// Returns the data port, to be registered at 0xcfc for 4 bytes.
    pub fn data_port(&self) -> SharedDevice {
        Arc::new(Mutex::new(DataPort(self.clone())))
    }

    /// Returns the memory window below 4 GiB, to be registered over [`Windows::low`].
    pub fn low_window(&self) -> SharedDevice {
        Arc::new(Mutex::new(Window { root: self.clone(), base: self.windows.low.start }))
    }

    /// Returns the memory window above the RAM, to be registered over [`Windows::high`].
    pub fn high_window(&self) -> SharedDevice {
        Arc::new(Mutex::new(Window { root: self.clone(), base: self.windows.high.start }))
    }

    /// Stops every function's threads, joined when it returns. For the end of the machine: the
    /// vCPUs must not run any more.
    pub fn stop(&self) {
        self.lock().functions.iter_mut().for_each(|function| function.stop());
    }

    /// Pauses every function; see [`PciFunction::pause`].
    ///
    /// # Errors
    /// [`Error::Kvm`] of the first function that cannot.
    pub(crate) fn pause(&self) -> Result<(), Error> {
        self.lock().functions.iter_mut().try_for_each(|function| function.pause())
    }

    /// Lets every function go on; see [`PciFunction::resume`].
    ///
    /// # Errors
    /// [`Error::Device`] of the first function that cannot.
    pub(crate) fn resume(&self) -> Result<(), Error> {
        self.lock().functions.iter_mut().try_for_each(|function| function.resume())
    }

    /// Returns the states of the paused functions, in the order of their slots.
    pub(crate) fn save(&self) -> Vec<FunctionState> {
        self.lock().functions.iter().map(|function| function.save()).collect()
    }

    /// Gives every function back what [`PciRoot::save`] has returned.
    ///
    /// # Errors
    /// [`SnapshotError`] when the functions are not the same ones.
    pub(crate) fn restore(&self, states: &[FunctionState]) -> Result<(), SnapshotError> {
        let mut slots = self.lock();
        if states.len() != slots.functions.len() {
            let (saved, present) = (states.len(), slots.functions.len());
            return Err(SnapshotError::Machine {
                what: "PCI devices",
                saved: saved as u64,
                present: present as u64,
            });
        }
        for (slot, (function, state)) in slots.functions.iter_mut().zip(states).enumerate() {
            function.restore(state).map_err(|reason| SnapshotError::Device {
                device: format!("{} in PCI slot {slot}", state.name),
                reason,
            })?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn function(&mut self, slot: u64) -> Option<&mut Box<dyn PciFunction>> {
        self.functions.get_mut(usize::try_from(slot).ok()?)
    }

    /// Returns the function that the address port names, and the register's offset.
    fn addressed(&mut self, port: u64) -> Option<(&mut Box<dyn PciFunction>, usize)> {
        let address = self.address;
        let (enabled, bus, function) =
            (address >> 31, (address >> 16) & 0xff, u64::from(address >> 8) % FUNCTIONS);
        if enabled == 0 || bus != 0 || function != 0 {
            return None;
        }
        let offset = (address & 0xfc) as usize + port as usize;
        Some((self.function(u64::from(address >> 11 & 0x1f))?, offset))
    }

    /// Finds the function behind an ECAM offset, and the register's offset.
    fn ecam(&mut self, offset: u64) -> Option<(&mut Box<dyn PciFunction>, usize)> {
        let number = offset / ECAM_FUNCTION;
        let register = (offset % ECAM_FUNCTION) as usize;
        if !number.is_multiple_of(FUNCTIONS) {
            return None;
        }
        Some((self.function(number / FUNCTIONS)?, register))
    }

    fn decoded(&mut self, address: u64) -> Option<(&mut Box<dyn PciFunction>, usize, u64)> {
        self.functions.iter_mut().find_map(|function| {
            let (bar, offset) = function.decode(address)?;
            Some((function, bar, offset))
        })
    }
}

struct Ecam(PciRoot);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((function, register)) = self.0.lock().ecam(offset) {
            function.read_config(register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some((function, register)) = self.0.lock().ecam(offset) {
            function.write_config(register, data);
        }
        Action::None
    }
}

struct AddressPort(PciRoot);

impl BusDevice for AddressPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.0.lock().address.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0.lock().address = u32::from_le_bytes(data);
        }
        Action::None
    }

    fn save(&self) -> Vec<u8> {
        encode(&self.0.lock().address)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.0.lock().address = decode(state)?;
        Ok(())
    }
}

struct DataPort(PciRoot);

impl BusDevice for DataPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((function, register)) = self.0.lock().addressed(offset) {
            function.read_config(register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some((function, register)) = self.0.lock().addressed(offset) {
            // An access that runs past the port reaches nobody with its tail.
            let len = data.len().min(config::LEN.saturating_sub(register));
            function.write_config(register, &data[..len]);
        }
        Action::None
    }
}

struct Window {
    root: PciRoot,
    base: u64,
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let address = self.base.saturating_add(offset);
        if let Some((function, bar, offset)) = self.root.lock().decoded(address) {
            function.read_bar(bar, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let address = self.base.saturating_add(offset);
        if let Some((function, bar, offset)) = self.root.lock().decoded(address) {
            function.write_bar(bar, offset, data);
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::{Bar, ConfigSpace, Identity};

    struct Scratch {
        config: ConfigSpace,
        written: Writes,
    }

    impl PciFunction for Scratch {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn read_bar(&mut self, _: usize, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write_bar(&mut self, _: usize, offset: u64, data: &[u8]) {
            self.written.lock().unwrap().push((offset, data.to_vec()));
        }
        fn stop(&mut self) {}
    }

    type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

    fn root() -> (PciRoot, Writes) {
        let root = PciRoot::new(Windows { low: 0xc000_0000..0xe000_0000, high: 1 << 32..2 << 32 });
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(0, Bar { size: 0x8000 });
        let written = Writes::default();
        assert_eq!(root.add(Box::new(Scratch { config, written: written.clone() })).unwrap(), 1);
        (root, written)
    }

    fn read32(device: &SharedDevice, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.lock().unwrap().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(device: &SharedDevice, offset: u64, data: &[u8]) {
        assert_eq!(device.lock().unwrap().write(offset, data), Action::None);
    }

    #[test]
    fn both_mechanisms_see_the_same_registers() {
        let (root, _) = root();
        let (ecam, address, data) = (root.ecam(), root.address_port(), root.data_port());
        assert_eq!(read32(&ecam, 0), 0x0008_1b36);
        assert_eq!(read32(&ecam, 8 << 12), 0x1041_1af4);
        assert_eq!(read32(&ecam, 9 << 12), u32::MAX, "function 1 does not exist");
        assert_eq!(read32(&ecam, 16 << 12), u32::MAX, "slot 2 is empty");
        assert_eq!(read32(&ecam, 31 << 15 | 0xffc), u32::MAX);
        write(&address, 0, &0x8000_0800u32.to_le_bytes());
        assert_eq!(read32(&address, 0), 0x8000_0800);
        assert_eq!(read32(&data, 0), 0x1041_1af4);
        let mut two = [0xff; 2];
        data.lock().unwrap().read(2, &mut two);
        assert_eq!(two, [0x41, 0x10]);
        for address_value in [0x0000_0800u32, 0x8001_0800, 0x8000_0900, 0x8000_f800] {
            write(&address, 0, &address_value.to_le_bytes());
            assert_eq!(read32(&data, 0), u32::MAX, "{address_value:#x} names nobody");
        }
        write(&address, 0, &[1, 2]);
        assert_eq!(read32(&address, 0), 0x8000_f800, "only whole accesses set the address");
    }

    #[test]
    fn bars_are_sized_and_moved_and_accesses_follow() {
        let (root, written) = root();
        let (ecam, low, high) = (root.ecam(), root.low_window(), root.high_window());
        let bar = (8u64 << 12) + 0x10;
        assert_eq!(read32(&ecam, bar), 0xc000_000c);
        write(&low, 0x7ffc, &[1, 2, 3, 4]);
        write(&low, 0x8000, &[9]);
        assert_eq!(*written.lock().unwrap(), [(0x7ffc, vec![1, 2, 3, 4])]);
        // As Linux sizes: decoding off, all ones, read back, restore.
        write(&ecam, (8 << 12) + 4, &[0, 0]);
        write(&ecam, bar, &[0xff; 4]);
        assert_eq!(read32(&ecam, bar) & !0xf, 0xffff_8000);
        write(&ecam, bar, &0u32.to_le_bytes());
        write(&ecam, bar + 4, &1u32.to_le_bytes());
        assert_eq!(read32(&high, 0x10), u32::MAX, "decoding is off");
        write(&ecam, (8 << 12) + 4, &[2, 0]);
        assert_eq!(read32(&high, 0x10), 0xffff_ff10);
        assert_eq!(read32(&low, 0x10), u32::MAX);
    }

    #[test]
    fn full_bus_refuses_more() {
        let (root, _) = root();
        for _ in 2..SLOTS {
            root.add(Box::new(HostBridge::new())).unwrap();
        }
        let error = root.add(Box::new(HostBridge::new())).unwrap_err();
        assert!(error.to_string().contains("no free slot"));
    }
}
