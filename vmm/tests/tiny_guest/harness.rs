//! A machine with a tiny guest and a console that can be waited for.

use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvmbake_vmm::boot::KernelImage;
use kvmbake_vmm::{Exit, Image, Machine, MachineConfig, Running};

/// A guest that has not ended by then hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const LOAD_ADDRESS: u64 = 0x10_0000;
pub const SECOND_ADDRESS: u64 = 0x1_0000;

/// Returns an ELF64 executable that puts each code where it belongs and is entered at the first one.
pub fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let table = 64 + 56 * segments.len();
    let mut file = Vec::new();
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&2u16.to_le_bytes());
    file.extend_from_slice(&62u16.to_le_bytes());
    file.extend_from_slice(&1u32.to_le_bytes());
    for value in [segments[0].0, 64, 0] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for value in [64u16, 56, segments.len() as u16, 0, 0, 0] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    let mut offset = table as u64;
    for (address, code) in segments {
        file.extend_from_slice(&1u32.to_le_bytes());
        file.extend_from_slice(&7u32.to_le_bytes());
        let len = code.len() as u64;
        for value in [offset, *address, *address, len, len, 0x1000] {
            file.extend_from_slice(&value.to_le_bytes());
        }
        offset += len;
    }
    segments.iter().for_each(|(_, code)| file.extend_from_slice(code));
    file
}

/// A writer that hands on what it gets and keeps it.
#[derive(Clone)]
pub struct Console {
    pub written: Arc<Mutex<Vec<u8>>>,
    pub news: Sender<()>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.lock().unwrap().extend_from_slice(bytes);
        let _ = self.news.send(());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A machine with a guest in it, and its console.
pub struct Guest {
    pub machine: Machine,
    pub console: Console,
    pub news: Receiver<()>,
}

impl Guest {
    pub fn new(code: &[u8]) -> Self {
        Self::with_segments(1, &[(LOAD_ADDRESS, code)])
    }

    pub fn with_segments(cpus: u8, segments: &[(u64, &[u8])]) -> Self {
        let machine =
            Machine::new(&MachineConfig { cpus, memory: 32 << 20 }).expect("a usable /dev/kvm");
        let mut guest = Self::around(machine);
        guest.load(segments);
        guest
    }

    /// Gives `machine` a console.
    pub fn around(mut machine: Machine) -> Self {
        let (sender, news) = mpsc::channel();
        let console = Console { written: Arc::default(), news: sender };
        machine.set_console(Box::new(console.clone()));
        Self { machine, console, news }
    }

    pub fn load(&mut self, segments: &[(u64, &[u8])]) {
        let kernel = KernelImage::parse(elf(segments)).unwrap();
        let image = Image { kernel: &kernel, initrd: None, cmdline: "tiny" };
        self.machine.load_image(&image).unwrap();
    }

    pub fn start(self) -> Started {
        let running = self.machine.start().unwrap();
        Started { running, console: self.console, news: self.news }
    }

    pub fn run(self) -> (Exit, String) {
        self.start().end()
    }
}

pub struct Started {
    pub running: Running,
    pub console: Console,
    pub news: Receiver<()>,
}

impl Started {
    /// Waits until the guest has written `text`.
    pub fn expect(&self, text: &str) {
        while !self.output().contains(text) {
            self.news
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.output()));
        }
    }

    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.console.written.lock().unwrap()).into_owned()
    }

    /// Waits for the end; a guest that hangs is stopped at the deadline.
    pub fn end(self) -> (Exit, String) {
        let handle = self.running.handle();
        let (ended, watchdog) = mpsc::channel::<()>();
        let guard = std::thread::spawn(move || {
            if watchdog.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                handle.stop();
            }
        });
        let exit = self.running.wait();
        drop(ended);
        guard.join().unwrap();
        let output = self.console.written.lock().unwrap();
        (exit, String::from_utf8_lossy(&output).into_owned())
    }
}
