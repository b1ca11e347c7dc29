//! The PCI function: capabilities, dispatch within the BAR, doorbells, start and reset.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{self, Common, Effect, SavedCommon};
use super::layout;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::pci::config::{Bar, ConfigSpace, Identity};
use crate::pci::msix::SavedEntry;
use crate::pci::{DoorbellBus, FunctionState, Msix, PciFunction, VectorSource};
use crate::snapshot::{RestoreError, decode, encode};
use crate::virtio::signals::Signals;
use crate::virtio::{ActivateError, Activation, VirtioDevice, Virtqueue, wait};

/// Vendor of every virtio device.
const VENDOR: u16 = 0x1af4;
/// Device number of type 0; the others follow.
const DEVICE_BASE: u16 = 0x1040;
/// A subsystem number from 0x40 tells that there is no legacy interface.
const SUBSYSTEM: u16 = 0x1100;
/// The BAR that holds everything.
const BAR: usize = 0;
/// PCI capability number for vendors.
const VENDOR_CAPABILITY: u8 = 0x09;

/// Types of virtio capabilities (VIRTIO 1.2, 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;
/// Offset of the data window in the VIRTIO_PCI_CAP_PCI_CFG capability.
const PCI_CFG_DATA: usize = 16;

/// A virtio device as a PCI function.
pub struct VirtioFunction {
    config: ConfigSpace,
    msix: Msix,
    /// Offset of the VIRTIO_PCI_CAP_PCI_CFG capability.
    pci_cfg: usize,
    common: Common,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    signals: Arc<Signals>,
    kicks: Vec<Arc<EventFd>>,
    doorbells: Arc<dyn DoorbellBus>,
    /// Where the BAR decodes, as far as the doorbells know.
    placed: Option<u64>,
    /// The addresses at which doorbells hang, with their queue.
    hung: Vec<(u64, usize)>,
    life: Life,
}

/// Whether the device serves its queues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// The driver has not started it.
    Idle,
    /// Its threads run.
    Active,
    /// Its threads have been taken back, and shall go on from where the queues are.
    Paused,
}

/// What is saved beside the configuration space.
#[derive(Serialize, Deserialize)]
struct Saved {
    active: bool,
    common: SavedCommon,
    msix: Vec<SavedEntry>,
    device: Vec<u8>,
}

impl VirtioFunction {
    /// Wraps `device`, with one interrupt vector for each queue and one for its configuration.
    ///
    /// # Errors
    /// [`Error::Kvm`] when vectors or descriptors run out.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        vectors: &dyn VectorSource,
        doorbells: Arc<dyn DoorbellBus>,
    ) -> Result<Self, Error> {
        let queues = device.queue_sizes().len();
        let vectors = (0..=queues).map(|_| vectors.allocate()).collect::<Result<Vec<_>, _>>()?;
        let kicks = (0..queues).map(|_| kick()).collect::<Result<Vec<_>, _>>()?;
        let signals = Signals::new(device.name(), queues, vectors.clone());
        let common = Common::new(device.features(), device.queue_sizes(), signals.clone());
        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.add_bar(BAR, Bar { size: layout::BAR_LEN });
        let (table, pending) = (layout::MSIX_TABLE as u32, layout::MSIX_PENDING as u32);
        let msix = Msix::new(&mut config, vectors, BAR, table, pending);
        let pci_cfg = add_capabilities(&mut config, queues);
        Ok(Self {
            config,
            msix,
            pci_cfg,
            common,
            device,
            memory,
            signals,
            kicks,
            doorbells,
            placed: None,
            hung: Vec::new(),
            life: Life::Idle,
        })
    }

    /// Moves the doorbells to where the BAR decodes now. One that cannot be bound works all the
    /// same: the store then comes here.
    fn place_doorbells(&mut self) {
        let placed = self.config.mapped(BAR).map(|range| range.start);
        if placed == self.placed {
            return;
        }
        self.placed = placed;
        for (address, queue) in self.hung.drain(..) {
            if let Err(error) = self.doorbells.remove(&self.kicks[queue], address) {
                tracing::warn!(address, %error, "a doorbell could not be taken away");
            }
        }
        let Some(base) = placed else { return };
        for (queue, kick) in self.kicks.iter().enumerate() {
            let address = base + layout::NOTIFY + queue as u64 * layout::NOTIFY_STRIDE;
            match self.doorbells.add(kick, address) {
                Ok(()) => self.hung.push((address, queue)),
                Err(error) => tracing::debug!(address, %error, "a doorbell could not be bound"),
            }
        }
    }

    fn start(&mut self) {
        if let Err(error) = self.activate() {
            self.signals.needs_reset(error);
        }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let activation = self.activation()?;
        self.device.activate(activation)?;
        self.life = Life::Active;
        Ok(())
    }

    /// Takes the device's threads back for good.
    fn deactivate(&mut self) {
        if std::mem::replace(&mut self.life, Life::Idle) == Life::Active {
            self.device.reset();
        }
    }

    fn activation(&self) -> Result<Activation, ActivateError> {
        let queue = |(index, state)| {
            let kick = self.kicks[usize::from(index)].clone();
            Virtqueue::new(index, state, self.memory.clone(), kick, self.signals.clone())
        };
        Ok(Activation {
            features: self.common.driver_features(),
            queues: self.common.enabled_queues().map(queue).collect::<Result<_, _>>()?,
            signals: self.signals.clone(),
        })
    }

    fn reset(&mut self) {
        self.deactivate();
        self.common.reset();
        self.kicks.iter().for_each(|kick| wait::clear(kick));
    }

    /// Returns the place in the BAR that the VIRTIO_PCI_CAP_PCI_CFG capability points at.
    fn pci_cfg_target(&self) -> Option<(u64, usize)> {
        let bar = self.config.u32(self.pci_cfg + 4) as u8;
        let offset = u64::from(self.config.u32(self.pci_cfg + 8));
        let len = self.config.u32(self.pci_cfg + 12) as usize;
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64);
        (usize::from(bar) == BAR && fits && offset < layout::BAR_LEN).then_some((offset, len))
    }

    fn reaches_pci_cfg_data(&self, offset: usize, len: usize) -> bool {
        let data = self.pci_cfg + PCI_CFG_DATA;
        offset < data + 4 && offset.saturating_add(len) > data
    }
}

impl PciFunction for VirtioFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if self.reaches_pci_cfg_data(offset, data.len())
            && let Some((target, len)) = self.pci_cfg_target()
        {
            let mut value = [0; 4];
            self.read_bar(BAR, target, &mut value[..len]);
            self.config.write(self.pci_cfg + PCI_CFG_DATA, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if self.reaches_pci_cfg_data(offset, data.len())
            && let Some((target, len)) = self.pci_cfg_target()
        {
            let value = self.config.u32(self.pci_cfg + PCI_CFG_DATA).to_le_bytes();
            self.write_bar(BAR, target, &value[..len]);
        }
        self.config_written();
    }

    fn config_written(&mut self) {
        self.msix.config_written(&self.config);
        self.place_doorbells();
    }

    fn read_bar(&mut self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % layout::PAGE;
        match offset - within {
            layout::COMMON => self.common.read(within, data),
            // Without INTx no bit is ever set.
            layout::ISR | layout::NOTIFY => {}
            layout::DEVICE => self.device.read_config(within, data),
            _ if (layout::MSIX_TABLE..layout::MSIX_PENDING).contains(&offset) => {
                self.msix.read_table(offset - layout::MSIX_TABLE, data);
            }
            layout::MSIX_PENDING => self.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _: usize, offset: u64, data: &[u8]) {
        let within = offset % layout::PAGE;
        match offset - within {
            layout::COMMON => match self.common.write(within, data) {
                Effect::None => {}
                Effect::Start => self.start(),
                Effect::Reset => self.reset(),
            },
            layout::DEVICE => self.device.write_config(within, data),
            layout::NOTIFY => {
                let queue = usize::try_from(within / layout::NOTIFY_STRIDE).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(queue) {
                    // Fails only when the counter is full, and then the worker is awake.
                    let _ = kick.write(1);
                }
            }
            _ if (layout::MSIX_TABLE..layout::MSIX_PENDING).contains(&offset) => {
                self.msix.write_table(offset - layout::MSIX_TABLE, data);
            }
            _ => {}
        }
    }

    fn stop(&mut self) {
        self.deactivate();
    }

    fn pause(&mut self) -> Result<(), Error> {
        if self.life == Life::Active {
            let progress = self.device.quiesce();
            self.common.set_progress(&progress);
            self.life = Life::Paused;
        }
        self.msix.settle()
    }

    fn resume(&mut self) -> Result<(), Error> {
        if self.life != Life::Paused {
            return Ok(());
        }
        // Whatever the driver has put into the rings meanwhile is looked at when the threads begin: no kick is needed.
        match self.activate() {
            Ok(()) => Ok(()),
            Err(ActivateError::Host(error)) => {
                Err(Error::Device(format!("{} does not go on: {error}", self.signals.name())))
            }
            Err(error) => {
                self.life = Life::Idle;
                self.signals.needs_reset(error);
                Ok(())
            }
        }
    }

    fn save(&self) -> FunctionState {
        let saved = Saved {
            active: self.life != Life::Idle,
            common: self.common.save(),
            msix: self.msix.save(),
            device: self.device.save(),
        };
        FunctionState {
            name: self.signals.name().to_owned(),
            config: self.config.bytes().to_vec(),
            private: encode(&saved),
        }
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError> {
        let saved: Saved = decode(&state.private)?;
        if !self.config.restore(&state.config) {
            return Err(RestoreError::new(format!("not {}", self.signals.name())));
        }
        self.common.restore(&saved.common)?;
        self.msix.restore(&saved.msix)?;
        self.device.restore(&saved.device)?;
        self.config_written();
        self.life = if saved.active { Life::Paused } else { Life::Idle };
        Ok(())
    }
}

impl Drop for VirtioFunction {
    fn drop(&mut self) {
        self.stop();
        for (address, queue) in self.hung.drain(..) {
            let _ = self.doorbells.remove(&self.kicks[queue], address);
        }
    }
}

fn kick() -> Result<Arc<EventFd>, Error> {
    let made = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
    Ok(Arc::new(made.map_err(|source| Error::Kvm { operation: "eventfd", source })?))
}

fn identity(device_type: u32) -> Identity {
    let class = match device_type {
        VIRTIO_ID_NET => 0x02_00_00,
        VIRTIO_ID_BLOCK => 0x01_00_00,
        _ => 0x00_ff_00,
    };
    Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type as u16,
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    }
}

/// Adds the virtio capabilities and returns the offset of the one for configuration access.
fn add_capabilities(config: &mut ConfigSpace, queues: usize) -> usize {
    let notify_len = queues as u64 * layout::NOTIFY_STRIDE;
    let mut add = |kind, offset, len, extra: &[u8], writable: &[u8]| {
        let mut body = vec![0; 14];
        body[0] = 16 + extra.len() as u8;
        body[1] = kind;
        body[2] = BAR as u8;
        body[6..10].copy_from_slice(&(offset as u32).to_le_bytes());
        body[10..14].copy_from_slice(&(len as u32).to_le_bytes());
        body.extend_from_slice(extra);
        config.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    add(CAP_COMMON, layout::COMMON, common::LEN as u64, &[], &[]);
    add(CAP_ISR, layout::ISR, 4, &[], &[]);
    add(CAP_DEVICE, layout::DEVICE, layout::DEVICE_LEN, &[], &[]);
    let stride = (layout::NOTIFY_STRIDE as u32).to_le_bytes();
    add(CAP_NOTIFY, layout::NOTIFY, notify_len, &stride, &[]);
    // The driver chooses BAR, offset, length and data.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    add(CAP_PCI, 0, 0, &[0; 4], &writable)
}
