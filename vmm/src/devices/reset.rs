//! The reset control register at port 0xcf9, which the FADT names as ACPI's reset register.

use crate::bus::{Action, BusDevice};
use crate::snapshot::{RestoreError, decode, encode};

/// Value that resets the processor and the system.
pub const RESET_VALUE: u8 = 0x06;
const RESET_CPU: u8 = 0x04;

/// The register. Reads return what was written last.
#[derive(Clone, Debug, Default)]
pub struct ResetControl {
    value: u8,
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.value;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        let [byte] = data else { return Action::None };
        self.value = byte & !RESET_CPU;
        if byte & RESET_CPU != 0 { Action::Reset } else { Action::None }
    }

    fn save(&self) -> Vec<u8> {
        encode(&self.value)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.value = decode(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_bit_resets() {
        let mut register = ResetControl::default();
        assert_eq!(register.write(0, &[0x02]), Action::None);
        assert_eq!(register.write(0, &[RESET_VALUE]), Action::Reset);
        assert_eq!(
            register.write(0, &[0x06, 0, 0, 0]),
            Action::None,
            "a wide access is configuration address"
        );
    }
}
