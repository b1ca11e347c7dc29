//! Programs that people use, through the NAT: HTTP/2, iperf3, ssh, and connections by the thousand.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kvmbake_net::{Limits, NatConfig};

use crate::world::{PATIENCE, WORLD, World};

/// A program of the world's that is ended with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program in the world and waits until it listens.
fn start(world: &World, port: u16, program: &str, arguments: &[&str]) -> Daemon {
    let daemon = Daemon(world.host.spawn(program, arguments));
    let deadline = Instant::now() + PATIENCE;
    while !world.host.within(move || listens(port)) {
        assert!(Instant::now() < deadline, "{program} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

/// Whether somebody in this thread's network listens at a TCP port. Not by calling there: some servers
/// take one who only looks for a guest.
fn listens(port: u16) -> bool {
    let table = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let (at, listening) = (format!(":{port:04X}"), "0A");
    [table("tcp"), table("tcp6")].into_iter().flatten().any(|table| {
        table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            matches!(fields[..], [_, own, _, state, ..] if own.ends_with(&at) && state == listening)
        })
    })
}

#[test]
fn http2_carries_one_file_and_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 7) as u8).collect();
    fs::write(dir.path().join("file"), &content).unwrap();
    let root = dir.path().to_str().unwrap();
    let world = World::new(NatConfig::default());
    let _server = start(&world, 8080, "nghttpd", &["--no-tls", "-d", root, "8080"]);
    let out = dir.path().join("out");
    let url = "http://192.0.2.1:8080/file";
    let options = ["-sS", "--http2-prior-knowledge", "--max-time", "30", "-w", "%{http_version}"];
    let target = ["-o", out.to_str().unwrap(), url];
    assert_eq!(world.guest.run("curl", &[&options[..], &target].concat()), "2");
    assert!(fs::read(out).unwrap() == content);
    // Two connections with ten streams each.
    let text = world.guest.run("h2load", &["-n", "40", "-c", "2", "-m", "10", url]);
    assert!(text.contains("40 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
}

#[test]
fn iperf3_measures_both_ways_with_one_stream_and_with_several() {
    let world = World::new(NatConfig::default());
    let measure = |arguments: &[&str]| {
        // A server of its own for each: between two clients it stops listening for a moment.
        let _server = start(&world, 5201, "iperf3", &["-s", "-1"]);
        let text = world.guest.run("iperf3", &[&["-c", "192.0.2.1", "-J"], arguments].concat());
        assert!(!text.contains("\"error\""), "{text}");
        text
    };
    for arguments in [&[][..], &["-R"], &["-P", "4"], &["-P", "4", "-R"]] {
        let text = measure(&[&["-n", "64M"], arguments].concat());
        assert!(text.contains("\"sum_received\""), "{text}");
    }
    measure(&["-u", "-b", "20M", "-l", "1400", "-t", "1"]);
}

#[test]
fn ssh_runs_a_command_and_scp_copies_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (host_key, key, config) = (path("host"), path("key"), path("sshd_config"));
    for file in [&host_key, &key] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", file])
            .status()
            .expect("ssh-keygen: install Debian's package openssh-client");
        assert!(made.success());
    }
    let text = format!(
        "Port 2222\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n"
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    // sshd insists on this one.
    fs::create_dir_all("/run/sshd").unwrap();
    let world = World::new(NatConfig::default());
    let _server = start(&world, 2222, "/usr/sbin/sshd", &["-D", "-e", "-f", &config]);
    let options = [
        "-i",
        &key,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=15",
    ];
    let login = ["-p", "2222", "root@192.0.2.1", "echo from $SSH_CLIENT"];
    let text = world.guest.run("ssh", &[&options[..], &login].concat());
    assert!(text.starts_with("from 192.0.2.1 "), "{text}");
    let content: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 5) as u8).collect();
    fs::write(path("here"), &content).unwrap();
    let there = format!("root@192.0.2.1:{}", path("there"));
    let (here, back) = (path("here"), path("back"));
    for (from, to) in [(&here, &there), (&there, &back)] {
        let arguments = ["-q", "-P", "2222", from, to];
        world.guest.run("scp", &[&options[..], &arguments].concat());
    }
    assert!(fs::read(back).unwrap() == content);
}

#[test]
fn apt_get_updates_from_a_mirror_and_downloads_a_package_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mirror = path("mirror");
    fs::create_dir_all(dir.path().join("probe/DEBIAN")).unwrap();
    for folder in ["mirror", "state/lists/partial", "cache/archives/partial", "etc"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let control = "Package: probe\nVersion: 7\nArchitecture: all\nMaintainer: nobody <a@b.test>\n\
                   Description: a package\n";
    fs::write(path("probe/DEBIAN/control"), control).unwrap();
    let content: Vec<u8> = (0..5 << 20).map(|at: u32| (at / 3 * 7) as u8).collect();
    fs::write(path("probe/content"), &content).unwrap();
    let world = World::new(NatConfig::default());
    let package = path("mirror/probe.deb");
    world.host.run("dpkg-deb", &["--build", "-Znone", &path("probe"), &package]);
    let length = fs::metadata(&package).unwrap().len();
    let sum = world.host.run("sha256sum", &[&package]);
    let sum = sum.split(' ').next().unwrap();
    let listed = format!("{control}Filename: ./probe.deb\nSize: {length}\nSHA256: {sum}\n");
    fs::write(path("mirror/Packages"), listed).unwrap();
    fs::write(path("list"), "deb [trusted=yes] http://192.0.2.1:8080/ ./\n").unwrap();
    let server = ["-m", "http.server", "--bind", "192.0.2.1", "--directory", &mirror, "8080"];
    let _server = start(&world, 8080, "python3", &server);
    // Nothing of this machine's own apt is read or changed but its programs.
    let options = [
        format!("Dir::State={}", path("state")),
        format!("Dir::Cache={}", path("cache")),
        format!("Dir::Etc={}", path("etc")),
        format!("Dir::Etc::sourcelist={}", path("list")),
        "Dir::State::status=/dev/null".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::http::Proxy=false".to_owned(),
    ];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    world.guest.run("apt-get", &[&options[..], &["update"]].concat());
    // apt compares the download with the list's checksum.
    let install = ["--download-only", "--yes", "install", "probe"];
    world.guest.run("apt-get", &[&options[..], &install].concat());
    let downloaded = fs::read(path("cache/archives/probe_7_all.deb")).unwrap();
    assert!(downloaded == fs::read(&package).unwrap());
}

/// Serves an echo in the world with a thread for all connections together: it answers each line.
fn echo(world: &World) -> SocketAddr {
    world.serve(WORLD, |mut stream| {
        let mut buf = [0; 64];
        while let Ok(len @ 1..) = stream.read(&mut buf) {
            if stream.write_all(&buf[..len]).is_err() {
                return;
            }
        }
    })
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Lets this process have so many descriptors as its hard limit allows.
fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer describes `limit`, which outlives both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(1 << 20);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

#[test]
fn two_thousand_connections_are_open_at_once() {
    const COUNT: usize = 2000;
    raise_descriptors();
    let limits = Limits { tcp_flows: COUNT, ..Limits::default() };
    let world = World::new(NatConfig { limits, ..NatConfig::default() });
    let server = echo(&world);
    let mut streams: Vec<TcpStream> = world.guest.within(move || {
        (0..COUNT).map(|_| TcpStream::connect_timeout(&server, PATIENCE).unwrap()).collect()
    });
    world.wait_for("all of them", |activity| activity.tcp_flows == COUNT);
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(index as u64).to_be_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut buf = [0; 8];
        stream.read_exact(&mut buf).unwrap();
        assert_eq!(u64::from_be_bytes(buf), index as u64);
    }
    drop(streams);
    world.wait_for("all flows to be removed", |activity| activity.tcp_flows == 0);
}

/// Returns the resident memory of this process in KiB (proc(5)).
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Opens, uses and closes connections one after another, in several threads.
fn churn(world: &World, server: SocketAddr, count: usize) {
    const THREADS: usize = 4;
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            world.guest.enter(move || {
                for _ in 0..count / THREADS {
                    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(b"12345678").unwrap();
                    stream.read_exact(&mut [0; 8]).unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    world.wait_for("all flows to be removed", |activity| activity.tcp_flows == 0);
}

/// Connections of [`short_connections_leave_neither_memory_nor_descriptors`]; another number in
/// `KVMBAKE_CONNECTIONS`, such as 100000.
const SHORT: usize = 4_000;

#[test]
fn short_connections_leave_neither_memory_nor_descriptors() {
    let count = std::env::var("KVMBAKE_CONNECTIONS").ok().and_then(|text| text.parse().ok());
    let count = count.unwrap_or(SHORT);
    let world = World::new(NatConfig::default());
    // Ports in TIME-WAIT are taken again (tcp(7)).
    world.guest.write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
    world.guest.write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535");
    world.host.write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535");
    let server = echo(&world);
    churn(&world, server, 500);
    let before = (resident(), open_descriptors());
    let start = Instant::now();
    churn(&world, server, count);
    let elapsed = start.elapsed();
    let after = (resident(), open_descriptors());
    let rate = count as f64 / elapsed.as_secs_f64();
    println!(
        "{count} connections in {elapsed:?} ({rate:.0}/s), KiB and descriptors {before:?} {after:?}"
    );
    // Other tests run beside this one, and hold up to a few thousand descriptors and some memory:
    // by itself it is judged more closely.
    let (memory, descriptors) = if count > SHORT { (16 << 10, 64) } else { (256 << 10, 7000) };
    assert!(after.0 < before.0 + memory, "{before:?} KiB and descriptors became {after:?}");
    assert!(after.1 < before.1 + descriptors, "{before:?} KiB and descriptors became {after:?}");
}
