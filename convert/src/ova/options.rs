//! What a caller may choose about an OVA archive.

use crate::options::{Fault, number, plain_text, size};
use crate::vmdk::DEFAULT_LEVEL;

const KEYS: &[&str] = &[
    "name",
    "memory",
    "cpus",
    "nic",
    "controller",
    "system",
    "product",
    "vendor",
    "version",
    "hwversion",
    "manifest",
    "level",
];

/// The sums that a manifest states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestSum {
    /// What VMware and VirtualBox write today.
    #[default]
    Sha256,
    /// What readers that know only OVF 1.0 expect.
    Sha1,
}

/// The machine that the descriptor describes, and how to compress its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvaOptions {
    /// The machine's name; the file's name without its extension when absent.
    pub name: Option<String>,
    /// Memory in MiB.
    pub memory: u64,
    /// Virtual processors.
    pub cpus: u32,
    /// The network adapter's model, as VMware calls it; none without one.
    pub nic: Option<String>,
    /// The disk controller's model: ide, ahci, or a SCSI controller as VMware calls it.
    pub controller: String,
    /// The virtual system type.
    pub system: String,
    /// The product's name; the machine's when absent.
    pub product: Option<String>,
    /// The product's vendor.
    pub vendor: Option<String>,
    /// The product's version.
    pub version: Option<String>,
    /// The sums of the manifest.
    pub manifest: ManifestSum,
    /// The deflate level of the disk, 1 to 12.
    pub level: u8,
}

impl Default for OvaOptions {
    fn default() -> OvaOptions {
        OvaOptions {
            name: None,
            memory: 1024,
            cpus: 1,
            nic: Some("E1000".to_owned()),
            controller: "lsilogic".to_owned(),
            system: "vmx-13".to_owned(),
            product: None,
            vendor: None,
            version: None,
            manifest: ManifestSum::default(),
            level: DEFAULT_LEVEL,
        }
    }
}

const NICS: [&str; 5] = ["E1000", "E1000e", "VmxNet3", "PCNet32", "virtio"];
const CONTROLLERS: [&str; 6] =
    ["lsilogic", "lsilogicsas", "VirtualSCSI", "buslogic", "ahci", "ide"];

impl OvaOptions {
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        let known = |names: &[&'static str], what| {
            let name = names.iter().find(|name| name.eq_ignore_ascii_case(value));
            name.map(|name| (*name).to_owned()).ok_or(Fault::Expected(what))
        };
        match key {
            "name" => self.name = Some(plain_text(value)?),
            "memory" => {
                let mib = size(value).filter(|bytes| bytes % (1 << 20) == 0).map(|size| size >> 20);
                self.memory = mib
                    .filter(|mib| (1..=16 << 20).contains(mib))
                    .ok_or(Fault::Expected("whole mebibytes, such as 2G"))?;
            }
            "cpus" => self.cpus = number(value, 1..=1024, "1 to 1024")?,
            "nic" if value == "none" => self.nic = None,
            "nic" => {
                let what = "E1000, E1000e, VmxNet3, PCNet32, virtio or none";
                self.nic = Some(known(&NICS, what)?);
            }
            "controller" => {
                let what = "lsilogic, lsilogicsas, VirtualSCSI, buslogic, ahci or ide";
                self.controller = known(&CONTROLLERS, what)?;
            }
            "system" => {
                let what = "one or more of vmx-4 to vmx-99 or virtualbox-2.2, separated by spaces";
                let fits = |name: &str| {
                    name == "virtualbox-2.2"
                        || name
                            .strip_prefix("vmx-")
                            .is_some_and(|version| number::<u8>(version, 4..=99, what).is_ok())
                };
                if value.is_empty() || !value.split(' ').all(fits) {
                    return Err(Fault::Expected(what));
                }
                self.system = value.to_owned();
            }
            "hwversion" => {
                let version: u8 = number(value, 4..=99, "4 to 99")?;
                self.system = format!("vmx-{version:02}");
            }
            "manifest" => {
                self.manifest = match value {
                    "sha256" => ManifestSum::Sha256,
                    "sha1" => ManifestSum::Sha1,
                    _ => return Err(Fault::Expected("sha256 or sha1")),
                }
            }
            "product" => self.product = Some(plain_text(value)?),
            "vendor" => self.vendor = Some(plain_text(value)?),
            "version" => self.version = Some(plain_text(value)?),
            "level" => self.level = number(value, 1..=12, "1 to 12")?,
            _ => return Err(Fault::Unknown(KEYS)),
        }
        Ok(())
    }

    /// Returns the hardware version that the disk's descriptor states: the system's first.
    pub(super) fn hardware_version(&self) -> u8 {
        let first = self.system.split(' ').find_map(|name| name.strip_prefix("vmx-"));
        first.and_then(|version| version.parse().ok()).unwrap_or(13)
    }
}
