//! DHCP, ARP, ICMP and forwards, as programs of the guest see them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvmbake_net::{DropReason, Forward, Lease, NatConfig, Service, Target};

use crate::world::World;

fn named_config() -> NatConfig {
    NatConfig {
        mtu: 1400,
        domain: Some("build.test".into()),
        hostname: Some("baker".into()),
        search: Some(vec!["build.test".into(), "example.org".into()]),
        lease: Duration::from_secs(7200),
        ..NatConfig::default()
    }
}

/// Writes a script that a DHCP client calls, which notes its environment and sets the address.
pub fn script(dir: &Path, configure: &str) -> (String, std::path::PathBuf) {
    let log = dir.join("environment");
    let path = dir.join("script");
    let text = format!("#!/bin/sh\nexport event=$1\nenv >>{}\n{configure}\n", log.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (path.to_str().unwrap().into(), log)
}

pub fn environment(log: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn busybox_udhcpc_takes_a_lease_with_every_option() {
    let dir = tempfile::tempdir().unwrap();
    let configure = "[ \"$1\" != bound ] || ip addr add $ip/$mask dev $interface";
    let (script, log) = script(dir.path(), configure);
    let world = World::without_address(named_config(), true);
    let options =
        ["-O", "mtu", "-O", "domain", "-O", "hostname", "-O", "broadcast", "-O", "search"];
    let client = ["udhcpc", "-f", "-q", "-n", "-i", "tap0", "-s", &script];
    world.guest.run("busybox", &[&client[..], &options].concat());
    let told = environment(&log);
    for (name, value) in [
        ("ip", "10.0.2.15"),
        ("mask", "24"),
        ("router", "10.0.2.2"),
        ("dns", "10.0.2.3"),
        ("serverid", "10.0.2.2"),
        ("mtu", "1400"),
        ("domain", "build.test"),
        ("search", "build.test example.org"),
        ("hostname", "baker"),
        ("broadcast", "10.0.2.255"),
        ("lease", "7200"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name}");
    }
    world.wait_for("a lease", |activity| activity.lease == Lease::Bound);
    let refused = ["-r", "192.168.7.7"];
    world.guest.run("busybox", &[&client[..], &refused].concat());
}

#[test]
fn isc_dhclient_takes_a_lease_and_releases_it() {
    let dir = tempfile::tempdir().unwrap();
    let (script, log) = script(dir.path(), "exit 0");
    let world = World::without_address(named_config(), true);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (leases, pid, config) = (file("leases"), file("pid"), file("dhclient.conf"));
    fs::write(&config, "timeout 15;\n").unwrap();
    fs::write(&leases, "").unwrap();
    let client = ["-v", "-sf", &script, "-lf", &leases, "-pf", &pid, "-cf", &config];
    world.guest.run("dhclient", &[&client[..], &["-1", "tap0"]].concat());
    let told = environment(&log);
    assert_eq!(told["new_ip_address"], "10.0.2.15");
    assert_eq!(told["new_routers"], "10.0.2.2");
    assert_eq!(told["new_domain_name_servers"], "10.0.2.3");
    assert_eq!(told["new_domain_search"], "build.test. example.org.");
    world.wait_for("a lease", |activity| activity.lease == Lease::Bound);
    world.guest.run("dhclient", &[&client[..], &["-x", "tap0"]].concat());
}

#[test]
fn busybox_udhcpc_renews_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let configure = "[ \"$1\" != bound ] || ip addr add $ip/$mask dev $interface";
    let (script, log) = script(dir.path(), configure);
    let world = World::without_address(named_config(), true);
    let mut client =
        world.guest.spawn("busybox", &["udhcpc", "-f", "-n", "-i", "tap0", "-s", &script]);
    world.wait_for("a lease", |activity| activity.lease == Lease::Bound);
    let said = |event: &str| {
        let told = fs::read_to_string(&log).unwrap_or_default();
        told.contains(&format!("event={event}\n"))
    };
    world.wait_for("the client to be bound", |_| said("bound"));
    let frames = world.handle.activity().frames_to_guest;
    // nsenter becomes the program it runs. The signal asks for a renewal (udhcpc's usage text).
    world.guest.run("kill", &["-USR1", &client.id().to_string()]);
    world.wait_for("the client to have renewed", |_| said("renew"));
    assert!(world.handle.activity().frames_to_guest > frames);
    assert_eq!(world.handle.activity().lease, Lease::Bound);
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn isc_dhclient_that_remembers_another_network_is_refused_and_asks_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (script, log) = script(dir.path(), "exit 0");
    let world = World::without_address(named_config(), true);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (leases, pid, config) = (file("leases"), file("pid"), file("dhclient.conf"));
    fs::write(&config, "timeout 15;\n").unwrap();
    let remembered = "lease {\n  interface \"tap0\";\n  fixed-address 192.168.7.7;\n  \
                      option subnet-mask 255.255.255.0;\n  renew 1 2037/01/05 00:00:00;\n  \
                      rebind 1 2037/01/05 00:00:00;\n  expire 1 2037/01/05 00:00:00;\n}\n";
    fs::write(&leases, remembered).unwrap();
    let client = ["-v", "-sf", &script, "-lf", &leases, "-pf", &pid, "-cf", &config];
    let output = world.guest.output("dhclient", &[&client[..], &["-1", "tap0"]].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("DHCPREQUEST for 192.168.7.7"), "{text}");
    assert!(text.contains("DHCPNAK from 10.0.2.2"), "{text}");
    assert_eq!(environment(&log)["new_ip_address"], "10.0.2.15");
    world.guest.run("dhclient", &[&client[..], &["-x", "tap0"]].concat());
}

#[test]
fn the_network_s_own_addresses_answer_pings_and_nobody_else_does() {
    let world = World::new(NatConfig::default());
    for address in ["10.0.2.2", "10.0.2.3"] {
        let ping = ["-c", "3", "-i", "0.01", "-W", "5", "-s", "1400", address];
        assert!(world.guest.run("ping", &ping).contains(" 0% packet loss"));
    }
    let output = world.guest.output("ping", &["-c", "1", "-W", "1", "10.0.2.77"]);
    assert!(!output.status.success(), "nobody answers");
}

/// Answers each connection with a page, and hands over what it was asked.
struct Page(&'static str);

impl Service for Page {
    fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let body = self.0;
        std::thread::spawn(move || {
            let mut request = [0; 4096];
            let _ = (&ours).read(&mut request);
            let _ =
                write!(&ours, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        });
        Ok(theirs)
    }
}

/// Refuses every connection.
struct Shut;

impl Service for Shut {
    fn connect(&self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

#[test]
fn forwards_are_answered_by_their_services() {
    let address = Ipv4Addr::new(10, 0, 2, 100);
    let forward = |port, target: Arc<dyn Service>| {
        let target = Target::Service(target);
        Forward { address, port, target }
    };
    let world = World::new(NatConfig {
        forwards: vec![
            forward(80, Arc::new(Page("bootstrap"))),
            forward(81, Arc::new(Page("another"))),
            forward(82, Arc::new(Shut)),
        ],
        ..NatConfig::default()
    });
    let curl = ["--silent", "--show-error", "--max-time", "20"];
    for (url, body) in [("http://10.0.2.100/", "bootstrap"), ("http://10.0.2.100:81/", "another")] {
        assert_eq!(world.guest.run("curl", &[&curl[..], &[url]].concat()), body);
    }
    for url in ["http://10.0.2.100:82/", "http://10.0.2.100:83/"] {
        let output = world.guest.output("curl", &[&curl[..], &[url]].concat());
        assert_eq!(output.status.code(), Some(7), "{url} is not refused: {output:?}");
    }
    world.guest.run("ping", &["-c", "1", "-W", "5", "10.0.2.100"]);
    world.wait_for("closed flows to be removed", |activity| activity.tcp_flows == 0);
}

#[test]
fn without_its_ipv6_side_the_network_drops_it_by_name() {
    let world = World::new(NatConfig { ipv6: None, ..NatConfig::default() });
    world.wait_for("a router solicitation to be dropped", |activity| {
        activity.dropped(DropReason::Ipv6) > 0
    });
}
