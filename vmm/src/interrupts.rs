//! Interrupts into the guest and doorbells out of it, both without a trip through a vCPU thread.
//!
//! [`MsiRouter`] owns the VM's whole GSI routing table: GSIs 0..24 are the PIC and I/O APIC pins as a PC wires them (the timer's
//! IRQ 0 reaches I/O APIC pin 2), each [`MsiVector`] takes one GSI above them and has an eventfd bound to it as irqfd.
//! KVM takes only complete tables and waits out every reader when one changes, so a table is handed over only when a
//! route that an unmasked vector uses has really changed.
//!
//! Resampled level interrupts and INTx are left out: the only level line of the machine (the SCI) is an [`InterruptLine`].
//! See Linux, Documentation/virt/kvm/api.rst, KVM_SET_GSI_ROUTING, KVM_IRQFD and KVM_IOEVENTFD.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, kvm_error};

/// Number of input pins of the I/O APIC; MSI GSIs start above them.
pub const IOAPIC_PINS: u32 = 24;

/// KVM refuses larger tables (KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: usize = 4096;

/// The message that a vector sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    address: u64,
    data: u32,
}

/// The routing table as KVM has it; slot `n` of `messages` is GSI `IOAPIC_PINS + n`.
struct Table {
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    used: bool,
    message: Option<Message>,
}

struct Inner {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

/// Hands out message-signalled interrupt vectors. Clones share one table.
#[derive(Clone)]
pub struct MsiRouter(Arc<Inner>);

impl MsiRouter {
    /// Returns a router over `vm`, whose irqchip exists, with the PIC and I/O APIC pins routed.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses the table.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, Error> {
        let inner = Inner { vm, table: Mutex::new(Table { slots: Vec::new() }) };
        inner.install(&inner.lock())?;
        Ok(Self(Arc::new(inner)))
    }

    /// Allocates a vector: a fresh eventfd bound to its own GSI, masked and without a route.
    ///
    /// # Errors
    /// [`Error::Kvm`] when GSIs or file descriptors run out.
    pub fn allocate(&self) -> Result<MsiVector, Error> {
        let eventfd = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|source| Error::Kvm { operation: "eventfd", source })?;
        let mut table = self.0.lock();
        let free = Slot { used: true, message: None };
        let index = match table.slots.iter().position(|slot| !slot.used) {
            Some(index) => index,
            None if base_routes().len() + table.slots.len() < MAX_ROUTES => {
                table.slots.push(free);
                table.slots.len() - 1
            }
            None => {
                let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
                return Err(Error::Kvm { operation: "allocating a GSI", source });
            }
        };
        let gsi = IOAPIC_PINS + index as u32;
        self.0.vm.register_irqfd(&eventfd, gsi).map_err(kvm_error("KVM_IRQFD"))?;
        table.slots[index] = free;
        drop(table);
        let state = Mutex::new(VectorState { wanted: None });
        Ok(MsiVector {
            router: self.0.clone(),
            index,
            eventfd,
            masked: AtomicBool::new(true),
            pending: AtomicBool::new(false),
            signalled: AtomicBool::new(false),
            state,
        })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_message(&self, index: usize, message: Option<Message>) -> Result<(), Error> {
        let mut table = self.lock();
        if table.slots[index].message == message {
            return Ok(());
        }
        table.slots[index].message = message;
        self.install(&table)
    }

    fn install(&self, table: &Table) -> Result<(), Error> {
        let mut entries = base_routes();
        for (gsi, slot) in (IOAPIC_PINS..).zip(&table.slots) {
            if let Some(message) = slot.message {
                entries.push(msi_entry(gsi, message));
            }
        }
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::Kvm {
            operation: "building the GSI routing table",
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        })?;
        self.vm.set_gsi_routing(&routing).map_err(kvm_error("KVM_SET_GSI_ROUTING"))
    }
}

/// Returns the pins of the PICs and the I/O APIC: legacy IRQs reach both, IRQ 0 arrives at I/O APIC pin 2, and the cascade
/// (IRQ 2) nowhere but in the PIC.
fn base_routes() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::with_capacity(64);
    for gsi in 0..16 {
        let (chip, pin) =
            if gsi < 8 { (KVM_IRQCHIP_PIC_MASTER, gsi) } else { (KVM_IRQCHIP_PIC_SLAVE, gsi - 8) };
        entries.push(pin_entry(gsi, chip, pin));
    }
    for gsi in (0..IOAPIC_PINS).filter(|&gsi| gsi != 2) {
        entries.push(pin_entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    }
    entries
}

fn pin_entry(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

struct VectorState {
    wanted: Option<Message>,
}

/// One message-signalled interrupt. Starts masked; frees its GSI when dropped.
pub struct MsiVector {
    router: Arc<Inner>,
    index: usize,
    eventfd: EventFd,
    masked: AtomicBool,
    pending: AtomicBool,
    /// The eventfd was written to since the vector was last known to be settled.
    signalled: AtomicBool,
    state: Mutex<VectorState>,
}

impl MsiVector {
    /// Raises the interrupt, or latches it while the vector is masked. Never blocks; may be called from any thread.
    pub fn trigger(&self) {
        if self.masked.load(SeqCst) {
            self.pending.store(true, SeqCst);
            // The mask may have gone between the two: whoever takes the latch delivers.
            if self.masked.load(SeqCst) || !self.pending.swap(false, SeqCst) {
                return;
            }
        }
        self.signal();
    }

    /// Waits until every interrupt raised so far has reached the guest's local APICs.
    ///
    /// KVM delivers an irqfd from a kernel thread where it cannot do so at once, and only its removal waits for that thread.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses to bind the eventfd again.
    pub fn settle(&self) -> Result<(), Error> {
        if !self.signalled.swap(false, SeqCst) {
            return Ok(());
        }
        let gsi = IOAPIC_PINS + self.index as u32;
        self.router.vm.unregister_irqfd(&self.eventfd, gsi).map_err(kvm_error("KVM_IRQFD"))?;
        // A signal between the two is not lost: the binding looks at the counter.
        self.router.vm.register_irqfd(&self.eventfd, gsi).map_err(kvm_error("KVM_IRQFD"))
    }

    fn signal(&self) {
        self.signalled.store(true, SeqCst);
        // Fails only when the counter is full, and then the interrupt is already on its way.
        let _ = self.eventfd.write(1);
    }

    /// Returns the irqfd itself. A write to it bypasses the mask: prefer [`MsiVector::trigger`].
    pub fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// Sets the message. It reaches KVM at once on an unmasked vector, else with the unmasking.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses the table, for instance because of a malformed message.
    pub fn set_route(&self, address: u64, data: u32) -> Result<(), Error> {
        let message = Message { address, data };
        self.state().wanted = Some(message);
        if self.masked.load(SeqCst) {
            Ok(())
        } else {
            self.router.set_message(self.index, Some(message))
        }
    }

    /// Masks or unmasks the vector. Unmasking installs the route and delivers what was latched.
    ///
    /// A route that KVM refuses leaves the vector without effect: the guest wrote nonsense, and its interrupt is lost.
    pub fn set_masked(&self, masked: bool) {
        if masked {
            self.masked.store(true, SeqCst);
            return;
        }
        let wanted = self.state().wanted;
        if let Err(error) = self.router.set_message(self.index, wanted) {
            tracing::warn!(gsi = IOAPIC_PINS + self.index as u32, %error, "guest set an impossible MSI route");
        }
        self.masked.store(false, SeqCst);
        if self.pending.swap(false, SeqCst) {
            self.signal();
        }
    }

    /// Returns whether an interrupt is latched behind the mask (the pending bit of the MSI-X PBA).
    pub fn is_pending(&self) -> bool {
        self.pending.load(SeqCst)
    }

    /// Returns whether the vector is masked.
    pub fn is_masked(&self) -> bool {
        self.masked.load(SeqCst)
    }

    /// Back to the state after allocation: masked, nothing latched, no route wanted.
    pub fn reset(&self) {
        self.masked.store(true, SeqCst);
        self.pending.store(false, SeqCst);
        self.state().wanted = None;
    }

    fn state(&self) -> MutexGuard<'_, VectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        let mut table = self.router.lock();
        let _ = self.router.vm.unregister_irqfd(&self.eventfd, IOAPIC_PINS + self.index as u32);
        // The stale route goes with the next table: without an irqfd nothing can use it.
        table.slots[self.index] = Slot { used: false, message: None };
    }
}

/// Binds guest stores to eventfds (ioeventfd), so that a doorbell write never leaves the kernel. Clones share the VM.
#[derive(Clone)]
pub struct Doorbells {
    vm: Arc<VmFd>,
}

impl Doorbells {
    /// Returns the doorbells of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    /// Signals `eventfd` on every store to `guest_address`, whatever its length and value.
    ///
    /// # Errors
    /// [`Error::Kvm`], among others with EEXIST when the address has a doorbell already.
    pub fn add(&self, eventfd: &EventFd, guest_address: u64) -> Result<(), Error> {
        let address = IoEventAddress::Mmio(guest_address);
        self.vm.register_ioevent(eventfd, &address, NoDatamatch).map_err(kvm_error("KVM_IOEVENTFD"))
    }

    /// Undoes [`Doorbells::add`] with the same arguments.
    ///
    /// # Errors
    /// [`Error::Kvm`] with ENOENT when there is no such doorbell.
    pub fn remove(&self, eventfd: &EventFd, guest_address: u64) -> Result<(), Error> {
        let address = IoEventAddress::Mmio(guest_address);
        self.vm
            .unregister_ioevent(eventfd, &address, NoDatamatch)
            .map_err(kvm_error("KVM_IOEVENTFD"))
    }
}

/// An interrupt pin, driven by its device.
pub struct InterruptLine {
    vm: Arc<VmFd>,
    gsi: u32,
    high: bool,
}

impl InterruptLine {
    /// Returns the line to pin `gsi`, low.
    pub fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi, high: false }
    }

    /// Drives the line; KVM is called only when the level changes.
    pub fn set(&mut self, high: bool) {
        if self.high != high && self.vm.set_irq_line(self.gsi, high).is_ok() {
            self.high = high;
        }
    }

    /// Raises one edge on a pin that is low. The interrupt controllers have it when the call returns.
    pub fn pulse(&mut self) {
        self.set(true);
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> MsiRouter {
        let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm must be usable for this test");
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        MsiRouter::new(vm).unwrap()
    }

    #[test]
    fn masked_vector_latches_and_delivers_on_unmask() {
        let vector = router().allocate().unwrap();
        vector.set_route(0xfee0_0000, 0x41).unwrap();
        vector.trigger();
        assert!(vector.is_pending());
        vector.set_masked(false);
        assert!(!vector.is_pending());
        vector.trigger();
        assert!(!vector.is_pending());
    }

    #[test]
    fn settled_vector_still_delivers() {
        let vector = router().allocate().unwrap();
        vector.set_route(0xfee0_0000, 0x41).unwrap();
        vector.settle().unwrap();
        vector.set_masked(false);
        vector.trigger();
        assert!(vector.signalled.load(SeqCst));
        vector.settle().unwrap();
        assert!(!vector.signalled.load(SeqCst));
        vector.trigger();
        assert!(vector.signalled.load(SeqCst) && !vector.is_pending());
    }

    #[test]
    fn gsis_are_reused_after_drop() {
        let router = router();
        let first = router.allocate().unwrap();
        let second = router.allocate().unwrap();
        assert_eq!((first.index, second.index), (0, 1));
        drop(first);
        assert_eq!(router.allocate().unwrap().index, 0);
    }

    #[test]
    fn table_changes_only_with_the_route() {
        let router = router();
        let vector = router.allocate().unwrap();
        vector.set_route(0xfee0_0000, 0x41).unwrap();
        assert_eq!(
            router.0.lock().slots[0].message,
            None,
            "a masked vector's route stays out of the table"
        );
        vector.set_masked(false);
        assert_eq!(
            router.0.lock().slots[0].message,
            Some(Message { address: 0xfee0_0000, data: 0x41 })
        );
    }

    #[test]
    fn timer_reaches_ioapic_pin_two() {
        let routes = base_routes();
        // SAFETY: every entry of the base table is an irqchip route.
        let ioapic = |entry: &&kvm_irq_routing_entry| unsafe { entry.u.irqchip.irqchip } == KVM_IRQCHIP_IOAPIC;
        let timer = routes.iter().filter(ioapic).find(|entry| entry.gsi == 0).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { timer.u.irqchip.pin }, 2);
        assert!(!routes.iter().filter(ioapic).any(|entry| entry.gsi == 2));
    }
}
