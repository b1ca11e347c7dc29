//! Boots a kernel, with the console on standard output; the exit code tells how the guest ended.
//!
//! `cargo run -p kvmbake-vmm --example boot -- --kernel vmlinuz --initrd initrd --cmdline "console=ttyS0" --disk image`
//!
//! Every disk gets a throwaway overlay. With `--until TEXT` the guest is stopped when its console shows the text, with
//! `--until-ssh` when its SSH server answers; both print the time that took. `--debug` prints what the machine logs.

use std::error::Error;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use kvmbake_disk::{Block, OpenOptions, create_overlay, open};
use kvmbake_net::{Nat, NatConfig, NatHandle};
use kvmbake_vmm::boot::KernelImage;
use kvmbake_vmm::virtio::{BlockDevice, BlockOptions, NetDevice, RngDevice};
use kvmbake_vmm::{Exit, Kernel, Machine, MachineConfig};

#[derive(Default)]
struct Arguments {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    disks: Vec<PathBuf>,
    scratch: Option<PathBuf>,
    memory: u64,
    cpus: u8,
    net: bool,
    until: Option<String>,
    until_ssh: bool,
    debug: bool,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut parsed = Arguments { memory: 1 << 30, cpus: 1, ..Arguments::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--kernel" => parsed.kernel = value()?.into(),
            "--initrd" => parsed.initrd = Some(value()?.into()),
            "--cmdline" => parsed.cmdline = value()?,
            "--disk" => parsed.disks.push(value()?.into()),
            "--scratch" => parsed.scratch = Some(value()?.into()),
            "--memory" => parsed.memory = bytes(&value()?)?,
            "--cpus" => parsed.cpus = value()?.parse()?,
            "--until" => parsed.until = Some(value()?),
            "--until-ssh" => (parsed.until_ssh, parsed.net) = (true, true),
            "--net" => parsed.net = true,
            "--debug" => parsed.debug = true,
            _ => return Err(format!("Unknown argument {word:?}").into()),
        }
    }
    Ok(parsed)
}

fn bytes(text: &str) -> Result<u64, Box<dyn Error>> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    Ok(digits.parse::<u64>()? << shift)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = arguments()?;
    let begin = Instant::now();
    if arguments.debug {
        tracing::subscriber::set_global_default(log::ToStandardError::new(begin))?;
    }
    let scratch =
        tempfile::tempdir_in(arguments.scratch.clone().unwrap_or_else(std::env::temp_dir))?;
    let mut machine =
        Machine::new(&MachineConfig { cpus: arguments.cpus, memory: arguments.memory })?;
    for (index, path) in arguments.disks.iter().enumerate() {
        let block = overlay(path, &scratch.path().join(format!("{index}.qcow2")))?;
        let options = BlockOptions {
            serial: format!("disk{index}"),
            queues: arguments.cpus.into(),
            read_only: false,
            on_error: None,
        };
        machine.add_virtio(Box::new(BlockDevice::new(block, options)))?;
    }
    let network = if arguments.net {
        let (nat, handle) = Nat::new(NatConfig::default())?;
        machine.add_virtio(Box::new(NetDevice::new(Box::new(nat))))?;
        Some(handle)
    } else {
        None
    };
    machine.add_virtio(Box::new(RngDevice::new()))?;
    let (seen, wanted) = mpsc::channel();
    machine.set_console(Box::new(Console {
        wanted: arguments.until.clone(),
        recent: Vec::new(),
        seen,
    }));
    let built = begin.elapsed();
    load(&mut machine, &arguments)?;
    eprintln!("[built in {built:?}, loaded at {:?}]", begin.elapsed());
    let running = machine.start()?;
    if arguments.until.is_some() {
        let handle = running.handle();
        std::thread::spawn(move || {
            if wanted.recv().is_ok() {
                eprintln!("\n[console showed it at {:?}]", begin.elapsed());
                handle.stop();
            }
        });
    }
    if let (true, Some(network)) = (arguments.until_ssh, network) {
        let handle = running.handle();
        std::thread::spawn(move || {
            let banner = await_ssh(&network);
            eprintln!("\n[SSH answered {banner:?} at {:?}]", begin.elapsed());
            handle.power_button();
        });
    }
    let exit = running.wait();
    eprintln!("\n[{exit} at {:?}; peak memory {}]", begin.elapsed(), peak_memory());
    Ok(match exit {
        Exit::Shutdown | Exit::Stopped => ExitCode::SUCCESS,
        Exit::Reset => ExitCode::from(2),
        Exit::Failed(_) => ExitCode::from(3),
    })
}

fn overlay(path: &Path, overlay: &Path) -> Result<Arc<dyn Block>, Box<dyn Error>> {
    let base = open(path, &OpenOptions::default())?;
    let len = base.len();
    Ok(create_overlay(overlay, base, len)?)
}

/// Loads the kernel, whose bytes are gone when this returns.
fn load(machine: &mut Machine, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let image = KernelImage::parse(std::fs::read(&arguments.kernel)?)?;
    let kernel = Kernel {
        image,
        initrd: arguments.initrd.as_ref().map(std::fs::read).transpose()?,
        cmdline: arguments.cmdline.clone(),
        origin: arguments.kernel.display().to_string(),
    };
    Ok(machine.load(&kernel)?)
}

/// Dials the guest's SSH port until a server greets.
fn await_ssh(network: &NatHandle) -> String {
    loop {
        if let Ok(mut stream) = network.dial(22, Duration::from_secs(2)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
            let mut banner = [0; 64];
            if let Ok(len @ 1..) = stream.read(&mut banner) {
                return String::from_utf8_lossy(&banner[..len]).trim_end().to_owned();
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}

/// Standard output, watched for a text.
struct Console {
    wanted: Option<String>,
    recent: Vec<u8>,
    seen: Sender<()>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write_all(bytes)?;
        if let Some(wanted) = &self.wanted {
            self.recent.extend_from_slice(bytes);
            if self.recent.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
                let _ = self.seen.send(());
                self.wanted = None;
            } else {
                let keep = self.recent.len().saturating_sub(wanted.len());
                self.recent.drain(..keep);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

mod log {
    //! A subscriber that prints debug events, one a line.

    use std::fmt::{Debug, Write};
    use std::time::Instant;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    pub struct ToStandardError {
        begin: Instant,
        level: Level,
    }

    impl ToStandardError {
        pub fn new(begin: Instant) -> Self {
            let trace = std::env::var_os("TRACE").is_some();
            Self { begin, level: if trace { Level::TRACE } else { Level::DEBUG } }
        }
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            let _ = match field.name() {
                "message" => write!(self.0, "{value:?} "),
                name => write!(self.0, "{name}={value:?} "),
            };
        }
    }

    impl Subscriber for ToStandardError {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= self.level && metadata.target().starts_with("kvmbake")
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            eprintln!("[{:?} {}] {}", self.begin.elapsed(), event.metadata().target(), line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }
}
