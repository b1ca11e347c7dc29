//! A build that is decided but not begun: the profile read, every file it names looked at, the
//! base opened and its structure checked. What can fail without a guest fails here.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvmbake_convert::Target;
use kvmbake_disk::{Block, Format, OpenOptions};
use kvmbake_provision::key::BuildKey;
use kvmbake_provision::step::CheckContext;
use kvmbake_vmm::MachineConfig;
use kvmbake_vmm::boot::{self, BootOverrides, FileSource, Kernel};

use super::base::{self, Source};
use super::cancel::Cancel;
use super::export::source_date_epoch;
use super::seed::{self, Texts};
use super::step;
use crate::checksum::{self, Checksum};
use crate::error::{Error, with_causes};
use crate::profile::net;
use crate::profile::units::Size;
use crate::profile::{
    self, Action, BaseSource, Fault, Given, Named, Profile, SeedKind, Text, folder_of,
};
use crate::report::{Event, Report, Stage};

/// Largest profile, user-data or key; anything beyond is not what it is taken for.
const TEXT_LIMIT: u64 = 4 << 20;

/// Where Ignition finds its config: the machine has no fw_cfg, a config drive it can have.
const IGNITION_PLATFORM: &str = "ignition.platform.id=openstack";
/// Leaves network interfaces with the kernel's names in the boot that udev's rule is replaced in.
const KERNEL_NAMES: &str = "net.ifnames=0";

/// Finds and opens an image that is to be booted instead of the base.
pub type FindImage<'f> = dyn Fn(&Profile) -> Result<(PathBuf, Arc<dyn Block>), Error> + 'f;

/// A profile and all that it names.
pub struct Plan {
    /// The profile.
    pub profile: Profile,
    /// Where the base image was found.
    pub source: Source,
    /// The base image, open for reading and locked against writers.
    pub base: Arc<dyn Block>,
    /// The base's format, pinned from here on.
    pub base_format: Format,
    /// The virtual size of the images.
    pub virtual_size: u64,
    /// The virtual size of the guest's disk, which is grown when it is sealed.
    pub build_size: u64,
    /// The texts of the seed.
    pub seed: Texts,
    /// The profile's own key, when it names one.
    pub private_key: Option<BuildKey>,
    /// What the profile says of kernel, initrd and command line.
    pub boot: BootOverrides,
    /// The time that the images state, where the environment asks for one.
    pub time: Option<u64>,
}

impl Plan {
    /// Reads the profile at `path` with what it is `given`, looks at everything it names, and gets the
    /// base image when it is not on this host yet. Of a matrix one cell must be asked for.
    ///
    /// # Errors
    /// The faults found, each with its place in the profile; the base cannot be had.
    pub fn load(
        path: &Path,
        given: &Given,
        report: &Arc<dyn Report>,
        cancel: &Cancel,
    ) -> Result<Plan, Error> {
        let profile = Profile::parse_with(read_source(path)?, given).map_err(Error::profile)?;
        Plan::of(profile, None, report, cancel)
    }

    /// As [`Plan::load`], to boot the image that `find` finds for the profile in the base's place, as it is.
    ///
    /// # Errors
    /// The faults found, or that of `find`.
    pub fn load_for(
        find: &FindImage<'_>,
        path: &Path,
        given: &Given,
        report: &Arc<dyn Report>,
        cancel: &Cancel,
    ) -> Result<Plan, Error> {
        let profile = Profile::parse_with(read_source(path)?, given).map_err(Error::profile)?;
        let image = find(&profile)?;
        Plan::of(profile, Some(image), report, cancel)
    }

    /// As [`Plan::load`], for each cell of the profile's matrix that it is `given`; the only one of a
    /// profile without a matrix. `report` gives the report of a cell.
    ///
    /// # Errors
    /// As [`Plan::load`], with the faults of all cells.
    pub fn load_cells(
        path: &Path,
        given: &Given,
        report: impl Fn(&Profile) -> Arc<dyn Report>,
        cancel: &Cancel,
    ) -> Result<Vec<Plan>, Error> {
        let cells = Profile::cells(read_source(path)?, given).map_err(Error::profile)?;
        let mut plans = Vec::with_capacity(cells.len());
        let mut faults: Vec<Fault> = Vec::new();
        for profile in cells {
            let report = report(&profile);
            match Plan::of(profile, None, &report, cancel) {
                Ok(plan) => plans.push(plan),
                Err(mut error) if !error.faults.is_empty() => {
                    let new = std::mem::take(&mut error.faults).into_iter();
                    let new: Vec<Fault> = new.filter(|fault| !faults.contains(fault)).collect();
                    faults.extend(new);
                }
                Err(error) => return Err(error),
            }
        }
        if faults.is_empty() {
            return Ok(plans);
        }
        faults.sort_by_key(|fault| fault.place.order());
        Err(Error::profile(faults))
    }

    /// Looks at everything that `profile` names, and gets the base image when it is not on this host yet, unless an
    /// `image` is there for it.
    fn of(
        profile: Profile,
        image: Option<(PathBuf, Arc<dyn Block>)>,
        report: &Arc<dyn Report>,
        cancel: &Cancel,
    ) -> Result<Plan, Error> {
        for (title, key) in &profile.left_out {
            let text = match *key {
                "when" => format!("`{title}` is left out: its `when` does not hold"),
                key => format!("`{title}` is left out by `{key}`"),
            };
            report.event(Event::Note { stage: Stage::Step, text: &text });
        }
        let mut faults = Vec::new();
        let seed = Texts::read(&profile.seed, &mut faults);
        // What cannot be made is told before the build has begun; the key and the name are the build's.
        if faults.is_empty()
            && let Err(error) = seed::make(&profile, &seed, "", Some(String::new()))
        {
            let place = profile.seed.place.clone();
            faults.push(Fault { message: with_causes(&error), place, hint: None });
        }
        let private_key =
            profile.ssh.private_key.as_ref().and_then(|path| read_key(path, &mut faults));
        check_steps(&profile, &mut faults);
        check_network(&profile, &mut faults);
        let boot = boot_overrides(&profile, &mut faults);
        // A download takes its time: whatever else is at fault is told before it.
        let is_here = matches!(profile.image.source.value, BaseSource::File(_));
        let as_it_is = image.is_some();
        let got = match image {
            Some((path, disk)) => Some((Source::of_file(&path), (disk, Format::Raw))),
            None if is_here || faults.is_empty() => {
                let source = base::get(&profile.image, report, cancel)?;
                open_base(&profile, &source.path, &mut faults).map(|base| (source, base))
            }
            None => None,
        };
        let grown = profile.image.size.as_ref().map(|size| size.value);
        let grown = grown.filter(|_| !as_it_is);
        if let Some(size) = grown.or(got.as_ref().map(|(_, (base, _))| base.len())) {
            check_outputs(&profile, size, &mut faults);
        }
        let (source, (base, base_format)) = match got {
            Some(got) if faults.is_empty() => got,
            _ => {
                faults.sort_by_key(|fault| fault.place.order());
                return Err(Error::profile(faults));
            }
        };
        let virtual_size = grown.unwrap_or(base.len());
        let build_size = profile.image.build_size.as_ref().map_or(virtual_size, |size| size.value);
        let build_size = build_size.clamp(base.len(), virtual_size);
        Ok(Plan {
            profile,
            source,
            base,
            base_format,
            virtual_size,
            build_size,
            seed,
            private_key,
            boot,
            time: source_date_epoch()?,
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
            allow_backing: image.allow_backing.clone(),
            ..OpenOptions::default()
        };
        kvmbake_disk::files(&self.source.path, &options)
            .map_err(|error| Error::input("Cannot read the base image").because(&error))
    }

    /// Compares the base with the profile's checksum, when it has one.
    ///
    /// # Errors
    /// The base cannot be read, or is another.
    pub fn verify_checksum(&self) -> Result<(), Error> {
        let Some(expected) = &self.source.expected else { return Ok(()) };
        let path = &self.source.path;
        let found = checksum::of_file(path, expected.algorithm, &AtomicBool::new(false))
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
        let path = &self.source.path;
        let place = self.profile.image.checksum.as_ref().map(|expected| &expected.place);
        match &self.source.expected {
            Some(expected) if expected != found => Err(Error::profile(vec![Fault {
                message: format!("{} is not the image that the checksum is of", path.display()),
                place: place.unwrap_or(&self.profile.image.source.place).clone(),
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
        discover(Arc::clone(&self.base), &self.boot, &self.profile.image.source.value.to_string())
    }
}

/// Finds the kernel on `disk`, the image called `name` in messages.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn discover(
    disk: Arc<dyn Block>,
    overrides: &BootOverrides,
    name: &str,
) -> Result<Kernel, Error> {
    boot::discover(disk, overrides).map_err(|error| {
        Error::input(format!("Cannot boot {name} directly"))
            .because(&error)
            .hint("[boot] kernel, initrd and cmdline in the profile name them by hand")
    })
}

fn read_source(path: &Path) -> Result<profile::Source, Error> {
    let source = profile::Source::new(path, read_profile(path)?);
    match source.with_includes() {
        (source, faults) if faults.is_empty() => Ok(source),
        (_, faults) => Err(Error::profile(faults)),
    }
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

pub(super) fn read_limited(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
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

fn open_base(
    profile: &Profile,
    path: &Path,
    faults: &mut Vec<Fault>,
) -> Option<(Arc<dyn Block>, Format)> {
    let source = &profile.image.source;
    let refused = |faults: &mut Vec<Fault>, error: kvmbake_disk::Error| {
        let hint = error.hint().map(str::to_string);
        fault(faults, source, with_causes(&error), hint);
    };
    let format = match profile.image.format {
        Some(format) => format,
        None => match kvmbake_disk::probe(path) {
            Ok(format) => format,
            Err(error) => {
                refused(faults, error);
                return None;
            }
        },
    };
    let options = OpenOptions {
        format: Some(format),
        allow_backing: profile.image.allow_backing.clone(),
        ..OpenOptions::default()
    };
    let base = match kvmbake_disk::open(path, &options) {
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

fn read_named(path: &Named<PathBuf>, limit: u64, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    match read_limited(&path.value, limit) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            fault(faults, path, format!("Cannot read {}: {error}", path.value.display()), None);
            None
        }
    }
}

pub(super) fn read_text(text: &Text, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
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
        let action = step::in_guest(&step.action, &step::Means::default());
        if let Action::Upload(uploads) = &step.action
            && profile.ssh.user != "root"
            && uploads.iter().any(|upload| upload.owner.is_some() && !upload.sudo)
        {
            let message =
                format!("`owner` needs root's rights, and `{}` has none", profile.ssh.user);
            let hint = Some("Add `sudo = true`".into());
            faults.push(Fault { message, place: step.place.clone(), hint });
        }
        if let Err(error) = action.check(&CheckContext::default()) {
            let file = step.action.files().first().map(|file| file.place.clone());
            let place = file.unwrap_or_else(|| step.place.clone());
            faults.push(Fault { message: with_causes(&error), place, hint: None });
        }
    }
}

/// Refuses images that could not hold the disk.
fn check_outputs(profile: &Profile, size: u64, faults: &mut Vec<Fault>) {
    for output in &profile.outputs {
        let target = Target::new(output.encoding.clone(), &output.file);
        if let Err(error) = kvmbake_convert::check_fit(&target, size) {
            let place = output.place.clone();
            faults.push(Fault { message: with_causes(&error), place, hint: None });
        }
    }
}

fn check_network(profile: &Profile, faults: &mut Vec<Fault>) {
    for forward in &profile.net.forwards {
        if let net::Target::Folder { path, .. } = &forward.target
            && !path.value.is_dir()
        {
            fault(faults, path, format!("{} is no folder", path.value.display()), None);
        }
    }
    let files = [("log", &profile.net.log), ("pcap", &profile.net.pcap)];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        if !folder_of(&path.value).is_dir() {
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
    // The profile's own words come last, as the last one of a kind counts.
    let mut append = Vec::new();
    if profile.seed.kind == SeedKind::Ignition {
        append.push(IGNITION_PLATFORM);
    }
    if profile.seed.eth0_names {
        append.push(KERNEL_NAMES);
    }
    append.extend(boot.append.as_deref());
    BootOverrides {
        kernel: boot.kernel.as_ref().map(host),
        initrd: boot.initrd.iter().map(host).collect(),
        cmdline: boot.cmdline.clone(),
        append: Some(append.join(" ")).filter(|words| !words.is_empty()),
        ..BootOverrides::default()
    }
}
