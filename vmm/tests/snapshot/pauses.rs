//! What a pause meets: accesses under way, interrupts and input that nobody has taken yet, machines that end.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvmbake_vmm::bus::{Action, BusDevice};
use kvmbake_vmm::memory;
use kvmbake_vmm::{Error, Exit, Handle, Machine, MachineConfig, MachineState, Paused};

use super::harness::{DEADLINE, Guest, LOAD_ADDRESS, Started};
use super::{Kind, ram, restored, tiny_guests, unrestored};

/// Saves the guest of `started`, which has one vCPU and no devices of its own, and goes on with it in another machine.
fn moved(started: Started, while_paused: impl FnOnce(&Handle)) -> Started {
    let handle = started.running.handle();
    let paused = handle.pause().unwrap();
    while_paused(&handle);
    let (state, ram) = (paused.state().unwrap().to_bytes(), ram(&paused));
    drop(paused);
    assert_eq!(started.end().0, Exit::Stopped);
    restored(Kind::Compute, &state, &ram).start()
}

fn tiny(code: &[u8]) -> Started {
    let machine = Machine::new(&Kind::Compute.config()).expect("a usable /dev/kvm");
    let mut guest = Guest::around(machine);
    guest.load(&[(LOAD_ADDRESS, code)]);
    guest.start()
}

#[test]
fn level_interrupt_is_held_across_a_restore() {
    let started = tiny(tiny_guests::POWER_BUTTON);
    started.expect("R");
    // The guest halts with the SCI enabled; the press comes when no vCPU runs.
    let started = moved(started, Handle::power_button);
    assert_eq!(started.end(), (Exit::Shutdown, "\u{1}".to_owned()));
}

/// `r` or `w`, whether at a port, and the bytes.
type Access = (char, bool, Vec<u8>);

/// A device that takes so long over each access that the test can pause the machine meanwhile, and that notes them.
#[derive(Clone)]
struct Lingering {
    port: bool,
    seen: Arc<Mutex<Vec<Access>>>,
    entered: Sender<()>,
}

impl Lingering {
    fn note(&self, access: char, data: &[u8]) {
        self.seen.lock().unwrap().push((access, self.port, data.to_vec()));
        let _ = self.entered.send(());
        // A pause that comes later finds nothing to finish, and the test is only weaker.
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl BusDevice for Lingering {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes()[..data.len()]);
        self.note('r', data);
    }
    fn write(&mut self, _: u64, data: &[u8]) -> Action {
        self.note('w', data);
        Action::None
    }
}

#[test]
fn access_under_way_is_finished_and_not_repeated() {
    let (entered, accesses) = mpsc::channel();
    let port = Lingering { port: true, seen: Arc::default(), entered };
    let add = |machine: &mut Machine| {
        machine.add_port_device(0x510, 4, port.clone()).unwrap();
        machine
            .add_memory_device(0xe800_1000, 0x1000, Lingering { port: false, ..port.clone() })
            .unwrap();
    };
    let mut guest = Guest::around(Machine::new(&Kind::Compute.config()).unwrap());
    guest.load(&[(LOAD_ADDRESS, tiny_guests::ROUND_TRIP)]);
    add(&mut guest.machine);
    let mut started = guest.start();
    for _ in 0..4 {
        accesses.recv_timeout(DEADLINE).unwrap();
        let paused = started.running.handle().pause().unwrap();
        let (state, ram) = (paused.state().unwrap().to_bytes(), ram(&paused));
        drop(paused);
        assert_eq!(started.end().0, Exit::Stopped);
        let mut guest = unrestored(Kind::Compute, &ram);
        add(&mut guest.machine);
        guest.machine.restore(&MachineState::from_bytes(&state).unwrap()).unwrap();
        started = guest.start();
    }
    assert_eq!(started.end().0, Exit::Shutdown);
    let value = |value: u64, len: usize| value.to_le_bytes()[..len].to_vec();
    let expected = [
        ('r', true, value(0x5566_7788, 4)),
        ('w', false, value(0x5566_7789, 4)),
        ('r', false, value(0x1122_3344_5566_7788, 8)),
        ('w', true, value(0x1122_3344, 4)),
    ];
    assert_eq!(*port.seen.lock().unwrap(), expected);
}

#[test]
fn input_that_nobody_has_read_is_restored() {
    let started = moved(tiny(tiny_guests::ECHO), |handle| handle.console_input(b"e"));
    assert_eq!(started.end(), (Exit::Shutdown, "e".to_owned()));
}

#[test]
fn machine_that_has_ended_is_not_paused() {
    let started = tiny(tiny_guests::SERIAL_AND_OFF);
    let handle = started.running.handle();
    started.expect("Hi!");
    // The pause and the guest's way off may meet; a pause that wins lets go again.
    let ended = loop {
        match handle.pause().and_then(Paused::resume) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(ended.to_string(), "Machine does not run any more: Guest turned itself off");
    assert_eq!(started.end().0, Exit::Shutdown);
    assert!(matches!(handle.pause(), Err(Error::Ended(_))), "also when it is gone");
}

#[test]
fn paused_machine_is_paused_once_and_stops_when_let_down() {
    let started = tiny(tiny_guests::SPIN);
    let handle = started.running.handle();
    let paused = handle.pause().unwrap();
    assert!(matches!(handle.pause(), Err(Error::AlreadyPaused)));
    paused.resume().unwrap();
    drop(handle.pause().unwrap());
    assert_eq!(started.end().0, Exit::Stopped);
}

#[test]
fn machine_stopped_while_paused_says_so() {
    let started = tiny(tiny_guests::SPIN);
    let handle = started.running.handle();
    let paused = handle.pause().unwrap();
    let state = paused.state().unwrap();
    handle.stop();
    assert_eq!(started.end().0, Exit::Stopped);
    assert!(matches!(paused.state(), Err(Error::Ended(_))));
    let memory = ram(&paused);
    assert!(matches!(paused.resume(), Err(Error::Ended(_))));
    // What was saved before is good all the same.
    let started = restored(Kind::Compute, &state.to_bytes(), &memory).start();
    started.running.handle().stop();
    assert_eq!(started.end().0, Exit::Stopped);
}

#[test]
fn machine_around_other_memory_is_refused() {
    let config = Kind::Compute.config();
    let result = Machine::with_memory(&config, memory::reserve(32 << 20).unwrap());
    assert!(matches!(result, Err(Error::Config { what: "memory", .. })));
    let mut machine = Machine::new(&MachineConfig { memory: 32 << 20, ..config }).unwrap();
    let started = tiny(tiny_guests::SPIN);
    let state = started.running.handle().pause().unwrap().state().unwrap();
    let error = machine.restore(&state).unwrap_err().to_string();
    assert_eq!(
        error,
        "Snapshot is of a machine with bytes of memory = 16777216, this one has 33554432"
    );
}
