//! The NoCloud seed: a disk labelled `cidata` with `meta-data`, `user-data`, and what else cloud-init reads there.
//!
//! The build's public key reaches the guest without a change to what the user wrote:
//! - `meta-data` lists it in `public-keys`: cloud-init gives it to the default user, whatever that is called;
//! - `vendor-data` brings a script that gives it to [`NoCloud::user`] where that is somebody else: a `users:` list
//!   without `default`, or root, whose keys cloud-init disables by a forced command. cloud-init runs it in its final
//!   stage, so such a login opens later than the default user's. For root, a piece of cloud-config beside it says
//!   `disable_root: false`, which user-data may overrule.
//!
//! `user-data` is the user's bytes, whatever their kind: cloud-config, script, `#include`, MIME multipart, gzip. User-data
//! that says `vendor_data: {enabled: false}` keeps the script out, and then has to give the key's user access itself.
//!
//! cloud-init, "NoCloud" and "Vendor-data".

use super::SeedError;
use super::disk::{File, image};
use super::mime::{Part, multipart};

/// The label by which cloud-init finds the disk.
pub const LABEL: &str = "cidata";

/// What goes on a NoCloud disk.
#[derive(Debug, Clone, Default)]
pub struct NoCloud {
    /// Names this first boot; a new one makes cloud-init start afresh.
    pub instance_id: String,
    /// The host name; none leaves the image's own.
    pub hostname: Option<String>,
    /// The user's user-data, any kind, untouched.
    pub user_data: Option<Vec<u8>>,
    /// The user's vendor-data, any kind.
    pub vendor_data: Option<Vec<u8>>,
    /// The user's network configuration (version 1 or 2), untouched.
    pub network_config: Option<Vec<u8>>,
    /// The build's public key, as a line of `authorized_keys`.
    pub public_key: Option<String>,
    /// The login that the key must open; none means the image's default user.
    pub user: Option<String>,
}

impl NoCloud {
    /// Returns the bytes of the seed disk. Equal seeds give equal bytes.
    ///
    /// # Errors
    /// When the host name or the user name is unusable, or the files are too large for a seed.
    pub fn build(&self) -> Result<Vec<u8>, SeedError> {
        let files = self.files()?;
        let files: Vec<File<'_>> =
            files.iter().map(|(name, content)| File { name, content }).collect();
        image(LABEL, &files)
    }

    /// Returns the files of the disk, name and content.
    ///
    /// # Errors
    /// When the host name or the user name is unusable.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, SeedError> {
        let user_data = self.user_data.clone().unwrap_or_else(|| b"#cloud-config\n{}\n".to_vec());
        let mut files = vec![("meta-data", self.meta_data()?), ("user-data", user_data)];
        if let Some(vendor_data) = self.vendor_data()? {
            files.push(("vendor-data", vendor_data));
        }
        if let Some(network) = &self.network_config {
            files.push(("network-config", network.clone()));
        }
        Ok(files)
    }

    fn meta_data(&self) -> Result<Vec<u8>, SeedError> {
        let mut text = format!("instance-id: {}\n", quoted(&self.instance_id));
        if let Some(name) = self.checked_host_name()? {
            text.push_str(&format!("local-hostname: {}\n", quoted(name)));
        }
        if let Some(key) = &self.public_key {
            text.push_str(&format!("public-keys:\n  - {}\n", quoted(key.trim())));
        }
        Ok(text.into_bytes())
    }

    pub(super) fn checked_host_name(&self) -> Result<Option<&str>, SeedError> {
        match self.hostname.as_deref() {
            Some(name) if !is_host_name(name) => Err(SeedError::HostName { name: name.into() }),
            name => Ok(name),
        }
    }

    pub(super) fn vendor_data(&self) -> Result<Option<Vec<u8>>, SeedError> {
        let (Some(user), Some(key)) = (&self.user, &self.public_key) else {
            return Ok(self.vendor_data.clone());
        };
        if !is_user_name(user) {
            return Err(SeedError::UserName { name: user.clone() });
        }
        let script = authorize_script(user, key.trim());
        let root = b"#cloud-config\ndisable_root: false\n";
        let mut parts = Vec::new();
        if user == "root" {
            parts.push(Part { content: root, name: "kvmbake-root.yaml" });
        }
        if let Some(own) = &self.vendor_data {
            parts.push(Part { content: own, name: "vendor-data" });
        }
        parts.push(Part { content: script.as_bytes(), name: "kvmbake-authorize" });
        Ok(Some(if parts.len() == 1 { script.into_bytes() } else { multipart(&parts) }))
    }
}

/// The script that gives `user` the key; both are known to hold no quote.
fn authorize_script(user: &str, key: &str) -> String {
    let key: String = key.chars().filter(|c| !c.is_control() && *c != '\'').collect();
    let blob = key
        .split_ascii_whitespace()
        .find(|field| field.starts_with("AAAA"))
        .unwrap_or(&key)
        .to_owned();
    include_str!("authorize.sh")
        .replace("@USER@", user)
        .replace("@KEY@", &key)
        .replace("@BLOB@", &blob)
}

/// A YAML double-quoted scalar; JSON's escapes are a part of YAML's.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Whether it is a name that a user may have, of letters, digits, `_`, `-` and `.`: one word, whoever reads it.
pub fn is_user_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !name.starts_with('-')
}

#[cfg(test)]
#[path = "nocloud_tests.rs"]
pub(super) mod tests;
