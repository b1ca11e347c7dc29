//! `[seed]`: the configuration that the guest finds at its first boot.

use std::path::PathBuf;

use super::reader::{At, Reader, nearest};
use super::{Context, Named, Place};

/// The label of a disk with plain files.
const DEFAULT_LABEL: &str = "SEED";

/// First-boot configuration.
#[derive(Debug)]
pub struct Seed {
    /// In which form it goes to the guest.
    pub kind: SeedKind,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// The user-data; of Ignition its config.
    pub user_data: Option<Text>,
    /// The vendor-data.
    pub vendor_data: Option<Text>,
    /// The network-config.
    pub network_config: Option<Text>,
    /// The label of a disk with plain files.
    pub label: String,
    /// Plain files, by their names on the disk.
    pub files: Vec<(String, Text)>,
    /// Whether network interfaces keep the kernel's names.
    pub eth0_names: bool,
    /// Where it stands.
    pub place: Place,
}

/// The forms of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedKind {
    /// cloud-init's NoCloud.
    NoCloud,
    /// OpenStack's config drive.
    ConfigDrive,
    /// Ignition, on a config drive.
    Ignition,
    /// Plain files.
    Files,
    /// No disk.
    None,
}

impl SeedKind {
    pub(super) const ALL: [SeedKind; 5] = [
        SeedKind::NoCloud,
        SeedKind::ConfigDrive,
        SeedKind::Ignition,
        SeedKind::Files,
        SeedKind::None,
    ];

    /// Returns what a profile calls it.
    pub fn name(self) -> &'static str {
        match self {
            SeedKind::NoCloud => "nocloud",
            SeedKind::ConfigDrive => "config-drive",
            SeedKind::Ignition => "ignition",
            SeedKind::Files => "files",
            SeedKind::None => "none",
        }
    }

    /// The keys that it takes beside those of every seed.
    fn keys(self) -> &'static [&'static str] {
        match self {
            SeedKind::NoCloud => &["hostname", "user_data", "vendor_data", "network_config"],
            SeedKind::ConfigDrive => &["hostname", "user_data", "vendor_data"],
            SeedKind::Ignition => &["hostname", "user_data"],
            SeedKind::Files => &["label", "files"],
            SeedKind::None => &[],
        }
    }
}

/// A text that stands in the profile or in a file beside it.
#[derive(Debug, Clone)]
pub enum Text {
    /// In the profile.
    Inline(String),
    /// In a file.
    File(Named<PathBuf>),
}

impl Context<'_> {
    /// Reads `[seed]`.
    pub(super) fn seed(&self, reader: Option<Reader<'_, '_>>) -> Seed {
        let mut seed = Seed {
            kind: SeedKind::NoCloud,
            hostname: None,
            user_data: None,
            vendor_data: None,
            network_config: None,
            label: DEFAULT_LABEL.into(),
            files: Vec::new(),
            eth0_names: false,
            place: self.source.place(&reader.as_ref().map_or(0..0, Reader::span)),
        };
        let Some(reader) = reader else { return seed };
        let kind = reader.required_string("kind");
        if let Some(kind) = &kind {
            match SeedKind::ALL.into_iter().find(|known| known.name() == kind.value) {
                Some(known) => seed.kind = known,
                None => {
                    let known = SeedKind::ALL.map(SeedKind::name);
                    let hint = nearest(&kind.value, known).map_or_else(
                        || format!("Known are {}", known.join(", ")),
                        |near| format!("Did you mean `{near}`?"),
                    );
                    let message = format!("`{}` is no kind of seed", kind.value);
                    reader.fault_with_hint(&kind.span, message, hint);
                }
            }
        }
        seed.hostname = reader.string("hostname").map(|at| at.value);
        seed.user_data = reader.string("user_data").map(|at| self.text(at));
        seed.vendor_data = reader.string("vendor_data").map(|at| self.text(at));
        seed.network_config = reader.string("network_config").map(|at| self.text(at));
        if let Some(label) = reader.string("label") {
            seed.label = label.value;
        }
        let files = reader.string_map("files").into_iter();
        seed.files = files.map(|(name, at)| (name, self.text(at))).collect();
        seed.eth0_names = reader.bool("eth0_names").unwrap_or(false);
        let all = ["hostname", "user_data", "vendor_data", "network_config", "label", "files"];
        for key in all.into_iter().filter(|key| !seed.kind.keys().contains(key)) {
            if let Some(value) = reader.value(key) {
                let message = format!("A seed of kind \"{}\" takes no `{key}`", seed.kind.name());
                reader.fault(&value.span(), message);
            }
        }
        if seed.kind == SeedKind::Files && reader.value("files").is_none() {
            reader.fault(&reader.span(), "A seed of kind \"files\" needs `files`");
        }
        reader.finish();
        seed
    }

    /// A text of several lines, or one that begins with `#`, stands for itself; any other names a file.
    pub(super) fn text(&self, at: At<String>) -> Text {
        if at.value.contains('\n') || at.value.starts_with('#') {
            Text::Inline(at.value)
        } else {
            Text::File(self.path(at))
        }
    }
}
