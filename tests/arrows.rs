//! Holds the architecture: which crate may depend on which.

use std::collections::BTreeMap;
use std::path::Path;

/// Each crate's folder and the crates of this workspace that it may use.
const ALLOWED: [(&str, &[&str]); 6] = [
    (".", &["kvmbake-convert", "kvmbake-disk", "kvmbake-net", "kvmbake-provision", "kvmbake-vmm"]),
    ("vmm", &["kvmbake-disk", "kvmbake-net"]),
    ("convert", &["kvmbake-disk"]),
    ("disk", &[]),
    ("net", &[]),
    ("provision", &[]),
];

fn manifest(folder: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("Cargo.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn dependencies(manifest: &toml::Table, section: &str) -> Vec<String> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn crates_depend_one_way() {
    let allowed = BTreeMap::from(ALLOWED);
    for (folder, may_use) in &allowed {
        for dependency in dependencies(&manifest(folder), "dependencies") {
            let inside = dependency.starts_with("kvmbake");
            assert!(
                !inside || may_use.contains(&dependency.as_str()),
                "{folder} must not use {dependency}"
            );
        }
    }
}

#[test]
fn only_the_machine_knows_kvm_and_only_provisioning_knows_ssh() {
    for (folder, _) in ALLOWED {
        let used = dependencies(&manifest(folder), "dependencies");
        let uses = |name: &str| used.iter().any(|dependency| dependency == name);
        if folder != "vmm" {
            for name in ["kvm-ioctls", "kvm-bindings", "vm-memory", "virtio-queue"] {
                assert!(!uses(name), "{folder} must not use {name}");
            }
        }
        assert!(folder == "provision" || !uses("russh"), "{folder} must not use russh");
    }
}

#[test]
fn every_member_is_in_the_list() {
    let root = manifest(".");
    let members = root["workspace"]["members"].as_array().unwrap();
    for member in members
        .iter()
        .filter_map(toml::Value::as_str)
        .filter(|member| !member.starts_with("tests/"))
    {
        assert!(ALLOWED.iter().any(|(folder, _)| *folder == member), "{member} has no rule");
    }
}
