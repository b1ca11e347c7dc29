//! What KVM keeps for the machine as a whole: interrupt controllers, timer, clock.
//!
//! See Linux, Documentation/virt/kvm/api.rst, KVM_GET_IRQCHIP, KVM_GET_PIT2 and KVM_GET_CLOCK.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{Error, kvm_error};

/// The state of the interrupt controllers, the timer and KVM's clock.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct PlatformState {
    pit: kvm_pit_state2,
    pub(super) chips: [kvm_irqchip; 3],
    /// Nanoseconds of KVM's clock.
    pub(super) clock: u64,
}

impl PlatformState {
    /// Reads the state, before that of the local APICs: an interrupt that is just on its way is then in one of the two.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    pub(crate) fn read(vm: &VmFd) -> Result<Self, Error> {
        let pit = vm.get_pit2().map_err(kvm_error("KVM_GET_PIT2"))?;
        let chip = |chip_id| -> Result<kvm_irqchip, Error> {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(kvm_error("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        let chips = [
            chip(KVM_IRQCHIP_PIC_MASTER)?,
            chip(KVM_IRQCHIP_PIC_SLAVE)?,
            chip(KVM_IRQCHIP_IOAPIC)?,
        ];
        let clock = vm.get_clock().map_err(kvm_error("KVM_GET_CLOCK"))?.clock;
        Ok(Self { pit, chips, clock })
    }

    /// Puts the state back, after that of the local APICs, into which the I/O APIC may send at once.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(kvm_error("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(kvm_error("KVM_SET_PIT2"))?;
        // Without the flag for real time: the clock goes on from what it showed.
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(kvm_error("KVM_SET_CLOCK"))
    }
}
