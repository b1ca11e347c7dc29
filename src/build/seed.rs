//! The seed disk that a profile asks for: its texts read, and the disk made of them.

use kvmbake_provision::seed::{File, NoCloud, SeedError, config_drive, image};

use super::plan::read_text;
use crate::profile::{Fault, Profile, Seed, SeedKind};

/// The texts of a seed.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// The user-data.
    pub user_data: Option<Vec<u8>>,
    /// The vendor-data.
    pub vendor_data: Option<Vec<u8>>,
    /// The network-config.
    pub network_config: Option<Vec<u8>>,
    /// Plain files, by name.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Texts {
    /// Reads the texts of `seed`; what cannot be read is added to `faults`.
    pub fn read(seed: &Seed, faults: &mut Vec<Fault>) -> Texts {
        let mut read = |text: &Option<_>| text.as_ref().and_then(|text| read_text(text, faults));
        let user_data = read(&seed.user_data);
        let vendor_data = read(&seed.vendor_data);
        let network_config = read(&seed.network_config);
        let files = seed.files.iter();
        let files = files.filter_map(|(name, text)| Some((name.clone(), read_text(text, faults)?)));
        let files = files.collect();
        Texts { user_data, vendor_data, network_config, files }
    }
}

/// Makes the seed disk of `profile`; `None` when it asks for none. `public_key` is the key that the build
/// brings into the guest, when it does.
///
/// # Errors
/// A name or a text cannot be used.
pub fn make(
    profile: &Profile,
    texts: &Texts,
    instance_id: &str,
    public_key: Option<String>,
) -> Result<Option<Vec<u8>>, SeedError> {
    let texts = texts.clone();
    let seed = NoCloud {
        instance_id: instance_id.into(),
        hostname: profile.seed.hostname.clone(),
        user_data: texts.user_data,
        vendor_data: texts.vendor_data,
        network_config: texts.network_config,
        public_key,
        user: Some(profile.ssh.user.clone()),
    };
    match profile.seed.kind {
        SeedKind::None => Ok(None),
        SeedKind::NoCloud => seed.build().map(Some),
        SeedKind::ConfigDrive => config_drive::build(&seed).map(Some),
        SeedKind::Ignition => config_drive::build_for_ignition(&seed).map(Some),
        SeedKind::Files => {
            let files = texts.files.iter().map(|(name, content)| File { name, content });
            image(&profile.seed.label, &files.collect::<Vec<_>>()).map(Some)
        }
    }
}
