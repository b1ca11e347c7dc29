//! `profile.toml`: what to bake. This module knows the keys, their types and defaults, and what
//! can be said about them from the text alone; [`crate::build::plan`] looks at the files they name.

mod condition;
mod given;
mod include;
mod lan;
mod matrix;
pub mod net;
mod output;
mod reader;
pub mod schema;
mod source;
mod step;
mod template;
mod test;
pub mod units;
mod vars;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmbake_convert::Encoding;
use kvmbake_disk::Format as DiskFormat;
use kvmbake_provision::session::SudoPassword;
use toml::de::DeTable;

pub use given::{Given, read as read_bounded};
pub use matrix::{Cell, shortened};
use matrix::{Matrix, Variant};
pub use net::Net;
pub use reader::nearest;
use reader::{At, Faults, Reader};
pub use source::{Fault, Place, Source, absolute, folder_of};
pub use step::{
    Action, Ansible, AnsibleLocal, Breakpoint, Download, HostCommand, HostPath, OnError, Playbook,
    Run, Shell, Step, Upload,
};
pub use template::is_name as is_variable_name;
pub use test::Test;
use vars::Scope;

use crate::checksum::Checksum;
use crate::fetch::Url;
use crate::secret::Secrets;

/// Smallest guest memory that boots a distribution's kernel and initrd.
const MINIMUM_MEMORY: u64 = 128 << 20;
const DEFAULT_MEMORY: u64 = 1 << 30;
const MAXIMUM_CPUS: i64 = 64;
/// The label of a disk with plain files.
const DEFAULT_LABEL: &str = "SEED";
const DEFAULT_SSH_TIMEOUT: Duration = Duration::from_secs(300);

/// A profile whose text is sound.
#[derive(Debug)]
pub struct Profile {
    /// The text and where it came from.
    pub source: Source,
    /// The cell of `[matrix]` that it is for
    pub cell: Option<Cell>,
    /// `[image]`
    pub image: Image,
    /// `[machine]`
    pub machine: Machine,
    /// `[boot]`
    pub boot: Boot,
    /// `[seed]`
    pub seed: Seed,
    /// `[ssh]`
    pub ssh: Ssh,
    /// `[net]`
    pub net: Net,
    /// `[cache]`
    pub cache: Cache,
    /// `[[step]]`, but for those that are left out
    pub steps: Vec<Step>,
    /// The steps that are left out: their titles, and the keys that leave them out
    pub left_out: Vec<(String, &'static str)>,
    /// Where to stop between steps
    pub breakpoints: Vec<Breakpoint>,
    /// `[[test]]`
    pub tests: Vec<Test>,
    /// `[[output]]`
    pub outputs: Vec<Output>,
    /// The secrets among its variables.
    pub secrets: Secrets,
}

/// A value that names a file, and the place to blame when the file is at fault.
#[derive(Debug, Clone)]
pub struct Named<T> {
    /// The value.
    pub value: T,
    /// Where it stands in the profile.
    pub place: Place,
}

/// The base image and what becomes of it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name that outputs carry.
    pub name: String,
    /// Where the base image is.
    pub source: Named<BaseSource>,
    /// The base's format, when it is pinned.
    pub format: Option<DiskFormat>,
    /// What the base's checksum must be.
    pub checksum: Option<Named<Expected>>,
    /// The virtual size to grow to, in bytes.
    pub size: Option<Named<u64>>,
    /// The virtual size during the build, in bytes; it grows to `size` when it is sealed.
    pub build_size: Option<Named<u64>>,
    /// Folders below which the base may name other files.
    pub allow_backing: Vec<PathBuf>,
}

/// Where a base image is.
#[derive(Debug, Clone)]
pub enum BaseSource {
    /// On this host, resolved against the profile's folder.
    File(PathBuf),
    /// On a server, with its mirrors; never empty.
    Urls(Vec<Url>),
}

impl fmt::Display for BaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BaseSource::File(path) => fmt::Display::fmt(&path.display(), f),
            BaseSource::Urls(urls) => urls.first().map_or(Ok(()), |url| fmt::Display::fmt(url, f)),
        }
    }
}

/// What the profile says of the base's checksum.
#[derive(Debug, Clone)]
pub enum Expected {
    /// The checksum itself.
    Checksum(Checksum),
    /// A list of checksums on this host.
    ListFile(PathBuf),
    /// A list of checksums on a server.
    ListUrl(Url),
    /// That none is known: whatever comes is taken.
    Unchecked,
}

/// The machine as the guest sees it.
#[derive(Debug)]
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in bytes, whole MiB.
    pub memory: u64,
}

/// What to boot instead of what the image's own boot loader would.
#[derive(Debug, Default)]
pub struct Boot {
    /// A kernel on the host.
    pub kernel: Option<Named<PathBuf>>,
    /// An initrd on the host.
    pub initrd: Option<Named<PathBuf>>,
    /// The whole kernel command line.
    pub cmdline: Option<String>,
    /// Words added to the command line.
    pub append: Option<String>,
}

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
    const ALL: [SeedKind; 5] = [
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

/// How the guest is reached.
#[derive(Debug)]
pub struct Ssh {
    /// The login.
    pub user: String,
    /// A private key in OpenSSH form; one is made for the build when absent.
    pub private_key: Option<Named<PathBuf>>,
    /// What sudo asks the login for.
    pub sudo_password: Option<SudoPassword>,
    /// How long the guest may take until its first command runs.
    pub timeout: Duration,
}

/// What is kept between builds.
#[derive(Debug)]
pub struct Cache {
    /// Whether layers are kept and used at all.
    pub enabled: bool,
    /// Whether layers hold the machine's memory besides its disk.
    pub memory: bool,
}

/// One image to write.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its format, and how to write it.
    pub encoding: Encoding,
    /// Its file name.
    pub file: String,
    /// Where it stands.
    pub place: Place,
}

impl Profile {
    /// Parses `source`, its variables put in as far as the profile says what they are.
    ///
    /// # Errors
    /// As [`Profile::parse_with`].
    pub fn parse(source: Source) -> Result<Profile, Vec<Fault>> {
        Profile::parse_with(source, &Given::default())
    }

    /// Parses `source`, its variables put in as it is `given` them. Of a profile with a matrix one cell
    /// must be asked for.
    ///
    /// # Errors
    /// As [`Profile::cells`]; the profile describes several images.
    pub fn parse_with(source: Source, given: &Given) -> Result<Profile, Vec<Fault>> {
        let mut cells = Profile::cells(source, given)?;
        let count = cells.len();
        match cells.pop() {
            Some(profile) if count == 1 => Ok(profile),
            last => {
                let names = cells.iter().chain(&last).filter_map(|one| one.cell.as_ref());
                let names: Vec<String> = names.map(Cell::name).collect();
                let place = last.map(|profile| profile.source.place(&(0..0)));
                let place = place.unwrap_or_else(|| Source::new("", "").place(&(0..0)));
                Err(vec![Fault {
                    message: format!("The profile's [matrix] has {count} cells, and one is needed"),
                    place,
                    hint: Some(format!("Choose by --cell: {}", shortened(&names))),
                }])
            }
        }
    }

    /// Parses `source` once for each cell of its matrix that it is `given`; once for a profile without.
    ///
    /// # Errors
    /// Every fault found, in the order of their places; never an empty list.
    pub fn cells(source: Source, given: &Given) -> Result<Vec<Profile>, Vec<Fault>> {
        let texts = source.texts();
        let root = source.parse(&texts)?;
        let faults = Faults::new(&source);
        let scope = |cell| Scope::new(&root, source.folder(), given, cell);
        let matrix = Matrix::read(&root, given, scope, &faults);
        let mut told = faults.into_sorted();
        if !told.is_empty() {
            return Err(told);
        }
        let mut cells = Vec::new();
        for variant in matrix.chosen(given) {
            let scope = scope(variant.cell.clone());
            match Profile::cell(&source, &root, &scope, &matrix, variant, given) {
                Ok(profile) => cells.push(profile),
                // What is wrong in all cells is told once.
                Err(faults) => {
                    let new = faults.into_iter().filter(|fault| !told.contains(fault));
                    told.extend(new.collect::<Vec<_>>());
                }
            }
        }
        if !told.is_empty() {
            told.sort_by_key(|fault| fault.place.order());
            return Err(told);
        }
        Ok(cells)
    }

    fn cell(
        source: &Source,
        root: &DeTable<'_>,
        scope: &Scope<'_>,
        matrix: &Matrix,
        variant: &Variant,
        given: &Given,
    ) -> Result<Profile, Vec<Fault>> {
        let faults = Faults::new(source);
        scope.check(&faults);
        let context = Context { source, matrix, variant, secrets: &given.secrets };
        let root = Reader::new(root, 0..0, "the profile", &faults).with_scope(Some(scope));
        if root.value("vars").is_some_and(|vars| vars.get_ref().as_table().is_none()) {
            root.table("vars");
        }
        // Both were read before all else.
        root.value("include");
        root.value("matrix");
        let profile = context.profile(&root);
        root.finish();
        let faults = faults.into_sorted();
        match profile {
            Some(profile) if faults.is_empty() => Ok(profile),
            _ => Err(faults),
        }
    }

    /// Returns the folder that relative paths start from.
    pub fn folder(&self) -> &Path {
        self.source.folder()
    }

    /// Returns the path by which its last run is remembered, which each cell has for itself.
    pub fn identity(&self) -> PathBuf {
        let mut path = self.source.path().as_os_str().to_owned();
        if let Some(cell) = &self.cell {
            path.push(format!("#{}", cell.name()));
        }
        path.into()
    }
}

/// What reading needs besides the table at hand.
struct Context<'s> {
    source: &'s Source,
    matrix: &'s Matrix,
    variant: &'s Variant,
    secrets: &'s Secrets,
}

impl Context<'_> {
    fn profile(&self, root: &Reader<'_, '_>) -> Option<Profile> {
        let image = root.table("image").map(|reader| self.image(reader));
        if root.value("image").is_none() {
            root.fault_with_hint(
                &(0..0),
                "The profile has no [image]",
                "`name` and `source` are needed",
            );
        }
        let machine = self.machine(root.table("machine"));
        let boot = root.table("boot").map(|reader| self.boot(reader)).unwrap_or_default();
        let seed = self.seed(root.table("seed"));
        let ssh = self.ssh(root.table("ssh"));
        let net = self.net(root.table("net"));
        let cache = cache(root.table("cache"));
        let (mut steps, mut left_out, mut breakpoints) = (Vec::new(), Vec::new(), Vec::new());
        for table in root.tables("step") {
            if table.value(step::BREAKPOINT).is_some() {
                breakpoints.extend(self.breakpoint(table, steps.len()));
                continue;
            }
            match self.step(table) {
                Some((step, Ok(()))) => steps.push(step),
                Some((step, Err(key))) => left_out.push((step.title, key)),
                None => {}
            }
        }
        let tests = root.tables("test").into_iter();
        let tests = tests.filter_map(|one| self.test(one, &net.lan)).collect();
        let image = image.flatten();
        let outputs = self.outputs(root, image.as_ref().map_or("image", |image| &image.name));
        let image = image?;
        let ssh = ssh?;
        Some(Profile {
            source: self.source.clone(),
            cell: self.variant.cell.clone(),
            secrets: self.secrets.clone(),
            image,
            machine,
            boot,
            seed,
            ssh,
            net,
            cache,
            steps,
            left_out,
            breakpoints,
            tests,
            outputs,
        })
    }

    fn named<T>(&self, at: At<T>) -> Named<T> {
        Named { value: at.value, place: self.source.place(&at.span) }
    }

    fn path(&self, at: At<String>) -> Named<PathBuf> {
        let value = self.source.folder_at(&at.span).join(&at.value);
        Named { value, place: self.source.place(&at.span) }
    }

    fn image(&self, reader: Reader<'_, '_>) -> Option<Image> {
        let name = reader
            .required_string("name")
            .map(|At { value, span }| At { value: self.matrix.name_of(self.variant, value), span });
        let name = name.and_then(|name| self.file_name(&reader, "name", name));
        let source = self.base_source(&reader);
        let format = reader.parsed("format", |text| {
            text.parse().map_err(|_| format!("`{text}` is no base format; known are qcow2 and raw"))
        });
        let span = reader.value("checksum").map_or(0..0, |value| value.span());
        let folder = self.source.folder_at(&span);
        let checksum = reader.parsed("checksum", |text| self.expected(text, folder));
        if let (Some(source), None) = (&source, reader.value("checksum"))
            && matches!(source.value, BaseSource::Urls(_))
        {
            reader.fault_with_hint(
                &source.span,
                "A `source` that is downloaded needs a `checksum`",
                "Give the digest (\"sha256:…\"), or the URL of a list such as SHA256SUMS; \
                 `checksum = \"none\"` takes whatever comes",
            );
        }
        let size = reader.size("size");
        let build_size = reader.size("build_size");
        for (key, size) in [("size", &size), ("build_size", &build_size)] {
            if let Some(size) = size
                && size.value % 512 != 0
            {
                reader.fault(&size.span, format!("`{key}` must be a multiple of 512 bytes"));
            }
        }
        if let (Some(size), Some(build_size)) = (&size, &build_size)
            && build_size.value > size.value
        {
            reader.fault(&build_size.span, "`build_size` is larger than `size`");
        }
        let shared = self.variant.build_size.zip(size.as_ref());
        let shared = shared.map(|(value, size)| At { value, span: size.span.clone() });
        let build_size = build_size.or(shared);
        let allow_backing = reader.strings("allow_backing").unwrap_or_default();
        reader.finish();
        Some(Image {
            name: name?,
            source: self.named(source?),
            format: format.map(|at| at.value),
            checksum: checksum.map(|at| self.named(at)),
            size: size.map(|at| self.named(at)),
            build_size: build_size.map(|at| self.named(at)),
            allow_backing: allow_backing.into_iter().map(|at| self.path(at).value).collect(),
        })
    }

    /// A path, a URL, or a list of URLs of which any will do.
    fn base_source(&self, reader: &Reader<'_, '_>) -> Option<At<BaseSource>> {
        if reader.value("source").is_none() {
            reader.fault(&reader.span(), "[image] has no `source`");
        }
        let texts = reader.strings("source")?;
        let span = match (texts.first(), texts.last()) {
            (Some(first), Some(last)) => first.span.start..last.span.end,
            _ => {
                reader.fault(&reader.span(), "`source` in [image] is an empty list");
                return None;
            }
        };
        if let [only] = &texts[..]
            && !Url::is_meant(&only.value)
        {
            let path = self.source.folder_at(&only.span).join(&only.value);
            return Some(At { value: BaseSource::File(path), span });
        }
        let mut urls = Vec::with_capacity(texts.len());
        for text in &texts {
            if !Url::is_meant(&text.value) {
                reader
                    .fault(&text.span, format!("`{}` in a list of mirrors is no URL", text.value));
                return None;
            }
            match text.value.parse() {
                Ok(url) => urls.push(self.hidden(url)),
                Err(message) => {
                    reader.fault(&text.span, message);
                    return None;
                }
            }
        }
        Some(At { value: BaseSource::Urls(urls), span })
    }

    /// Hides the password of a URL, which the profile itself may hold.
    fn hidden(&self, url: Url) -> Url {
        if let Some(password) = url.password() {
            self.secrets.add(password);
        }
        url
    }

    /// What stands before a colon is an algorithm, unless a path or a URL begins so.
    fn expected(&self, text: &str, folder: &Path) -> Result<Expected, String> {
        if text == "none" {
            return Ok(Expected::Unchecked);
        }
        if Url::is_meant(text) {
            return text.parse().map(|url| Expected::ListUrl(self.hidden(url)));
        }
        let is_path = match text.split_once(':') {
            Some((algorithm, _)) => algorithm.contains('/'),
            // A bare digest lacks its algorithm; it is no file's name.
            None => Checksum::from_digits(text).is_none(),
        };
        if is_path {
            return Ok(Expected::ListFile(folder.join(text)));
        }
        text.parse().map(Expected::Checksum)
    }

    /// A name that becomes a file's: nothing that leads elsewhere.
    fn file_name(&self, reader: &Reader<'_, '_>, key: &str, name: At<String>) -> Option<String> {
        let plain = name.value.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
        if name.value.is_empty()
            || !plain
            || name.value.starts_with(['.', '-'])
            || name.value.len() > 128
        {
            let message =
                format!("`{key}` must be a plain file name of letters, digits and . _ - +");
            reader.fault(&name.span, message);
            return None;
        }
        if self.secrets.within(&name.value) {
            reader.fault(
                &name.span,
                format!("`{key}` holds a secret, which files would be called by"),
            );
            return None;
        }
        Some(name.value)
    }

    fn machine(&self, reader: Option<Reader<'_, '_>>) -> Machine {
        let mut machine = Machine { cpus: 2, memory: DEFAULT_MEMORY };
        let Some(reader) = reader else { return machine };
        if let Some(cpus) = reader.integer("cpus", 1..=MAXIMUM_CPUS) {
            machine.cpus = cpus.value as u8;
        }
        if let Some(memory) = reader.size("memory") {
            if memory.value < MINIMUM_MEMORY || memory.value % (1 << 20) != 0 {
                reader.fault(&memory.span, "`memory` must be whole MiB and at least 128M");
            }
            machine.memory = memory.value;
        }
        reader.finish();
        machine
    }

    fn boot(&self, reader: Reader<'_, '_>) -> Boot {
        let kernel = reader.string("kernel").map(|at| self.path(at));
        let initrd = reader.string("initrd");
        if let (Some(initrd), None) = (&initrd, &kernel) {
            reader.fault_with_hint(
                &initrd.span,
                "`initrd` needs `kernel`",
                "Name both, or neither",
            );
        }
        let boot = Boot {
            kernel,
            initrd: initrd.map(|at| self.path(at)),
            cmdline: reader.string("cmdline").map(|at| at.value),
            append: reader.string("append").map(|at| at.value),
        };
        reader.finish();
        boot
    }

    fn seed(&self, reader: Option<Reader<'_, '_>>) -> Seed {
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
    fn text(&self, at: At<String>) -> Text {
        if at.value.contains('\n') || at.value.starts_with('#') {
            Text::Inline(at.value)
        } else {
            Text::File(self.path(at))
        }
    }

    fn ssh(&self, reader: Option<Reader<'_, '_>>) -> Option<Ssh> {
        let Some(reader) = reader else {
            return Some(Ssh {
                user: "root".into(),
                private_key: None,
                sudo_password: None,
                timeout: DEFAULT_SSH_TIMEOUT,
            });
        };
        let user = reader.string("user").map_or_else(|| "root".to_string(), |at| at.value);
        let ssh = Ssh {
            user,
            private_key: reader.string("private_key").map(|at| self.path(at)),
            sudo_password: reader.string("sudo_password").and_then(|at| {
                self.secrets.add(&at.value);
                let password = SudoPassword::new(at.value);
                if password.is_none() {
                    reader.fault(&at.span, "`sudo_password` must be one line of text");
                }
                password
            }),
            timeout: reader.duration("timeout").map_or(DEFAULT_SSH_TIMEOUT, |at| at.value),
        };
        reader.finish();
        Some(ssh)
    }
}

fn cache(reader: Option<Reader<'_, '_>>) -> Cache {
    let mut cache = Cache { enabled: true, memory: true };
    let Some(reader) = reader else { return cache };
    cache.enabled = reader.bool("enabled").unwrap_or(cache.enabled);
    cache.memory = reader.bool("memory").unwrap_or(cache.memory);
    reader.finish();
    cache
}

#[cfg(test)]
mod tests;
