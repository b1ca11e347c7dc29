//! Attaches the NAT to a TAP device, so that Linux's own stack is the guest.
//!
//! ```text
//! ip netns add guest
//! cargo run --release -p kvmbake-net --example tap -- --netns /run/netns/guest &
//! ip netns exec guest ip link set tap0 up address 52:54:00:12:34:56
//! ip netns exec guest ip addr add 10.0.2.15/24 dev tap0
//! ip netns exec guest ip route add default via 10.0.2.2
//! ip netns exec guest curl http://192.0.2.1/
//! ```
//!
//! Runs until its standard input ends, then says what has been going on.

mod device;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use device::Tap;
use kvmbake_net::{Forward, Nat, NatConfig, NatHandle, Resolvers, Target};

const USAGE: &str = "Usage: tap [--name NAME] [--netns PATH] [--mtu N] [--no-offload] \
                     [--host-loopback] [--resolver ADDRESS:PORT]... \
                     [--forward ADDRESS:PORT=UNIX-SOCKET]...";

struct Options {
    name: String,
    netns: Option<PathBuf>,
    offloads: bool,
    config: NatConfig,
}

fn options() -> Option<Options> {
    let mut options =
        Options { name: "tap0".into(), netns: None, offloads: true, config: NatConfig::default() };
    let mut resolvers = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--no-offload" => options.offloads = false,
            "--host-loopback" => options.config.host_loopback = true,
            "--name" => options.name = arguments.next()?,
            "--netns" => options.netns = Some(arguments.next()?.into()),
            "--mtu" => options.config.mtu = arguments.next()?.parse().ok()?,
            "--resolver" => resolvers.push(arguments.next()?.parse().ok()?),
            "--forward" => {
                let argument = arguments.next()?;
                let (address, path) = argument.split_once('=')?;
                let SocketAddr::V4(address) = address.parse().ok()? else {
                    return None;
                };
                options.config.forwards.push(Forward {
                    address: *address.ip(),
                    port: address.port(),
                    target: Target::Socket(path.into()),
                });
            }
            _ => return None,
        }
    }
    if !resolvers.is_empty() {
        options.config.resolvers = Resolvers::Fixed(resolvers);
    }
    Some(options)
}

/// Makes the device in another namespace and comes back with it.
fn open_in(netns: &Path, name: &str, offloads: bool) -> io::Result<Tap> {
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            device::enter_netns(netns)?;
            Tap::open(name, offloads)
        });
        opened.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

fn run(options: Options) -> io::Result<NatHandle> {
    let tap = match &options.netns {
        Some(netns) => open_in(netns, &options.name, options.offloads)?,
        None => Tap::open(&options.name, options.offloads)?,
    };
    let (mut nat, handle) = Nat::new(options.config)?;
    tap.run(&mut nat, io::stdin().as_fd())?;
    Ok(handle)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(options) {
        Ok(handle) => {
            println!("{:#?}", handle.activity());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tap: {error}");
            ExitCode::FAILURE
        }
    }
}
