//! The keyboard controller (i8042) without keyboard and mouse: it answers its self-test, and it resets the machine.
//!
//! ACPI tells the guest that there is none, so that it does not look for a keyboard; the reset by command 0xfe is what
//! guests use when ACPI's way fails. The bus gives it the data port at offset 0 and the command port at offset 4.

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::snapshot::{RestoreError, decode, encode};

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;

const COMMAND_READ_CONFIGURATION: u8 = 0x20;
const COMMAND_WRITE_CONFIGURATION: u8 = 0x60;
const COMMAND_SELF_TEST: u8 = 0xaa;
const COMMAND_KEYBOARD_TEST: u8 = 0xab;
/// Pulses output lines; with bit 0 clear that is the processor's reset line.
const COMMAND_PULSE: u8 = 0xf0;

/// The controller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct I8042 {
    configuration: u8,
    writes_configuration: bool,
    answer: Option<u8>,
}

impl I8042 {
    fn command(&mut self, command: u8) -> Action {
        self.writes_configuration = command == COMMAND_WRITE_CONFIGURATION;
        match command {
            COMMAND_READ_CONFIGURATION => self.answer = Some(self.configuration),
            COMMAND_SELF_TEST => self.answer = Some(0x55),
            COMMAND_KEYBOARD_TEST => self.answer = Some(0x01),
            _ if command >= COMMAND_PULSE && command & 1 == 0 => return Action::Reset,
            _ => {}
        }
        Action::None
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        match offset {
            0 => *byte = self.answer.take().unwrap_or(0),
            4 => *byte = STATUS_SYSTEM | if self.answer.is_some() { STATUS_OUTPUT_FULL } else { 0 },
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (0, [byte]) if self.writes_configuration => {
                self.configuration = *byte;
                self.writes_configuration = false;
                Action::None
            }
            (4, [byte]) => self.command(*byte),
            _ => Action::None,
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(self)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        *self = decode(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulsing_the_reset_line_resets() {
        let mut controller = I8042::default();
        assert_eq!(controller.write(4, &[0xfe]), Action::Reset);
        assert_eq!(controller.write(4, &[0xff]), Action::None);
    }

    #[test]
    fn self_test_passes() {
        let mut controller = I8042::default();
        assert_eq!(controller.write(4, &[0xaa]), Action::None);
        let mut data = [0xff];
        controller.read(4, &mut data);
        assert_eq!(data[0] & 1, 1);
        controller.read(0, &mut data);
        assert_eq!(data, [0x55]);
        controller.read(4, &mut data);
        assert_eq!(data[0] & 1, 0);
    }
}
