//! What PCI functions need of the hypervisor: interrupt vectors and doorbells.
//!
//! The machine plugs in [`MsiRouter`] and [`Doorbells`]; tests plug in the fakes beside the traits.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::interrupts::{Doorbells, MsiRouter, MsiVector};

/// One message-signalled interrupt; see [`MsiVector`] for what each method promises.
pub trait MessageVector: Send + Sync {
    /// Raises the interrupt, or latches it while masked. Never blocks.
    fn trigger(&self);
    /// Sets the message that the guest has programmed.
    fn set_route(&self, address: u64, data: u32);
    /// Masks or unmasks; unmasking delivers what was latched.
    fn set_masked(&self, masked: bool);
    /// Returns whether an interrupt is latched behind the mask.
    fn is_pending(&self) -> bool;
    /// Back to masked, nothing latched, no message.
    fn reset(&self);
    /// Waits until what was raised so far has reached the guest's processors.
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses.
    fn settle(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl MessageVector for MsiVector {
    fn trigger(&self) {
        self.trigger();
    }

    fn set_route(&self, address: u64, data: u32) {
        if let Err(error) = self.set_route(address, data) {
            tracing::debug!(address, data, %error, "guest set an impossible MSI route");
        }
    }

    fn set_masked(&self, masked: bool) {
        self.set_masked(masked);
    }

    fn is_pending(&self) -> bool {
        self.is_pending()
    }

    fn reset(&self) {
        self.reset();
    }

    fn settle(&self) -> Result<(), Error> {
        self.settle()
    }
}

/// Where vectors come from.
pub trait VectorSource: Send {
    /// Allocates a vector, masked and without a message.
    ///
    /// # Errors
    /// [`Error::Kvm`] when GSIs or file descriptors run out.
    fn allocate(&self) -> Result<Arc<dyn MessageVector>, Error>;
}

impl VectorSource for MsiRouter {
    fn allocate(&self) -> Result<Arc<dyn MessageVector>, Error> {
        Ok(Arc::new(self.allocate()?))
    }
}

/// Binds guest stores to eventfds.
pub trait DoorbellBus: Send + Sync {
    /// Signals `eventfd` on every store to `address`; see [`Doorbells::add`].
    ///
    /// # Errors
    /// [`Error::Kvm`] when KVM refuses; the store then reaches the function as a plain write.
    fn add(&self, eventfd: &EventFd, address: u64) -> Result<(), Error>;
    /// Undoes [`DoorbellBus::add`] with the same arguments.
    ///
    /// # Errors
    /// [`Error::Kvm`] when there is no such doorbell.
    fn remove(&self, eventfd: &EventFd, address: u64) -> Result<(), Error>;
}

impl DoorbellBus for Doorbells {
    fn add(&self, eventfd: &EventFd, address: u64) -> Result<(), Error> {
        self.add(eventfd, address)
    }

    fn remove(&self, eventfd: &EventFd, address: u64) -> Result<(), Error> {
        self.remove(eventfd, address)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! Wiring that remembers what was done to it.

    use std::collections::BTreeSet;
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct VectorState {
        pub masked: bool,
        pub pending: bool,
        pub route: Option<(u64, u32)>,
        pub delivered: u64,
    }

    /// A vector that counts its deliveries.
    pub struct FakeVector {
        state: Mutex<VectorState>,
        changed: Condvar,
    }

    impl Default for FakeVector {
        fn default() -> Self {
            let state = VectorState { masked: true, ..VectorState::default() };
            Self { state: Mutex::new(state), changed: Condvar::new() }
        }
    }

    impl FakeVector {
        pub fn unmasked() -> Arc<Self> {
            let vector = Self::default();
            vector.set_masked(false);
            Arc::new(vector)
        }

        pub fn state(&self) -> VectorState {
            *self.state.lock().unwrap()
        }

        /// Waits until the vector was delivered more than `seen` times and returns how often.
        pub fn wait_beyond(&self, seen: u64) -> u64 {
            let state = self.state.lock().unwrap();
            let limit = Duration::from_secs(20);
            let (state, timeout) =
                self.changed.wait_timeout_while(state, limit, |s| s.delivered <= seen).unwrap();
            assert!(!timeout.timed_out(), "no interrupt within {limit:?} after {seen}");
            state.delivered
        }
    }

    impl MessageVector for FakeVector {
        fn trigger(&self) {
            let mut state = self.state.lock().unwrap();
            if state.masked {
                state.pending = true;
            } else {
                state.delivered += 1;
                self.changed.notify_all();
            }
        }

        fn set_route(&self, address: u64, data: u32) {
            self.state.lock().unwrap().route = Some((address, data));
        }

        fn set_masked(&self, masked: bool) {
            let mut state = self.state.lock().unwrap();
            state.masked = masked;
            if !masked && std::mem::take(&mut state.pending) {
                state.delivered += 1;
                self.changed.notify_all();
            }
        }

        fn is_pending(&self) -> bool {
            self.state().pending
        }

        fn reset(&self) {
            let mut state = self.state.lock().unwrap();
            *state =
                VectorState { masked: true, delivered: state.delivered, ..VectorState::default() };
        }
    }

    /// Hands out [`FakeVector`]s and keeps them for the test.
    #[derive(Clone, Default)]
    pub struct FakeVectors(pub Arc<Mutex<Vec<Arc<FakeVector>>>>);

    impl FakeVectors {
        pub fn get(&self, index: usize) -> Arc<FakeVector> {
            self.0.lock().unwrap()[index].clone()
        }
    }

    impl VectorSource for FakeVectors {
        fn allocate(&self) -> Result<Arc<dyn MessageVector>, Error> {
            let vector = Arc::new(FakeVector::default());
            self.0.lock().unwrap().push(vector.clone());
            Ok(vector)
        }
    }

    /// The addresses at which doorbells hang now.
    #[derive(Default)]
    pub struct FakeDoorbells(pub Mutex<BTreeSet<u64>>);

    impl DoorbellBus for FakeDoorbells {
        fn add(&self, _: &EventFd, address: u64) -> Result<(), Error> {
            assert!(self.0.lock().unwrap().insert(address), "two doorbells at {address:#x}");
            Ok(())
        }

        fn remove(&self, _: &EventFd, address: u64) -> Result<(), Error> {
            assert!(self.0.lock().unwrap().remove(&address), "no doorbell at {address:#x}");
            Ok(())
        }
    }
}
