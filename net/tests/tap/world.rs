//! Two network namespaces with the NAT between them: Linux's own stack is the guest in one, and the
//! world in the other. Nothing leaves them.
//!
//! The namespaces live as long as the descriptors that name them, so nothing is left behind.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use kvmbake_net::{Link, Nat, NatConfig, NatHandle};

use crate::device::{Tap, enter_netns};

/// An address of the world's, from the range kept for documentation.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How long any step may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace.
pub struct Namespace {
    file: File,
}

impl Namespace {
    pub fn new() -> Namespace {
        let made = std::thread::spawn(|| {
            // SAFETY: the call changes this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                let error = io::Error::last_os_error();
                panic!("cannot make a network namespace ({error}): this test needs root");
            }
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let file = made.join().expect("a network namespace");
        let namespace = Namespace { file };
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Returns the namespace's name for `ip link set … netns`.
    pub fn target(&self) -> String {
        self.path().display().to_string()
    }

    /// Writes to one of the namespace's settings below /proc/sys/net.
    pub fn write(&self, setting: &'static str, value: &'static str) {
        self.within(move || std::fs::write(setting, value)).expect(setting);
    }

    /// Runs `f` on a thread inside the namespace; sockets made there stay there.
    pub fn enter<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        std::thread::spawn(move || {
            enter_netns(&path).expect("a thread enters a namespace");
            f()
        })
    }

    /// Runs `f` inside the namespace and waits for it.
    pub fn within<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        match self.enter(f).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program inside the namespace, whatever it returns.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().expect("nsenter runs")
    }

    /// Starts a program inside the namespace; its output is kept.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(program, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nsenter runs")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        require(program);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program).args(arguments);
        command
    }

    /// Runs a program inside the namespace, which must succeed, and returns what it says.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {text}{error}");
        text
    }
}

/// Fails with the Debian package to install when a program is missing.
fn require(program: &str) {
    let package = match program {
        "ip" => "iproute2",
        "ping" => "iputils-ping",
        "dig" => "bind9-dnsutils",
        "dhclient" => "isc-dhcp-client",
        "nghttpd" => "nghttp2-server",
        "h2load" => "nghttp2-client",
        "ssh" | "scp" => "openssh-client",
        "apt-get" => "apt",
        "dpkg-deb" => "dpkg",
        "sha256sum" => "coreutils",
        "/usr/sbin/sshd" => "openssh-server",
        other => other,
    };
    for (program, package) in [("nsenter", "util-linux"), (program, package)] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(program).exists()))
            || std::path::Path::new("/usr/sbin").join(program).exists();
        assert!(found, "{program} is missing: install Debian's package {package}");
    }
}

/// The two namespaces and the NAT between them.
pub struct World {
    pub guest: Namespace,
    pub host: Namespace,
    pub handle: NatHandle,
    stop: Option<OwnedFd>,
    nat: Option<Running>,
}

/// A thread that runs a NAT and gives back its device, and what was saved when it was stopped.
type Running = JoinHandle<io::Result<(Tap, Vec<u8>)>>;

/// What is put between a device and its NAT.
pub type Wire = Box<dyn FnOnce(Nat) -> Box<dyn Link> + Send>;

/// Runs a NAT in a namespace, for the guest that has been saved if one has.
fn start(
    host: &Namespace,
    tap: Tap,
    config: NatConfig,
    saved: Option<Vec<u8>>,
    wire: Wire,
) -> (OwnedFd, NatHandle, Running) {
    let (stop, stopped) = pipe();
    let (handles, made) = mpsc::channel();
    let nat = host.enter(move || {
        let (mut nat, handle) = Nat::new(config)?;
        if let Some(saved) = saved {
            nat.restore(&saved)?;
        }
        handles.send(handle).map_err(io::Error::other)?;
        let mut link = wire(nat);
        tap.run(&mut *link, stopped.as_fd())?;
        Ok((tap, link.save()))
    });
    (stop, made.recv().expect("the NAT starts"), nat)
}

impl World {
    /// Makes a world whose guest has its address already.
    pub fn new(config: NatConfig) -> World {
        let world = World::without_address(config, true);
        world.configure_guest();
        world
    }

    /// Makes a world whose guest has its address, with something between its device and the NAT.
    pub fn through(config: NatConfig, offloads: bool, wire: Wire) -> World {
        let world = World::made(config, offloads, wire);
        world.configure_guest();
        world
    }

    /// Makes a world whose guest has a device that is up, and nothing else.
    pub fn without_address(config: NatConfig, offloads: bool) -> World {
        World::made(config, offloads, Box::new(|nat| Box::new(nat)))
    }

    fn made(config: NatConfig, offloads: bool, wire: Wire) -> World {
        let guest = Namespace::new();
        let host = Namespace::new();
        let address = format!("{WORLD}/32");
        host.run("ip", &["addr", "add", &address, "dev", "lo"]);
        let mac = config.guest_mac.map(|byte| format!("{byte:02x}")).join(":");
        let mtu = config.mtu.to_string();
        let tap = guest
            .within(move || Tap::open("tap0", offloads))
            .unwrap_or_else(|error| panic!("cannot make a TAP device: {error}"));
        let link = ["link", "set", "tap0", "up", "address", &mac, "mtu", &mtu];
        guest.run("ip", &link);
        let (stop, handle, nat) = start(&host, tap, config, None, wire);
        World { guest, host, handle, stop: Some(stop), nat: Some(nat) }
    }

    /// Stops the NAT, and puts a new one that has been restored from it in its place.
    pub fn replace(&mut self, config: NatConfig) {
        drop(self.stop.take());
        let nat = self.nat.take().expect("a NAT runs").join();
        let (tap, saved) = nat.expect("the NAT does not panic").expect("the NAT runs");
        let (stop, handle, nat) =
            start(&self.host, tap, config, Some(saved), Box::new(|nat| Box::new(nat)));
        (self.stop, self.handle, self.nat) = (Some(stop), handle, Some(nat));
    }

    /// Gives the guest its address and route by hand.
    pub fn configure_guest(&self) {
        self.guest.run("ip", &["addr", "add", "10.0.2.15/24", "dev", "tap0"]);
        self.guest.run("ip", &["route", "add", "default", "via", "10.0.2.2"]);
    }

    /// Lets everybody in the world have ping sockets (icmp(7)).
    pub fn allow_pings(&self) {
        self.host.write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }

    /// Runs a server in the world, on a port of its own, and returns its address.
    pub fn serve(
        &self,
        address: Ipv4Addr,
        f: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> SocketAddr {
        self.serve_at((address, 0).into(), f)
    }

    /// Runs a server in the world; `f` has a thread for each connection.
    pub fn serve_at(
        &self,
        address: SocketAddr,
        f: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener =
            self.host.within(move || TcpListener::bind(address)).expect("a listener in the world");
        let bound = listener.local_addr().unwrap();
        let f = Arc::new(f);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let f = Arc::clone(&f);
                std::thread::spawn(move || f(stream));
            }
        });
        bound
    }

    /// Waits until the network's activity fulfils a condition.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&kvmbake_net::Activity) -> bool) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !condition(&self.handle.activity()) {
            let activity = self.handle.activity();
            assert!(std::time::Instant::now() < deadline, "{what}: {activity:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        let result = self.nat.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            result.unwrap().expect("the NAT does not panic").expect("the NAT runs");
        }
    }
}

/// Returns a pipe's writing and reading ends; closing the first makes the second readable.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (writer.into(), reader.into())
}
