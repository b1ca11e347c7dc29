//! Guests of a few instructions on this machine's own `/dev/kvm`: each device and each way to end, seen from inside.
//!
//! They need a usable `/dev/kvm`, but no hardware virtualization behind it: emulated guests are slow, not wrong.

mod guests;
mod harness;

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use kvmbake_vmm::bus::{Action, BusDevice};
use kvmbake_vmm::{Cause, Error, Exit, Machine, MachineConfig};
use vmm_sys_util::eventfd::EventFd;

use harness::{Guest, LOAD_ADDRESS, SECOND_ADDRESS};

#[test]
fn serial_output_arrives_and_s5_shuts_down() {
    assert_eq!(Guest::new(guests::SERIAL_AND_OFF).run(), (Exit::Shutdown, "Hi!\r\n".to_owned()));
}

/// `r` or `w`, the offset, the bytes.
type Access = (char, u64, Vec<u8>);

#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<Access>>>,
}

impl BusDevice for Recorder {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.seen.lock().unwrap().push(('r', offset, vec![0; data.len()]));
        let value = if data.len() == 8 { 0x1122_3344_5566_7788u64 } else { 0x0102_03ff };
        let len = data.len();
        data.copy_from_slice(&value.to_le_bytes()[..len]);
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        self.seen.lock().unwrap().push(('w', offset, data.to_vec()));
        Action::None
    }
}

#[test]
fn port_and_memory_accesses_reach_their_devices() {
    let mut guest = Guest::new(guests::ROUND_TRIP);
    let (ports, memory) = (Recorder::default(), Recorder::default());
    guest.machine.add_port_device(0x510, 4, ports.clone()).unwrap();
    guest.machine.add_memory_device(0xe800_1000, 0x1000, memory.clone()).unwrap();
    assert_eq!(guest.run().0, Exit::Shutdown);
    let written = 0x1122_3344u32.to_le_bytes().to_vec();
    assert_eq!(*ports.seen.lock().unwrap(), [('r', 0, vec![0; 4]), ('w', 0, written)]);
    let incremented = 0x0102_0400u32.to_le_bytes().to_vec();
    assert_eq!(*memory.seen.lock().unwrap(), [('w', 0, incremented), ('r', 8, vec![0; 8])]);
}

#[test]
fn doorbell_leaves_and_interrupt_enters_without_an_exit() {
    let guest = Guest::new(guests::DOORBELL);
    let doorbell = EventFd::new(0).unwrap();
    guest.machine.doorbells().add(&doorbell, 0xe800_2000).unwrap();
    let vector = guest.machine.interrupts().allocate().unwrap();
    vector.set_route(0xfee0_0000, 0x41).unwrap();
    vector.trigger();
    let started = guest.start();
    assert_eq!(doorbell.read().unwrap(), 1);
    assert!(vector.is_pending(), "masked: latched");
    vector.set_masked(false);
    assert_eq!(started.end(), (Exit::Shutdown, "I".to_owned()));
}

#[test]
fn power_button_raises_the_sci() {
    let started = Guest::new(guests::POWER_BUTTON).start();
    started.expect("R");
    started.running.handle().power_button();
    assert_eq!(started.end(), (Exit::Shutdown, "R\u{1}".to_owned()));
}

#[test]
fn pm_timer_advances() {
    assert_eq!(Guest::new(guests::PM_TIMER).run().0, Exit::Shutdown);
}

#[test]
fn clock_shows_the_injected_time() {
    let mut guest = Guest::new(guests::CLOCK);
    // 2024-02-29 23:58:07 UTC, in binary-coded decimal on the wire; 0x29 and the like are plain ASCII.
    guest.machine.set_clock(|| UNIX_EPOCH + Duration::from_secs(1_709_251_087));
    let (exit, output) = guest.run();
    assert_eq!(
        (exit, output.as_bytes()),
        (Exit::Shutdown, &[0x20, 0x24, 0x02, 0x29, 0x23, 0x58, 0x07][..])
    );
}

#[test]
fn reset_register_and_keyboard_controller_reset() {
    assert_eq!(Guest::new(guests::RESET_CONTROL).run().0, Exit::Reset);
    assert_eq!(Guest::new(guests::RESET_KEYBOARD).run().0, Exit::Reset);
}

#[test]
fn triple_fault_is_a_failure_that_says_so() {
    let (exit, _) = Guest::new(guests::TRIPLE_FAULT).run();
    let Exit::Failed(failure) = &exit else { panic!("{exit}") };
    assert_eq!((failure.vcpu, &failure.cause), (0, &Cause::TripleFault));
    assert!(exit.to_string().starts_with("Triple fault (vCPU 0"), "{exit}");
}

#[test]
fn spinning_guest_is_stopped_from_another_thread() {
    let started = Guest::new(guests::SPIN).start();
    started.expect("S");
    let handle = started.running.handle();
    let stopper = std::thread::spawn(move || handle.stop());
    assert_eq!(started.end().0, Exit::Stopped);
    stopper.join().unwrap();
}

#[test]
fn console_input_reaches_the_guest() {
    let started = Guest::new(guests::ECHO).start();
    started.running.handle().console_input(b"e");
    assert_eq!(started.end(), (Exit::Shutdown, "e".to_owned()));
}

#[test]
fn second_processor_starts_by_init_and_sipi() {
    let segments: [(u64, &[u8]); 2] =
        [(LOAD_ADDRESS, guests::START_SECOND), (SECOND_ADDRESS, guests::SECOND)];
    assert_eq!(Guest::with_segments(2, &segments).run(), (Exit::Shutdown, "AB".to_owned()));
}

#[test]
fn panicking_device_ends_the_machine_not_the_process() {
    struct Broken;
    impl BusDevice for Broken {
        fn read(&mut self, _: u64, _: &mut [u8]) {
            panic!("out of order");
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Action {
            Action::None
        }
    }
    let mut guest = Guest::new(guests::ROUND_TRIP);
    guest.machine.add_port_device(0x510, 4, Broken).unwrap();
    let Exit::Failed(failure) = guest.run().0 else { panic!("must fail") };
    assert_eq!(failure.cause, Cause::Panicked { message: "out of order".to_owned() });
}

#[test]
fn requests_to_a_machine_that_is_gone_do_nothing() {
    let started = Guest::new(guests::SERIAL_AND_OFF).start();
    let handle = started.running.handle();
    assert_eq!(started.end().0, Exit::Shutdown);
    handle.power_button();
    handle.console_input(b"x");
    handle.stop();
}

#[test]
fn impossible_machines_are_refused() {
    let refused = |cpus, memory| {
        matches!(Machine::new(&MachineConfig { cpus, memory }), Err(Error::Config { .. }))
    };
    assert!(refused(0, 64 << 20));
    assert!(refused(255, 64 << 20));
    assert!(refused(1, 1 << 20));
    assert!(refused(1, (64 << 20) + 1));
    assert!(matches!(
        Machine::new(&MachineConfig { cpus: 1, memory: 64 << 20 }).unwrap().start(),
        Err(Error::NothingLoaded)
    ));
}
