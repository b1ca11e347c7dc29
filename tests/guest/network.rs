//! The guest's network over virtio-net: a lease of the profile's own network, a long download, and apt.

use crate::project::{LIGHT, Project};

#[test]
fn a_guest_in_a_network_of_the_profile_s_downloads_a_large_file_whole_and_updates_apt() {
    download(64, 1500);
}

#[test]
#[ignore = "takes minutes in the rig, which moves some four mebibytes a second; `make guest-long` runs it"]
fn a_guest_downloads_a_gibibyte_in_large_packets_whole() {
    download(1024, 65520);
}

/// Has a guest in a network of the profile's download so many mebibytes.
fn download(mebibytes: u64, mtu: u16) {
    let project = Project::new("network");
    // Pieces that are each another's unlike, so that one out of its place is noticed.
    let sum = project.judge(&format!(
        "mkdir files mirror; head -c 1M /dev/urandom > piece; \
         for at in $(seq {mebibytes}); do printf '%8d' $at; tail -c +9 piece; done > files/big; \
         printf 'Package: probe\\nVersion: 7\\nArchitecture: all\\nFilename: ./p.deb\\nSize: 1\\n' > mirror/Packages; \
         chmod -R a+rX files mirror; sha256sum < files/big",
    ));
    let length = mebibytes << 20;
    assert_eq!(project.judge("stat -c %s files/big").trim(), length.to_string());
    let apt = "sudo apt-get -o Dir::Etc::sourcelist=/tmp/list -o Dir::Etc::sourceparts=- update";
    project.write(
        "p.toml",
        &format!(
            r#"{LIGHT}
[net]
network = "10.77.0.0/24"
search  = "corp.test"
mtu     = {mtu}
hosts   = {{ "mirror.test" = "10.77.0.102" }}
[[net.forward]]
at    = "10.77.0.101:80"
serve = "files"
[[net.forward]]
at    = "10.77.0.102:80"
serve = "mirror"

[[step]]
name = "lease"
shell = ["ip -4 addr | grep -F 10.77.0.15/24", "ip link show up | grep -F 'mtu {mtu}'", "grep -x 'search corp.test' /etc/resolv.conf"]
[[step]]
name = "download"
shell = "busybox wget -q -O - http://10.77.0.101/big | sha256sum | grep -F '{sum}'"
[[step]]
name = "apt"
shell = ["echo 'deb [trusted=yes] http://mirror.test/ ./' > /tmp/list", """{apt}"""]
[[output]]
format = "qcow2"
"#,
            sum = sum.trim(),
        ),
    );
    let output = project.kvmbake("run --stats p.toml").expect(0);
    eprintln!("{}", output.stderr);
    let folder = project.finished();
    let log = project.judge(&format!("grep '\"path\":\"/big\"' {folder}/net.jsonl"));
    let served: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!((&served["status"], &served["to_guest"]), (&200.into(), &length.into()));
}
