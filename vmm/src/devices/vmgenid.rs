//! The VM generation ID: 128 bits in guest memory that change whenever the machine has been restored from a snapshot, so that the
//! guest makes its random numbers and whatever else must be unique anew.
//!
//! The machine writes an ID before the guest first runs, and on restoring another one, whereupon it raises the event's interrupt:
//! ACPI's generic event device notifies the guest's driver, which reads the ID again. See Microsoft, "Virtual Machine Generation
//! ID", and ACPI 6.5, section 5.6.9.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, kvm_error};
use crate::layout;
use crate::memory::GuestMemory;
use crate::random;

/// Bytes of a generation ID.
pub const LEN: usize = 16;

/// Writes `id` to where the ACPI tables say it is.
///
/// # Errors
/// [`Error::Load`] when there is no memory.
pub fn write_generation(memory: &GuestMemory, id: &[u8; LEN]) -> Result<(), Error> {
    let written = memory.write_slice(id, GuestAddress(layout::GENERATION_ID));
    written.map_err(|error| Error::Load(format!("the generation ID does not fit: {error}")))
}

/// Writes an ID that no machine has had before.
///
/// # Errors
/// [`Error::Random`], and those of [`write_generation`].
pub fn renew(memory: &GuestMemory) -> Result<(), Error> {
    let mut id = [0; LEN];
    random::fill(&mut id).map_err(Error::Random)?;
    write_generation(memory, &id)
}

/// The interrupt of the generic event device.
#[derive(Clone)]
pub struct GenerationEvent(Arc<EventFd>);

impl GenerationEvent {
    /// Binds it to `vm`, whose interrupt controllers exist.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    pub fn new(vm: &VmFd) -> Result<Self, Error> {
        let event = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|source| Error::Kvm { operation: "eventfd", source })?;
        vm.register_irqfd(&event, layout::EVENT_IRQ).map_err(kvm_error("KVM_IRQFD"))?;
        Ok(Self(Arc::new(event)))
    }

    /// Tells the guest that the ID has changed. A guest that has no driver for it does not notice.
    pub fn raise(&self) {
        // Fails only when the counter is full, and then the interrupt is on its way.
        let _ = self.0.write(1);
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};

    use super::*;
    use crate::interrupts::MsiRouter;

    #[test]
    fn each_id_is_another_and_only_its_own_bytes_change() {
        let memory = crate::memory::reserve(2 << 20).unwrap();
        let read = || {
            let mut page = vec![0; 4096];
            memory.read_slice(&mut page, GuestAddress(layout::GENERATION_ID)).unwrap();
            page
        };
        renew(&memory).unwrap();
        let first = read();
        renew(&memory).unwrap();
        let second = read();
        assert_ne!(first[..LEN], [0; LEN]);
        assert_ne!(first[..LEN], second[..LEN]);
        assert_eq!(second[LEN..], vec![0; 4096 - LEN]);
        write_generation(&memory, b"0123456789abcdef").unwrap();
        assert_eq!(&read()[..LEN], b"0123456789abcdef");
    }

    #[test]
    fn raising_is_an_edge_on_the_events_pin() {
        let kvm = crate::host::open().expect("a usable /dev/kvm");
        let vm = Arc::new(crate::host::create_vm(&kvm).unwrap());
        vm.create_irq_chip().unwrap();
        let _router = MsiRouter::new(vm.clone()).unwrap();
        let event = GenerationEvent::new(&vm).unwrap();
        // The edge is over before anyone could look at the pin; the second PIC, which has IRQs 8 to 15, keeps it.
        let requests = || {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_SLAVE, ..Default::default() };
            vm.get_irqchip(&mut chip).unwrap();
            // SAFETY: the chip asked for is a PIC, and that is what KVM has filled in.
            unsafe { chip.chip.pic.irr }
        };
        assert_eq!(requests(), 0);
        event.raise();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while requests() == 0 {
            assert!(std::time::Instant::now() < deadline, "no edge arrived");
        }
        assert_eq!(requests(), 1 << (layout::EVENT_IRQ - 8));
    }
}
