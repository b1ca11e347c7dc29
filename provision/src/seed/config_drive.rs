//! OpenStack's config drive: a disk labelled `config-2` with `openstack/latest/meta_data.json`, `user_data` and
//! `vendor_data.json`. cloud-init, coreos-cloudinit and Ignition read it.
//!
//! It says what the NoCloud seed says: the key is in `public_keys`, and for a login that this does not reach in a script
//! of the vendor data, which cloud-init alone runs. The user's `user_data` goes on it byte for byte.
//!
//! OpenStack Nova, "Metadata": config drives and the metadata service's formats.

use serde_json::json;

use super::disk::{File, image};
use super::nocloud::NoCloud;
use super::{SeedError, ignition};

/// The label by which the disk is found.
pub const LABEL: &str = "config-2";

/// Returns the bytes of a config drive that says what `seed` says. Equal seeds give equal bytes.
///
/// # Errors
/// As [`NoCloud::build`]; or vendor-data that is no text, which JSON cannot hold.
pub fn build(seed: &NoCloud) -> Result<Vec<u8>, SeedError> {
    let vendor_data = match seed.vendor_data()? {
        Some(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| SeedError::VendorData)?;
            Some(json!({ "cloud-init": text }))
        }
        None => None,
    };
    drive(seed, seed.user_data.as_deref(), vendor_data.map(|data| data.to_string()))
}

/// Returns the bytes of a config drive for Ignition, whose platform `openstack` reads it: the user's config with the
/// key and the host name put in.
///
/// # Errors
/// As [`ignition::config`], or the files are too large for a seed.
pub fn build_for_ignition(seed: &NoCloud) -> Result<Vec<u8>, SeedError> {
    let config = ignition::config(seed)?;
    drive(seed, Some(&config), None)
}

fn drive(
    seed: &NoCloud,
    user_data: Option<&[u8]>,
    vendor_data: Option<String>,
) -> Result<Vec<u8>, SeedError> {
    let meta_data = meta_data(seed)?;
    let file = |name, content| File { name, content };
    let mut files = vec![file("openstack/latest/meta_data.json", meta_data.as_bytes())];
    files.extend(user_data.map(|bytes| file("openstack/latest/user_data", bytes)));
    let vendor_data = vendor_data.as_deref().map(str::as_bytes);
    files.extend(vendor_data.map(|bytes| file("openstack/latest/vendor_data.json", bytes)));
    image(LABEL, &files)
}

fn meta_data(seed: &NoCloud) -> Result<String, SeedError> {
    let mut data = json!({ "uuid": seed.instance_id });
    if let Some(name) = seed.checked_host_name()? {
        data["hostname"] = json!(name);
        data["name"] = json!(name);
    }
    if let Some(key) = &seed.public_key {
        data["public_keys"] = json!({ "kvmbake": key.trim() });
    }
    Ok(data.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::nocloud::tests::{KEY, seed};
    use super::*;
    use std::path::Path;
    use std::process::Command;

    /// Copies the files out of the disk with mtools and lets cloud-init read them.
    fn understood(image: &[u8]) -> serde_json::Value {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("seed.img");
        std::fs::write(&path, image).expect("write");
        let mut copy = Command::new("mcopy");
        copy.args(["-s", "-i"]).arg(&path).arg("::openstack").arg(folder.path());
        let copy = copy.status();
        assert!(copy.expect("mcopy is missing: install the Debian package mtools").success());
        let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/seed/config_drive_check.py");
        let output = Command::new("/usr/bin/python3").arg(check).arg(folder.path()).output();
        let output = output.expect("python3");
        assert!(
            output.status.success(),
            "cloud-init's reader failed (it is in the Debian package cloud-init): {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    #[test]
    fn cloud_init_finds_the_key_the_name_and_the_users_own_words() {
        let config = "#cloud-config\n# a comment that must stay\nruncmd: [true]\n";
        let image = build(&seed(config.as_bytes())).expect("image");
        let seen = understood(&image);
        assert_eq!(seen["instance"], "kvmbake-7");
        assert_eq!(seen["hostname"], "web-1");
        assert_eq!(seen["keys"], json!([KEY]));
        assert_eq!(seen["user"], config);
        assert!(seen["vendor"].as_str().expect("text").starts_with("#!/bin/sh"), "{seen}");
        assert_eq!(image, build(&seed(config.as_bytes())).expect("image"));
    }

    #[test]
    fn a_drive_without_user_data_is_a_seed_for_cloud_init() {
        let empty = NoCloud { instance_id: "i\" 1".into(), ..NoCloud::default() };
        let seen = understood(&build(&empty).expect("image"));
        assert_eq!((&seen["instance"], &seen["keys"]), (&json!("i\" 1"), &json!([])));
    }

    #[test]
    fn an_ignition_config_lies_where_user_data_does() {
        let image =
            build_for_ignition(&seed(b"{\"ignition\":{\"version\":\"3.4.0\"}}")).expect("image");
        let seen = understood(&image);
        let config: serde_json::Value =
            serde_json::from_str(seen["user"].as_str().expect("text")).expect("JSON");
        assert_eq!(config["ignition"]["version"], "3.4.0");
        assert_eq!(seen["keys"], json!([KEY]));
    }
}
