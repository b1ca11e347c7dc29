//! The machine before it runs: building it from parts, adding devices, loading a kernel.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::acpi;
use crate::board::Board;
use crate::boot::Kernel;
use crate::bus::{Bus, BusDevice};
use crate::console::Console;
use crate::devices::acpi_pm::{self, PowerManagement};
use crate::devices::cmos::{Cmos, host_clock};
use crate::devices::i8042::I8042;
use crate::devices::reset::ResetControl;
use crate::devices::serial::Serial;
use crate::devices::vmgenid::{self, GenerationEvent};
use crate::error::{Error, kvm_error};
use crate::host;
use crate::interrupts::{Doorbells, InterruptLine, MsiRouter};
use crate::layout;
use crate::load::linux64::{self, Entry, Image};
use crate::memory::{self, GuestMemory};
use crate::pci::{PciRoot, Windows};
use crate::random;
use crate::running::{Parts, Running};
use crate::snapshot::{self, Host, MachineState};
use crate::vcpu::cpuid::{self, Topology};
use crate::vcpu::run::Vcpu;
use crate::vcpu::setup;
use crate::virtio::VirtioDevice;

/// Smallest memory: below it no distribution's kernel and initrd fit.
const MINIMUM_MEMORY: u64 = 16 << 20;
/// Largest memory: the 64-bit PCI window must stay within the 40 address bits that every host has.
const MAXIMUM_MEMORY: u64 = 960 << 30;
const PAGE: u64 = 4096;

/// How large the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs, at least 1.
    pub cpus: u8,
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
}

/// A machine that has not been started.
pub struct Machine {
    config: MachineConfig,
    ports: Bus,
    mmio: Bus,
    vcpus: Vec<Vcpu>,
    console: Arc<Console>,
    console_writer: Option<Box<dyn Write + Send>>,
    serial: Arc<Mutex<Serial>>,
    power: Arc<Mutex<PowerManagement>>,
    clock: Arc<Mutex<Cmos>>,
    entry: Option<Entry>,
    restored: bool,
    vm: Arc<VmFd>,
    host: Host,
    msrs: Vec<u32>,
    msi: MsiRouter,
    doorbells: Doorbells,
    pci: PciRoot,
    generation: GenerationEvent,
    memory: GuestMemory,
}

impl Machine {
    /// Builds the machine with its interrupt controllers, processors and fixed devices.
    ///
    /// # Errors
    /// [`Error::NoKvm`] when the host cannot run one, [`Error::Config`] when it would be too small or too large.
    pub fn new(config: &MachineConfig) -> Result<Self, Error> {
        check(config, &host::open()?)?;
        Self::with_memory(config, memory::reserve(config.memory)?)
    }

    /// As [`Machine::new`], around RAM that is there already, at the addresses of [`layout::ram`].
    ///
    /// # Errors
    /// As [`Machine::new`]; [`Error::Config`] also when the RAM is not of the configured size.
    pub fn with_memory(config: &MachineConfig, memory: GuestMemory) -> Result<Self, Error> {
        let kvm = host::open()?;
        check(config, &kvm)?;
        check_memory(config, &memory)?;
        let vm = Arc::new(host::create_vm(&kvm)?);
        set_up_platform(&vm)?;
        memory::register(&memory, &vm)?;
        let vcpus = create_vcpus(&kvm, &vm, config.cpus)?;
        let tsc_khz = vcpus.first().and_then(|vcpu| vcpu.fd.get_tsc_khz().ok());
        let host = Host::new(&kvm, &vm, tsc_khz)?;
        let msi = MsiRouter::new(vm.clone())?;
        let console = Console::new();
        let mut line = InterruptLine::new(vm.clone(), layout::COM1_IRQ);
        let serial = Serial::new(Box::new(move || line.pulse()), console.input());
        let (low, high) = layout::ram(config.memory);
        let high = high.map_or(0, |range| range.end - range.start);
        let mut sci = InterruptLine::new(vm.clone(), layout::SCI_IRQ);
        let power = PowerManagement::new(Box::new(move |high| sci.set(high)));
        let mut machine = Self {
            config: *config,
            ports: Bus::new(),
            mmio: Bus::new(),
            vcpus,
            console,
            console_writer: None,
            serial: Arc::new(Mutex::new(serial)),
            power: Arc::new(Mutex::new(power)),
            clock: Arc::new(Mutex::new(Cmos::new(host_clock(), low.end, high))),
            entry: None,
            restored: false,
            msrs: snapshot::msr_list(&kvm)?,
            host,
            msi,
            doorbells: Doorbells::new(vm.clone()),
            generation: GenerationEvent::new(&vm)?,
            vm,
            pci: PciRoot::new(Windows {
                low: layout::PCI_WINDOW_32,
                high: layout::pci_window_64(config.memory),
            }),
            memory,
        };
        machine.add_fixed_devices()?;
        machine.add_pci()?;
        Ok(machine)
    }

    /// Sends every byte that the guest writes to its first serial port to `output`, from a thread of its own.
    pub fn set_console(&mut self, output: Box<dyn Write + Send>) {
        self.console_writer = Some(output);
    }

    /// Sets the time of day that the guest's clock shows; the host's, when never called.
    pub fn set_clock(&mut self, clock: impl Fn() -> SystemTime + Send + 'static) {
        let mut cmos = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        cmos.set_clock(Box::new(clock));
    }

    /// Puts a virtio device into the next slot of the PCI bus.
    ///
    /// # Errors
    /// [`Error::Device`] when the bus is full, [`Error::Kvm`] when the host refuses interrupts or doorbells.
    pub fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let doorbells = Arc::new(self.doorbells.clone());
        self.pci.add_virtio(device, &self.memory, &self.msi, doorbells).map(|_slot| ())
    }

    /// Adds a device at the `len` ports from `base`.
    ///
    /// # Errors
    /// [`Error::Device`] when a port is taken.
    pub fn add_port_device(
        &mut self,
        base: u16,
        len: u16,
        device: impl BusDevice + 'static,
    ) -> Result<(), Error> {
        insert(&mut self.ports, base.into(), len.into(), Arc::new(Mutex::new(device)))
    }

    /// Adds a device at the `len` bytes of guest-physical addresses from `base`.
    ///
    /// # Errors
    /// [`Error::Device`] when an address is taken.
    pub fn add_memory_device(
        &mut self,
        base: u64,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), Error> {
        insert(&mut self.mmio, base, len, Arc::new(Mutex::new(device)))
    }

    /// Returns the machine's allocator of message-signalled interrupts.
    pub fn interrupts(&self) -> &MsiRouter {
        &self.msi
    }

    /// Returns the machine's doorbells.
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// Returns the guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Loads a kernel with its initrd and command line, to be entered by [`Machine::start`].
    ///
    /// # Errors
    /// [`Error::Load`] when something is malformed or does not fit.
    pub fn load(&mut self, kernel: &Kernel) -> Result<(), Error> {
        self.load_image(&Image {
            kernel: &kernel.image,
            initrd: kernel.initrd.as_deref(),
            cmdline: &kernel.cmdline,
        })
    }

    /// As [`Machine::load`], from borrowed bytes.
    ///
    /// # Errors
    /// [`Error::Load`] when something is malformed or does not fit.
    pub fn load_image(&mut self, image: &Image<'_>) -> Result<(), Error> {
        let tables =
            acpi::build(acpi::Hardware { cpus: self.config.cpus, memory: self.config.memory });
        let mut seed = [0; 32];
        random::fill(&mut seed).map_err(Error::Random)?;
        let entry = linux64::load(&self.memory, self.config.memory, image, tables.rsdp, &seed)?;
        vm_memory::Bytes::write_slice(
            &self.memory,
            &tables.bytes,
            vm_memory::GuestAddress(layout::ACPI_TABLES.start),
        )
        .map_err(|error| Error::Load(format!("the ACPI tables do not fit: {error}")))?;
        vmgenid::renew(&self.memory)?;
        self.entry = Some(entry);
        Ok(())
    }

    /// Puts a saved machine's state into this one, which must have been built like it, with its RAM: the same size, the same devices
    /// in the same order. [`Machine::start`] then goes on where it was paused.
    ///
    /// # Errors
    /// [`Error::Snapshot`] with the reason why the snapshot does not fit this host or this machine; [`Error::Kvm`] when KVM refuses
    /// something. The machine must be dropped then.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), Error> {
        state.check(&self.config, &self.host)?;
        snapshot::restore_all(&mut self.vcpus, &state.vcpus, self.host.xsave_len())?;
        state.platform.restore(&self.vm)?;
        self.ports.restore(&state.ports)?;
        self.mmio.restore(&state.mmio)?;
        self.pci.restore(&state.functions)?;
        // Two machines that go on from one snapshot must not share their random numbers.
        vmgenid::renew(&self.memory)?;
        self.restored = true;
        Ok(())
    }

    /// Starts the vCPUs.
    ///
    /// # Errors
    /// [`Error::NothingLoaded`] without a kernel or a snapshot; [`Error::Thread`] and [`Error::Kvm`] when the host refuses. What had been
    /// started is stopped again.
    pub fn start(self) -> Result<Running, Error> {
        if self.restored {
            self.pci.resume()?;
        } else {
            let entry = self.entry.ok_or(Error::NothingLoaded)?;
            if let Some(first) = self.vcpus.first() {
                setup::boot_processor(&first.fd, entry)?;
            }
        }
        let board = Board {
            config: self.config,
            vm: self.vm,
            pci: self.pci,
            console: self.console,
            msrs: self.msrs,
            xsave_len: self.host.xsave_len(),
        };
        let generation = self.restored.then_some(self.generation);
        let running = Running::start(Parts {
            ports: self.ports,
            mmio: self.mmio,
            vcpus: self.vcpus,
            memory: self.memory,
            console_writer: self.console_writer,
            serial: self.serial,
            power: self.power,
            board,
        })?;
        if let Some(generation) = generation {
            generation.raise();
        }
        Ok(running)
    }

    /// Returns the state of a machine that has not been started, as [`Paused::state`](crate::Paused::state) that of a running one.
    #[cfg(test)]
    pub(crate) fn state(&self) -> MachineState {
        let read = |vcpu| snapshot::VcpuState::read(vcpu, &self.msrs, self.host.xsave_len());
        MachineState {
            cpus: self.config.cpus,
            memory: self.config.memory,
            ports: self.ports.save(),
            mmio: self.mmio.save(),
            functions: self.pci.save(),
            platform: snapshot::PlatformState::read(&self.vm).unwrap(),
            vcpus: self.vcpus.iter().map(read).collect::<Result<_, _>>().unwrap(),
        }
    }

    fn add_fixed_devices(&mut self) -> Result<(), Error> {
        let ports = &mut self.ports;
        insert(ports, layout::COM1, 8, self.serial.clone())?;
        insert(ports, layout::CMOS, 2, self.clock.clone())?;
        insert(ports, layout::ACPI_PM, acpi_pm::LEN, self.power.clone())?;
        // Only the two ports: 0x61 between them is the speaker, which KVM serves.
        let keyboard = Arc::new(Mutex::new(I8042::default()));
        insert(ports, layout::I8042_DATA, 1, keyboard.clone())?;
        insert(
            ports,
            layout::I8042_COMMAND,
            1,
            Arc::new(Mutex::new(Shifted { device: keyboard, by: 4 })),
        )?;
        insert(ports, layout::RESET_CONTROL, 1, Arc::new(Mutex::new(ResetControl::default())))
    }

    fn add_pci(&mut self) -> Result<(), Error> {
        // A 4-byte access to the address port passes over the reset control register, which has the byte behind it.
        insert(&mut self.ports, layout::PCI_ADDRESS, 1, self.pci.address_port())?;
        insert(&mut self.ports, layout::PCI_DATA, 4, self.pci.data_port())?;
        let windows = [
            (layout::ECAM, self.pci.ecam()),
            (layout::PCI_WINDOW_32, self.pci.low_window()),
            (layout::pci_window_64(self.config.memory), self.pci.high_window()),
        ];
        for (range, device) in windows {
            insert(&mut self.mmio, range.start, range.end - range.start, device)?;
        }
        Ok(())
    }
}

/// A second window onto a device, whose offsets begin at `by`.
struct Shifted {
    device: crate::bus::SharedDevice,
    by: u64,
}

impl BusDevice for Shifted {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut device = self.device.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        device.read(offset + self.by, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> crate::bus::Action {
        let mut device = self.device.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        device.write(offset + self.by, data)
    }
}

fn insert(
    bus: &mut Bus,
    base: u64,
    len: u64,
    device: crate::bus::SharedDevice,
) -> Result<(), Error> {
    bus.insert(base, len, device).map_err(|error| Error::Device(error.to_string()))
}

fn check(config: &MachineConfig, kvm: &Kvm) -> Result<(), Error> {
    let refuse = |what, value, reason: String| Err(Error::Config { what, value, reason });
    let limit = kvm.get_max_vcpus().min(254) as u64;
    if config.cpus == 0 || u64::from(config.cpus) > limit {
        return refuse("cpus", config.cpus.into(), format!("it must be 1 to {limit}"));
    }
    if config.memory < MINIMUM_MEMORY || config.memory > MAXIMUM_MEMORY {
        let (low, high) = (MINIMUM_MEMORY >> 20, MAXIMUM_MEMORY >> 20);
        return refuse("memory", config.memory, format!("it must be {low} MiB to {high} MiB"));
    }
    if !config.memory.is_multiple_of(PAGE) {
        return refuse("memory", config.memory, "it must be a multiple of 4 KiB".to_owned());
    }
    Ok(())
}

/// Refuses RAM that is not where and as large as `config` says.
fn check_memory(config: &MachineConfig, memory: &GuestMemory) -> Result<(), Error> {
    let (low, high) = layout::ram(config.memory);
    let expected = [Some(low), high];
    let present =
        memory.iter().map(|region| region.start_addr().0..region.start_addr().0 + region.len());
    if expected.into_iter().flatten().eq(present) {
        return Ok(());
    }
    let reason = "the RAM that was given has another layout".to_owned();
    Err(Error::Config { what: "memory", value: config.memory, reason })
}

/// Gives the VM its interrupt controllers and timer, before the first vCPU.
fn set_up_platform(vm: &VmFd) -> Result<(), Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    // A guest without performance counters saves KVM their emulation; an older host keeps them, hidden by CPUID.
    if vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) as u32 & KVM_PMU_CAP_DISABLE != 0 {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = KVM_PMU_CAP_DISABLE.into();
        vm.enable_cap(&cap).map_err(kvm_error("KVM_CAP_PMU_CAPABILITY"))?;
    }
    // Without it a triple fault that waits would be missing from a snapshot.
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_TRIPLE_FAULT_EVENT,
        args: [1, 0, 0, 0],
        ..Default::default()
    };
    if vm.check_extension_raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT.into()) > 0 {
        vm.enable_cap(&cap).map_err(kvm_error("KVM_CAP_X86_TRIPLE_FAULT_EVENT"))?;
    }
    vm.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm_error("KVM_CREATE_PIT2"))
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8) -> Result<Vec<Vcpu>, Error> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let create = |index: u8| {
        let fd = vm.create_vcpu(index.into()).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        let topology = Topology { index, cpus, tsc_khz: fd.get_tsc_khz().ok(), tsc_deadline };
        let cpuid = cpuid::build(&supported, topology)?;
        setup::processor(&fd, &cpuid)?;
        Ok(Vcpu { index, fd, cpuid })
    };
    (0..cpus).map(create).collect()
}
