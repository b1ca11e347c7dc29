//! A build that is decided but not begun: the profile read, every file it names looked at, the
//! base opened and its structure checked. What can fail without a guest fails here.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvmbake_disk::{Block, Format, OpenOptions};
use kvmbake_provision::key::BuildKey;
use kvmbake_provision::step::{CheckContext, Step};
use kvmbake_vmm::MachineConfig;
use kvmbake_vmm::boot::{self, BootOverrides, FileSource, Kernel};

use super::step::shell_step;
use crate::checksum::{self, Checksum};
use crate::error::Error;
use crate::profile::net::Target;
use crate::profile::units::Size;
use crate::profile::{Fault, Named, Profile, Run, Source, Text};

/// Largest profile, user-data or key; anything beyond is not what it is taken for.
const TEXT_LIMIT: u64 = 4 << 20;

/// A profile and all that it names.
pub struct Plan {
    /// The profile.
    pub profile: Profile,
    /// The base image, open for reading and locked against writers.
    pub base: Arc<dyn Block>,
    /// The base's format, pinned from here on.
    pub base_format: Format,
    /// The virtual size of the disk to build.
    pub virtual_size: u64,
    /// The seed's user-data.
    pub user_data: Option<Vec<u8>>,
    /// The seed's network-config.
    pub network_config: Option<Vec<u8>>,
    /// The profile's own key, when it names one.
    pub private_key: Option<BuildKey>,
    /// What the profile says of kernel, initrd and command line.
    pub boot: BootOverrides,
}

impl Plan {
    /// Reads the profile at `path` and looks at everything it names.
    ///
    /// # Errors
    /// The faults found, each with its place in the profile.
    pub fn load(path: &Path) -> Result<Plan, Error> {
        let text = read_profile(path)?;
        let profile = Profile::parse(Source::new(path, text)).map_err(Error::profile)?;
        let mut faults = Vec::new();
        let base = open_base(&profile, &mut faults);
        let seed = profile.seed.as_ref();
        let user_data = seed.and_then(|seed| seed.user_data.as_ref());
        let user_data = user_data.and_then(|text| read_text(text, &mut faults));
        let network_config = seed.and_then(|seed| seed.network_config.as_ref());
        let network_config = network_config.and_then(|text| read_text(text, &mut faults));
        let private_key =
            profile.ssh.private_key.as_ref().and_then(|path| read_key(path, &mut faults));
        check_steps(&profile, &mut faults);
        check_network(&profile, &mut faults);
        let boot = boot_overrides(&profile, &mut faults);
        let (base, base_format) = match base {
            Some(base) if faults.is_empty() => base,
            _ => {
                faults.sort_by_key(|fault| (fault.place.line, fault.place.column));
                return Err(Error::profile(faults));
            }
        };
        let virtual_size = profile.image.size.as_ref().map_or(base.len(), |size| size.value);
        Ok(Plan {
            profile,
            base,
            base_format,
            virtual_size,
            user_data,
            network_config,
            private_key,
            boot,
        })
    }

    /// Returns the size of the machine.
    pub fn machine(&self) -> MachineConfig {
        let machine = &self.profile.machine;
        MachineConfig { cpus: machine.cpus, memory: machine.memory }
    }

    /// Returns the paths of the base and of all files that it is read through.
    ///
    /// # Errors
    /// They changed since the plan was made.
    pub fn base_files(&self) -> Result<Vec<PathBuf>, Error> {
        let image = &self.profile.image;
        let options = OpenOptions {
            format: Some(self.base_format),
            writable: false,
            allow_backing: image.allow_backing.clone(),
        };
        kvmbake_disk::files(&image.source.value, &options)
            .map_err(|error| Error::input("Cannot read the base image").because(&error))
    }

    /// Compares the base with the profile's checksum, when it has one.
    ///
    /// # Errors
    /// The base cannot be read, or is another.
    pub fn verify_checksum(&self) -> Result<(), Error> {
        let Some(expected) = &self.profile.image.checksum else { return Ok(()) };
        let path = &self.profile.image.source.value;
        let found = checksum::of_file(path, expected.value.algorithm, &AtomicBool::new(false))
            .map_err(|error| {
                Error::input(format!("Cannot read {}", path.display())).because(&error)
            })?
            .ok_or_else(Error::interrupted)?;
        self.compare_checksum(&found)
    }

    /// Compares `found`, the base's checksum, with the profile's, when it has one.
    ///
    /// # Errors
    /// They differ.
    pub fn compare_checksum(&self, found: &Checksum) -> Result<(), Error> {
        let path = &self.profile.image.source.value;
        match &self.profile.image.checksum {
            Some(expected) if expected.value != *found => Err(Error::profile(vec![Fault {
                message: format!("{} is not the image that the checksum is of", path.display()),
                place: expected.place.clone(),
                hint: Some(format!("The file's checksum is {found}")),
            }])),
            _ => Ok(()),
        }
    }

    /// Finds the kernel that a build boots first, on the base as it is.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn discover_kernel(&self) -> Result<Kernel, Error> {
        discover(Arc::clone(&self.base), &self.boot, &self.profile.image.source.value)
    }
}

/// Finds the kernel on `disk`, the image called `name` in messages.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn discover(
    disk: Arc<dyn Block>,
    overrides: &BootOverrides,
    name: &Path,
) -> Result<Kernel, Error> {
    boot::discover(disk, overrides).map_err(|error| {
        Error::input(format!("Cannot boot {} directly", name.display()))
            .because(&error)
            .hint("[boot] kernel, initrd and cmdline in the profile name them by hand")
    })
}

fn read_profile(path: &Path) -> Result<String, Error> {
    let failed = |error: &dyn std::error::Error| {
        let mut failed = Error::input(format!("Cannot read the profile {}", path.display()));
        failed.causes.push(error.to_string());
        failed
    };
    let bytes = read_limited(path, TEXT_LIMIT).map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| failed(&error.utf8_error()))
}

fn read_limited(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other(format!("larger than {}", Size(limit))));
    }
    Ok(bytes)
}

fn fault<T>(faults: &mut Vec<Fault>, named: &Named<T>, message: String, hint: Option<String>) {
    faults.push(Fault { message, place: named.place.clone(), hint });
}

fn open_base(profile: &Profile, faults: &mut Vec<Fault>) -> Option<(Arc<dyn Block>, Format)> {
    let source = &profile.image.source;
    let refused = |faults: &mut Vec<Fault>, error: kvmbake_disk::Error| {
        let hint = error.hint().map(str::to_string);
        fault(faults, source, with_causes(&error), hint);
    };
    let format = match profile.image.format {
        Some(format) => format,
        None => match kvmbake_disk::probe(&source.value) {
            Ok(format) => format,
            Err(error) => {
                refused(faults, error);
                return None;
            }
        },
    };
    let options = OpenOptions {
        format: Some(format),
        writable: false,
        allow_backing: profile.image.allow_backing.clone(),
    };
    let base = match kvmbake_disk::open(&source.value, &options) {
        Ok(base) => base,
        Err(error) => {
            refused(faults, error);
            return None;
        }
    };
    if let Some(size) = &profile.image.size
        && size.value < base.len()
    {
        let message =
            format!("`size` is {}, the base has {} already", Size(size.value), Size(base.len()));
        fault(faults, size, message, Some("An image only grows".into()));
    }
    Some((base, format))
}

/// An error and its causes on one line.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn read_named(path: &Named<PathBuf>, limit: u64, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    match read_limited(&path.value, limit) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            fault(faults, path, format!("Cannot read {}: {error}", path.value.display()), None);
            None
        }
    }
}

fn read_text(text: &Text, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    match text {
        Text::Inline(text) => Some(text.clone().into_bytes()),
        Text::File(path) => read_named(path, TEXT_LIMIT, faults),
    }
}

fn read_key(path: &Named<PathBuf>, faults: &mut Vec<Fault>) -> Option<BuildKey> {
    let bytes = read_named(path, TEXT_LIMIT, faults)?;
    let text = String::from_utf8_lossy(&bytes);
    match BuildKey::from_openssh(&text) {
        Ok(key) => Some(key),
        Err(error) => {
            let message = format!("{}: {}", path.value.display(), with_causes(&error));
            fault(faults, path, message, None);
            None
        }
    }
}

fn check_steps(profile: &Profile, faults: &mut Vec<Fault>) {
    for step in &profile.steps {
        if let Err(error) = shell_step(step).check(&CheckContext::default()) {
            let place = match &step.shell.run {
                Run::Scripts(paths) => paths.first().map(|path| path.place.clone()),
                Run::Inline(_) => None,
            };
            let place = place.unwrap_or_else(|| step.place.clone());
            faults.push(Fault { message: with_causes(&error), place, hint: None });
        }
    }
}

fn check_network(profile: &Profile, faults: &mut Vec<Fault>) {
    for forward in &profile.net.forwards {
        if let Target::Folder { path, .. } = &forward.target
            && !path.value.is_dir()
        {
            fault(faults, path, format!("{} is no folder", path.value.display()), None);
        }
    }
    let files = [("log", &profile.net.log), ("pcap", &profile.net.pcap)];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        let folder = path.value.parent().filter(|folder| !folder.as_os_str().is_empty());
        if !folder.unwrap_or(Path::new(".")).is_dir() {
            let message = format!("The folder of `{key}`, {}, is not there", path.value.display());
            fault(faults, path, message, None);
        } else if path.value.exists() && !path.value.is_file() {
            let message = format!("{} is there already and no file", path.value.display());
            fault(faults, path, message, None);
        }
    }
}

fn boot_overrides(profile: &Profile, faults: &mut Vec<Fault>) -> BootOverrides {
    let boot = &profile.boot;
    for path in [&boot.kernel, &boot.initrd].into_iter().flatten() {
        if !path.value.is_file() {
            fault(faults, path, format!("{} is no file", path.value.display()), None);
        }
    }
    let host = |path: &Named<PathBuf>| FileSource::Host(path.value.clone());
    BootOverrides {
        kernel: boot.kernel.as_ref().map(host),
        initrd: boot.initrd.iter().map(host).collect(),
        cmdline: boot.cmdline.clone(),
        append: boot.append.clone(),
        ..BootOverrides::default()
    }
}
