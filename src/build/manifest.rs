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
    /// Why it failed, where the profile says to go on all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
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
    /// The virtual size that it states, in bytes.
    pub virtual_size: u64,
    /// The disk's size, where the format could not express it and rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounded_up_from: Option<u64>,
    /// The file's length in bytes.
    pub size: u64,
    /// Bytes that the file takes on the disk.
    pub allocated: u64,
    /// SHA-512 of the file.
    pub sha512: String,
    /// MD5 of the file.
    pub md5: String,
    /// The second file of an image that consists of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent: Option<ExtentFile>,
}

/// The file beside an image that holds its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExtentFile {
    /// File name.
    pub file: String,
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
        let (mut sha512, mut md5) = (String::new(), String::new());
        // Lines as `sha512sum -c` and `md5sum -c` read them.
        for image in &self.artifacts {
            let _ = writeln!(sha512, "{}  {}", image.sha512, image.file);
            let _ = writeln!(md5, "{}  {}", image.md5, image.file);
            if let Some(extent) = &image.extent {
                let _ = writeln!(sha512, "{}  {}", extent.sha512, extent.file);
                let _ = writeln!(md5, "{}  {}", extent.md5, extent.file);
            }
        }
        write_synced(&folder.join("SHA512SUM.txt"), &sha512)?;
        write_synced(&folder.join("MD5SUM.txt"), &md5)
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A manifest that says nothing but this.
    pub fn with_artifacts(artifacts: Vec<Artifact>) -> Manifest {
        let text = String::new;
        Manifest {
            manifest_version: VERSION,
            kvmbake_version: "0",
            name: text(),
            started: text(),
            seconds: 0.0,
            source: Source { file: text(), url: None, format: text(), digest: text() },
            profile: Profile { file: text(), digest: text() },
            machine: Machine { cpus: 1, memory: 0, boot: text(), cmdline: text() },
            steps: Vec::new(),
            disk: Disk { virtual_size: 1000, digest: text() },
            artifacts,
        }
    }

    #[test]
    fn every_file_has_its_sums_and_what_was_rounded_up_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let extent = ExtentFile {
            file: "web-flat.vmdk".into(),
            size: 1024,
            allocated: 0,
            sha512: "c3".into(),
            md5: "d4".into(),
        };
        let image = Artifact {
            file: "web.vmdk".into(),
            format: "vmdk".into(),
            virtual_size: 1024,
            rounded_up_from: Some(1000),
            size: 600,
            allocated: 4096,
            sha512: "a1".into(),
            md5: "b2".into(),
            extent: Some(extent),
        };
        let plain = Artifact {
            file: "web.raw".into(),
            rounded_up_from: None,
            extent: None,
            ..image.clone()
        };
        with_artifacts(vec![image, plain]).write(folder.path(), &Secrets::default()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("SHA512SUM.txt"), "a1  web.vmdk\nc3  web-flat.vmdk\na1  web.raw\n");
        assert_eq!(read("MD5SUM.txt"), "b2  web.vmdk\nd4  web-flat.vmdk\nb2  web.raw\n");
        let json: serde_json::Value = serde_json::from_str(&read("manifest.json")).unwrap();
        assert_eq!(json["artifacts"][0]["extent"]["file"], "web-flat.vmdk");
        assert_eq!(json["artifacts"][0]["rounded_up_from"], 1000);
        assert!(json["artifacts"][1].get("rounded_up_from").is_none());
        assert!(json["artifacts"][1].get("extent").is_none());
    }
}
