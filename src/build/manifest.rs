//! `manifest.json`, `SHA512SUM.txt` and `MD5SUM.txt`: what was built, from what, and how.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::secret::Secrets;

/// The manifest's own version; raised when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// A finished build.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// The manifest's version.
    pub manifest_version: u32,
    /// The program that built it.
    pub kvmbake_version: &'static str,
    /// The profile's `image.name`.
    pub name: String,
    /// When the build began, RFC 3339 in UTC.
    pub started: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The base image.
    pub source: Source,
    /// The profile.
    pub profile: Profile,
    /// The machine.
    pub machine: Machine,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The virtual disk that all artifacts hold.
    pub disk: Disk,
    /// The images.
    pub artifacts: Vec<Artifact>,
}

/// The base image.
#[derive(Debug, Serialize)]
pub struct Source {
    /// Its file name.
    pub file: String,
    /// Where it was downloaded from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its format.
    pub format: String,
    /// The digest of the file, `algorithm:hex`.
    pub digest: String,
}

/// The profile.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// Its file name.
    pub file: String,
    /// The digest of its text.
    pub digest: String,
}

/// The machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// vCPUs.
    pub cpus: u8,
    /// Memory in bytes.
    pub memory: u64,
    /// Where kernel, initrd and command line came from.
    pub boot: String,
    /// The kernel command line.
    pub cmdline: String,
}

/// A step that ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its title.
    pub title: String,
    /// How long it took.
    pub seconds: f64,
    /// The exit code of its last command; absent when the guest rebooted under it.
    pub exit_code: Option<i32>,
    /// Whether the guest rebooted.
    pub rebooted: bool,
    /// Whether an earlier build ran it, and this one took its layer from the cache.
    #[serde(default)]
    pub cached: bool,
}

/// The virtual disk.
#[derive(Debug, Serialize)]
pub struct Disk {
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// The digest of its content.
    pub digest: String,
}

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Artifact {
    /// File name.
    pub file: String,
    /// Format.
    pub format: String,
    /// The virtual size that its format states, in bytes.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub size: u64,
    /// Bytes that the file takes on the disk.
    pub allocated: u64,
    /// SHA-512 of the file.
    pub sha512: String,
    /// MD5 of the file.
    pub md5: String,
}

impl Manifest {
    /// Returns the version to put into a new manifest.
    pub const fn version() -> u32 {
        VERSION
    }

    /// Writes the manifest and the two lists of sums into `folder`, without the secrets.
    ///
    /// # Errors
    /// The file system's error.
    pub fn write(&self, folder: &Path, secrets: &Secrets) -> io::Result<()> {
        let mut value = serde_json::to_value(self)?;
        secrets.redact_json(&mut value);
        let mut json = serde_json::to_string_pretty(&value)?;
        json.push('\n');
        write_synced(&folder.join("manifest.json"), &json)?;
        write_synced(&folder.join("SHA512SUM.txt"), &self.sums(|artifact| &artifact.sha512))?;
        write_synced(&folder.join("MD5SUM.txt"), &self.sums(|artifact| &artifact.md5))
    }

    /// Lines as `sha512sum -c` and `md5sum -c` read them.
    fn sums(&self, digest: impl Fn(&Artifact) -> &str) -> String {
        self.artifacts.iter().fold(String::new(), |mut text, artifact| {
            let _ = writeln!(text, "{}  {}", digest(artifact), artifact.file);
            text
        })
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
