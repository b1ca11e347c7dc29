//! L1 as a QEMU process: its command line, cold boot, the migration snapshot and warm resume.
//!
//! QEMU is started with the instance's folder as its working directory and only relative names for sockets, so that a
//! long cache path does not exceed what a Unix socket's address can hold. It dies with the rig's process: a thread that
//! lives as long starts it through `setpriv --pdeathsig`, for the death signal follows the thread, not the process.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts::Artifacts;
use crate::cache::last_lines;
use crate::error::{RigError, at};

/// L1's memory in MiB: two guests of 1 GiB, a tmpfs and the page cache of the images.
const MEMORY: &str = "8192";
/// Without erms the kernel does not copy with `rep movsb`, which TCG does byte by byte.
const CPU: &str = "EPYC-Rome,+svm,-erms,-smap,-smep,-clzero";
const KERNEL_LINE: &str = "console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable \
     cryptomgr.notests random.trust_cpu=on audit=0 nowatchdog net.ifnames=0 panic=-1";

/// A running L1.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    folder: PathBuf,
    /// The port of the host's loopback that leads to L1's sshd.
    pub port: u16,
}

/// Where the first instruction of an L1 comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The kernel.
    Cold,
    /// A snapshot file.
    Snapshot(&'a Path),
}

/// Returns what, besides QEMU and L1's files, a snapshot depends on.
pub(crate) fn fingerprint() -> String {
    format!("{MEMORY} {CPU} {KERNEL_LINE} {}", arguments(0).join(" "))
}

/// Returns the arguments that do not depend on where the artifacts are.
fn arguments(port: u16) -> Vec<String> {
    let mut words: Vec<String> =
        ["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", "2"]
            .iter()
            .map(ToString::to_string)
            .collect();
    let mut add = |text: &str| words.extend(text.split(' ').map(ToString::to_string));
    add(&format!("-m {MEMORY} -nodefaults -no-user-config -display none"));
    for disk in ["root", "images", "scratch"] {
        add(&format!("-device virtio-blk-pci,drive={disk}"));
    }
    add(&format!(
        "-netdev user,id=net,net=10.77.0.0/24,hostfwd=tcp:127.0.0.1:{port}-10.77.0.15:22"
    ));
    add("-device virtio-net-pci,netdev=net,romfile=");
    add(
        "-fsdev local,id=share,path=share,security_model=none -device virtio-9p-pci,fsdev=share,mount_tag=share",
    );
    add("-device virtio-rng-pci -serial file:console.log -qmp unix:qmp,server=on,wait=off");
    words
}

impl Machine {
    /// Starts L1 in `folder`, which gets `share/`, `console.log` and the sockets; does not wait for it.
    pub(crate) fn start(
        artifacts: &Artifacts,
        folder: &Path,
        start: Start<'_>,
    ) -> Result<Self, RigError> {
        fs::create_dir_all(folder.join("share")).map_err(at(folder))?;
        let port = free_port().map_err(at("127.0.0.1"))?;
        let scratch = folder.join("scratch.ext4");
        crate::cache::program_output(
            "cp",
            &[
                "--sparse=always",
                &path(&artifacts.scratch.path.join("scratch.ext4")),
                &path(&scratch),
            ],
        )?;
        let log = folder.join("qemu.log");
        let log_file = fs::File::create(&log).map_err(at(&log))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(artifacts.qemu.path.join("qemu"))
            .current_dir(folder);
        command.args(arguments(port)).arg("-kernel").arg(artifacts.l1.path.join("vmlinuz"));
        command.arg("-initrd").arg(artifacts.l1.path.join("initrd")).args(["-append", KERNEL_LINE]);
        for (id, file, options) in [
            ("root", artifacts.l1.path.join("root.ext4"), "readonly=on"),
            ("images", artifacts.images.path.join("images.ext4"), "readonly=on"),
            ("scratch", scratch, "cache=unsafe,discard=unmap"),
        ] {
            command
                .arg("-drive")
                .arg(format!("file={},format=raw,if=none,id={id},{options}", path(&file)));
        }
        if let Start::Snapshot(file) = start {
            command.arg("-incoming").arg(format!("file:{}", path(file)));
        }
        command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().map_err(at(&log))?)
            .stderr(log_file);
        let child = spawn_from_lasting_thread(command)?;
        Ok(Self { child, folder: folder.to_path_buf(), port })
    }

    /// Waits until a cold L1 says that it is ready.
    pub(crate) fn wait_ready(&mut self, limit: Duration) -> Result<(), RigError> {
        let deadline = Instant::now() + limit;
        loop {
            let console = fs::read(self.folder.join("console.log")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if console.contains("RIG-NO-KVM") {
                return Err(self.failure("no /dev/kvm in it"));
            }
            if console.contains("RIG-READY") {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failure(&format!("not ready after {} s", limit.as_secs())));
            }
            self.check_alive()?;
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails when QEMU has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), RigError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(&format!("QEMU ended with {status}"))),
            Err(error) => Err(self.failure(&error.to_string())),
        }
    }

    /// Returns an error with QEMU's messages and the console's last lines.
    pub(crate) fn failure(&self, reason: &str) -> RigError {
        let messages: Vec<String> = last_lines(&self.folder.join("qemu.log"), 50)
            .lines()
            .filter(|line| !line.contains("TCG doesn't support requested feature"))
            .map(ToString::to_string)
            .collect();
        let tail = format!(
            "{}\n{}",
            messages.join("\n"),
            last_lines(&self.folder.join("console.log"), 20)
        );
        RigError::Boot { reason: reason.into(), tail }
    }

    /// Writes L1's state to `file` and ends L1.
    pub(crate) fn save(mut self, file: &Path) -> Result<(), RigError> {
        let socket = self.folder.join("qmp");
        // Connecting through the link keeps the address short whatever the folder's path.
        let mut stream = connect(&socket).map_err(at(&socket))?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(at(&socket))?;
        let mut ask = |line: &str| -> Result<String, RigError> {
            stream.write_all(line.as_bytes()).map_err(at(&socket))?;
            read_reply(&mut stream).map_err(at(&socket))
        };
        ask("{\"execute\":\"qmp_capabilities\"}\n")?;
        ask(
            "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"max-bandwidth\":8589934592}}\n",
        )?;
        ask(&format!(
            "{{\"execute\":\"migrate\",\"arguments\":{{\"uri\":\"file:{}\"}}}}\n",
            path(file)
        ))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let reply = ask("{\"execute\":\"query-migrate\"}\n")?;
            if reply.contains("\"completed\"") {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return Ok(());
            }
            if reply.contains("\"failed\"") {
                return Err(self.failure(&format!("the snapshot failed: {reply}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(self.failure("the snapshot took more than 60 s"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Finds a port of the loopback that is free now.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Connects to a Unix socket whose path may be longer than an address: through a link in the temporary folder.
fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let link = std::env::temp_dir().join(format!("kvmbake-rig-qmp-{}", std::process::id()));
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(socket, &link)?;
    let mut result = UnixStream::connect(&link);
    for _ in 0..100 {
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        result = UnixStream::connect(&link);
    }
    let _ = fs::remove_file(&link);
    result
}

/// Reads QMP lines until one answers a command; events and the greeting are passed over.
fn read_reply(stream: &mut UnixStream) -> std::io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0u8]);
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if byte[0] != b'\n' {
            line.push(byte[0]);
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if text.starts_with("{\"return\"") || text.starts_with("{\"error\"") {
            return Ok(text);
        }
        line.clear();
    }
}

/// Spawns a command from a thread that never ends, so that its parent-death signal means the process's death.
pub(crate) fn spawn_from_lasting_thread(mut command: Command) -> Result<Child, RigError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        if send.send(command.spawn()).is_ok() {
            loop {
                thread::park();
            }
        }
    });
    let gone = || std::io::Error::other("the thread that starts it is gone");
    receive
        .recv()
        .unwrap_or_else(|_| Err(gone()))
        .map_err(|source| RigError::Program { program, source })
}
