//! ACPI fixed hardware: power management 1a event and control registers, and the power management timer.
//!
//! The machine is in ACPI mode from the start (no SMI command), has one sleeping state, S5, and one event, the power button.
//! The SCI line follows status and enable bits. General-purpose events and the timer's overflow interrupt are left out.
//! See ACPI 6.5, section 4.8.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::snapshot::{RestoreError, decode, encode};

/// Offset of the event block: status, then enable, 16 bits each.
pub const EVENT: u64 = 0;
/// Offset of the control register, 16 bits.
pub const CONTROL: u64 = 4;
/// Offset of the timer, 32 bits.
pub const TIMER: u64 = 8;
/// Length of the whole block.
pub const LEN: u64 = 12;
/// Sleep type of S5, as the DSDT says it.
pub const SLEEP_TYPE_S5: u8 = 5;

const POWER_BUTTON: u16 = 1 << 8;
/// Status bits that exist, all cleared by writing one: timer, bus master, global, power button, sleep button, RTC, wake.
const STATUS_MASK: u16 = 0x8731;
const CONTROL_SCI_ENABLED: u16 = 1;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
const TIMER_HZ: u128 = 3_579_545;

/// The registers, and the line to the interrupt controller.
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    /// What the timer stood at when it was `started`.
    ticks: u32,
    started: Instant,
    sci: Box<dyn FnMut(bool) + Send>,
}

impl PowerManagement {
    /// Returns the registers after reset; `sci` drives the level of the system control interrupt.
    pub fn new(sci: Box<dyn FnMut(bool) + Send>) -> Self {
        let control = CONTROL_SCI_ENABLED;
        Self { status: 0, enable: 0, control, ticks: 0, started: Instant::now(), sci }
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.update_sci();
    }

    fn update_sci(&mut self) {
        (self.sci)(self.status & self.enable != 0);
    }

    fn timer(&self) -> u32 {
        let ticks = self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000;
        self.ticks.wrapping_add(ticks as u32)
    }

    /// Returns the whole block as the guest would read it.
    fn block(&self) -> [u8; LEN as usize] {
        let mut block = [0; LEN as usize];
        block[0..2].copy_from_slice(&self.status.to_le_bytes());
        block[2..4].copy_from_slice(&self.enable.to_le_bytes());
        block[4..6].copy_from_slice(&self.control.to_le_bytes());
        block[8..12].copy_from_slice(&self.timer().to_le_bytes());
        block
    }

    fn write_control(&mut self, value: u16) -> Action {
        // Sleep enable reads as zero.
        self.control = value & !CONTROL_SLEEP_ENABLE | CONTROL_SCI_ENABLED;
        let sleep_type = (value >> 10 & 7) as u8;
        if value & CONTROL_SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
            Action::Shutdown
        } else {
            Action::None
        }
    }
}

/// What is saved of the registers. The timer goes on from where it stood.
#[derive(Serialize, Deserialize)]
struct Saved {
    status: u16,
    enable: u16,
    control: u16,
    ticks: u32,
}

/// Replaces the bytes of `register` (at `base` in the block) that a write of `data` at `offset` touches; `None` when it misses.
fn merged(register: u16, base: u64, offset: u64, data: &[u8]) -> Option<u16> {
    let mut bytes = register.to_le_bytes();
    let mut touched = false;
    for (at, byte) in (offset..).zip(data) {
        if let Some(slot) = at.checked_sub(base).and_then(|index| bytes.get_mut(index as usize)) {
            *slot = *byte;
            touched = true;
        }
    }
    touched.then(|| u16::from_le_bytes(bytes))
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let block = self.block();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(value) = block.get(at) {
                *byte = *value;
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some(cleared) = merged(0, EVENT, offset, data) {
            self.status &= !(cleared & STATUS_MASK);
        }
        if let Some(enable) = merged(self.enable, EVENT + 2, offset, data) {
            self.enable = enable;
        }
        self.update_sci();
        match merged(self.control, CONTROL, offset, data) {
            Some(control) => self.write_control(control),
            None => Action::None,
        }
    }

    fn save(&self) -> Vec<u8> {
        let (status, enable, control) = (self.status, self.enable, self.control);
        encode(&Saved { status, enable, control, ticks: self.timer() })
    }

    /// Drives the interrupt line as well: the interrupt controller must have been restored.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let Saved { status, enable, control, ticks } = decode(state)?;
        (self.status, self.enable) = (status & STATUS_MASK, enable);
        self.control = control & !CONTROL_SLEEP_ENABLE | CONTROL_SCI_ENABLED;
        (self.ticks, self.started) = (ticks, Instant::now());
        self.update_sci();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    fn registers() -> (PowerManagement, Arc<AtomicBool>) {
        let line = Arc::new(AtomicBool::new(false));
        let driven = line.clone();
        (PowerManagement::new(Box::new(move |high| driven.store(high, SeqCst))), line)
    }

    #[test]
    fn power_button_holds_the_line_until_acknowledged() {
        let (mut pm, line) = registers();
        pm.press_power_button();
        assert!(!line.load(SeqCst), "not enabled yet");
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(line.load(SeqCst));
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!line.load(SeqCst));
        let mut status = [0xff; 2];
        pm.read(0, &mut status);
        assert_eq!(status, [0, 0]);
    }

    #[test]
    fn only_s5_with_sleep_enable_shuts_down() {
        let (mut pm, _) = registers();
        let s5 = u16::from(SLEEP_TYPE_S5) << 10;
        assert_eq!(pm.write(CONTROL, &s5.to_le_bytes()), Action::None);
        assert_eq!(pm.write(CONTROL, &CONTROL_SLEEP_ENABLE.to_le_bytes()), Action::None);
        assert_eq!(pm.write(CONTROL, &(s5 | CONTROL_SLEEP_ENABLE).to_le_bytes()), Action::Shutdown);
        let mut control = [0; 2];
        pm.read(CONTROL, &mut control);
        assert_eq!(control[0] & 1, 1, "SCI stays enabled");
    }

    #[test]
    fn restored_registers_drive_the_line_and_the_timer_goes_on() {
        let (mut pm, _) = registers();
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        pm.press_power_button();
        pm.ticks = 0xffff_0000;
        let (mut restored, line) = registers();
        restored.restore(&pm.save()).unwrap();
        assert!(line.load(SeqCst));
        // The timer has 18 ms until it wraps; a wrapped value is past the saved one as well.
        assert!(restored.timer().wrapping_sub(0xffff_0000) < 1 << 31);
        assert!(restored.restore(&[]).is_err());
    }

    #[test]
    fn timer_advances() {
        let (mut pm, _) = registers();
        let mut read = || {
            let mut data = [0; 4];
            pm.read(TIMER, &mut data);
            u32::from_le_bytes(data)
        };
        let first = read();
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while read() == first {
            assert!(Instant::now() < deadline);
        }
    }
}
