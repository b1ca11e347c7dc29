//! The 256 bytes of configuration space of one function: identity, command, BARs, capabilities.
//!
//! Every byte has a mask of writable bits, and that is all there is to a write: a BAR answers
//! sizing because its address bits below its size are not writable. Registers with side effects
//! are the function's own affair. Bytes from 256 up to the 4096 that ECAM offers read as zero,
//! which ends the list of extended capabilities before it begins.
//! See PCI Local Bus Specification 3.0, section 6.1 (header), 6.2.5 (BARs), 6.7 (capabilities).

use std::ops::Range;

/// Bytes of configuration space.
pub const LEN: usize = 256;
/// BARs of a function.
pub const BARS: usize = 6;

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// Command bit that makes the BARs decode.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command bit that lets the function reach memory.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR_0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor of the device.
    pub vendor: u16,
    /// Device number of that vendor.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface, from the high byte down.
    pub class: u32,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem number.
    pub subsystem: u16,
}

/// A memory BAR of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes, a power of two from 4096.
    pub size: u64,
}

/// Type bits of a 64-bit prefetchable memory BAR. Linux puts such a BAR into any window.
const BAR_FLAGS: u32 = 0b1100;

/// The configuration space of one function.
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: [Option<Bar>; BARS],
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// Returns the space of a function without BARs and capabilities, memory decoding on.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: [None; BARS],
            last_capability: 0,
            free: FIRST_CAPABILITY,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &[identity.revision]);
        space.set(0x09, &identity.class.to_le_bytes()[..3]);
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        // As firmware would leave it. Writable: memory, bus master, parity, SERR, INTx disable.
        space.set(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
        space.allow(COMMAND, &0x0546u16.to_le_bytes());
        space.allow(0x0c, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Declares BAR `index` and the one after it, which holds the upper half of its address.
    ///
    /// # Panics
    /// When the index or the size is impossible: both come from our own code.
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 4096 && index + 1 < BARS);
        self.bars[index] = Some(bar);
        let mask = !(bar.size - 1) & !0xf;
        self.set(BAR_0 + 4 * index, &BAR_FLAGS.to_le_bytes());
        self.allow(BAR_0 + 4 * index, &mask.to_le_bytes());
    }

    /// Returns the BARs with their index.
    pub fn bars(&self) -> impl Iterator<Item = (usize, Bar)> + '_ {
        self.bars.iter().enumerate().filter_map(|(index, bar)| Some((index, (*bar)?)))
    }

    /// Places BAR `index` at `address`, as firmware would.
    pub fn place_bar(&mut self, index: usize, address: u64) {
        self.write(BAR_0 + 4 * index, &address.to_le_bytes());
    }

    /// Returns the addresses that BAR `index` decodes now; `None` while decoding is off or the
    /// address makes no sense.
    pub fn mapped(&self, index: usize) -> Option<Range<u64>> {
        let bar = self.bars[index]?;
        let mut address = [0; 8];
        self.read(BAR_0 + 4 * index, &mut address);
        let start = u64::from_le_bytes(address) & !0xf;
        let end = start.checked_add(bar.size)?;
        (self.u16(COMMAND) & COMMAND_MEMORY != 0 && start != 0).then_some(start..end)
    }

    /// Appends a capability: its `body` follows the two bytes of header, `writable` says which of
    /// the body's bits the guest may change. Returns the capability's offset.
    ///
    /// # Panics
    /// When the space is full: capabilities come from our own code.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.free;
        assert!(offset + 2 + body.len() <= LEN && writable.len() <= body.len());
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        let previous = match self.last_capability {
            0 => CAPABILITIES_POINTER,
            last => last + 1,
        };
        self.bytes[previous] = offset as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = offset;
        self.free = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// Fills `data` from `offset`; what lies beyond the space reads as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset.saturating_add(index)).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits of `data` at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let at = offset.saturating_add(index);
            let Some(byte) = self.bytes.get_mut(at) else { return };
            *byte = (*byte & !self.writable[at]) | (value & self.writable[at]);
        }
    }

    /// Returns the whole space, for [`ConfigSpace::restore`].
    pub fn bytes(&self) -> &[u8; LEN] {
        &self.bytes
    }

    /// Takes back the writable bits of `bytes`. Returns whether all others are as they are here: if not, it is another
    /// function's space, and nothing is taken.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        let fixed = |own: &[u8]| -> Vec<u8> {
            own.iter().zip(&self.writable).map(|(byte, mask)| byte & !mask).collect()
        };
        let same = bytes.len() == LEN && fixed(bytes) == fixed(&self.bytes);
        if same {
            self.write(0, bytes);
        }
        same
    }

    /// Returns the 16-bit register at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Returns the 32-bit register at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        space.add_bar(0, Bar { size: 0x8000 });
        space
    }

    #[test]
    fn bar_answers_sizing_and_keeps_its_type() {
        let mut space = space();
        space.place_bar(0, 0xc000_8000);
        assert_eq!(space.mapped(0), Some(0xc000_8000..0xc001_0000));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(space.u32(0x10), 0xffff_800c);
        assert_eq!(space.u32(0x14), 0xffff_ffff);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(space.u32(0x18), 0, "a BAR that does not exist must not take bits");
    }

    #[test]
    fn bar_decodes_only_while_memory_is_enabled() {
        let mut space = space();
        space.place_bar(0, 0x1_2345_6789_8000);
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.mapped(0), None);
        space.write(COMMAND, &[2]);
        assert_eq!(space.mapped(0).unwrap().start, 0x1_2345_6789_8000);
        space.place_bar(0, u64::MAX);
        assert_eq!(space.mapped(0), None, "a range that wraps decodes nothing");
    }

    #[test]
    fn only_the_same_functions_registers_are_restored() {
        let mut saved = space();
        saved.place_bar(0, 0x1_2345_6789_8000);
        saved.write(COMMAND, &[6, 4]);
        let mut restored = space();
        assert!(restored.restore(saved.bytes()));
        assert_eq!(restored.bytes(), saved.bytes());
        let mut other = *saved.bytes();
        other[2] = 0x41;
        let before = *restored.bytes();
        assert!(!restored.restore(&other) && !restored.restore(&other[..255]));
        assert_eq!(*restored.bytes(), before);
    }

    #[test]
    fn identity_is_read_only_and_beyond_the_end_is_zero() {
        let mut space = space();
        space.write(0, &[0; 8]);
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(8), 0x0100_0001);
        space.write(254, &[1; 8]);
        assert_eq!(space.u32(256), 0);
        space.write(usize::MAX, &[1; 8]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        assert_eq!(space.u16(STATUS), 0x10);
        assert_eq!(space.u16(CAPABILITIES_POINTER) as usize, first);
        assert_eq!(space.u16(first), 9 | (second as u16) << 8);
        assert_eq!(space.u16(second), 0x11);
        space.write(second, &[0xff; 12]);
        assert_eq!(space.u32(second), 0xc000_0011);
    }
}
