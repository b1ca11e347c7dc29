//! `profile.toml`: what to bake. This module knows the keys, their types and defaults, and what
//! can be said about them from the text alone; [`crate::build::plan`] looks at the files they name.

mod condition;
mod given;
pub mod net;
mod output;
mod reader;
mod source;
mod template;
pub mod units;
mod vars;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmbake_convert::Encoding;
use kvmbake_disk::Format as DiskFormat;
use toml::de::DeTable;

pub use given::Given;
pub use net::Net;
pub use reader::nearest;
use reader::{At, Faults, Reader};
pub use source::{Fault, Place, Source};
use vars::Scope;

use crate::checksum::Checksum;
use crate::fetch::Url;
use crate::secret::Secrets;

/// Smallest guest memory that boots a distribution's kernel and initrd.
const MINIMUM_MEMORY: u64 = 128 << 20;
const DEFAULT_MEMORY: u64 = 1 << 30;
const MAXIMUM_CPUS: i64 = 64;
const MAXIMUM_RETRIES: i64 = 100;
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The label of a disk with plain files.
const DEFAULT_LABEL: &str = "SEED";
const DEFAULT_SSH_TIMEOUT: Duration = Duration::from_secs(300);

/// A profile whose text is sound.
#[derive(Debug)]
pub struct Profile {
    /// The text and where it came from.
    pub source: Source,
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
    /// The titles of steps whose `when` does not hold
    pub left_out: Vec<String>,
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

/// One step.
#[derive(Debug)]
pub struct Step {
    /// The title a person sees.
    pub title: String,
    /// What to run.
    pub shell: Shell,
    /// Whether its layer may be kept and used again.
    pub cache: bool,
    /// How old its layer may be to be used again.
    pub max_age: Option<Duration>,
    /// Where the step stands.
    pub place: Place,
}

/// A shell step.
#[derive(Debug)]
pub struct Shell {
    /// The commands or scripts, in order.
    pub run: Run,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Whether to run as root through sudo.
    pub sudo: bool,
    /// The folder to run in.
    pub workdir: Option<String>,
    /// The interpreter of inline commands and of scripts without a `#!` line.
    pub interpreter: Option<String>,
    /// Exit codes that count as success.
    pub expect: Vec<i32>,
    /// How long one command or script may take.
    pub timeout: Option<Duration>,
    /// How often the step is run again when it fails.
    pub retries: u32,
    /// How long to wait before that.
    pub retry_delay: Duration,
}

/// What a shell step runs.
#[derive(Debug)]
pub enum Run {
    /// Commands, one after the other.
    Inline(Vec<String>),
    /// Scripts on the host, one after the other.
    Scripts(Vec<Named<PathBuf>>),
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

    /// Parses `source`, its variables put in as it is `given` them.
    ///
    /// # Errors
    /// Every fault found, in the order of their places; never an empty list.
    pub fn parse_with(source: Source, given: &Given) -> Result<Profile, Vec<Fault>> {
        let text = source.text().to_string();
        let document = DeTable::parse(&text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            vec![Fault {
                message: format!("Not valid TOML: {}", error.message()),
                place: source.place(&span),
                hint: None,
            }]
        })?;
        let faults = Faults::new(&source);
        let scope = Scope::new(document.get_ref(), folder_of(&source), given);
        scope.check(&faults);
        let context = Context { source: &source, secrets: &given.secrets };
        let root = Reader::new(document.get_ref(), 0..0, "the profile", &faults);
        let root = root.with_scope(Some(&scope));
        if root.value("vars").is_some_and(|vars| vars.get_ref().as_table().is_none()) {
            root.table("vars");
        }
        let parts = context.profile(&root);
        root.finish();
        let faults = faults.into_sorted();
        match parts {
            Some(parts) if faults.is_empty() => {
                Ok(parts.into_profile(source, given.secrets.clone()))
            }
            _ => Err(faults),
        }
    }

    /// Returns the folder that relative paths start from.
    pub fn folder(&self) -> &Path {
        folder_of(&self.source)
    }
}

fn folder_of(source: &Source) -> &Path {
    source.path().parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A profile but for its text, which is borrowed while it is read.
struct Parts {
    image: Image,
    machine: Machine,
    boot: Boot,
    seed: Seed,
    ssh: Ssh,
    net: Net,
    cache: Cache,
    steps: Vec<Step>,
    left_out: Vec<String>,
    outputs: Vec<Output>,
}

impl Parts {
    fn into_profile(self, source: Source, secrets: Secrets) -> Profile {
        let Parts { image, machine, boot, seed, ssh, net, cache, steps, left_out, outputs } = self;
        Profile {
            source,
            image,
            machine,
            boot,
            seed,
            ssh,
            net,
            cache,
            steps,
            left_out,
            outputs,
            secrets,
        }
    }
}

/// What reading needs besides the table at hand.
struct Context<'s> {
    source: &'s Source,
    secrets: &'s Secrets,
}

impl Context<'_> {
    fn profile(&self, root: &Reader<'_, '_>) -> Option<Parts> {
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
        let (mut steps, mut left_out) = (Vec::new(), Vec::new());
        for (step, held) in root.tables("step").into_iter().filter_map(|one| self.step(one)) {
            match held {
                true => steps.push(step),
                false => left_out.push(step.title),
            }
        }
        let image = image.flatten();
        let outputs = self.outputs(root, image.as_ref().map_or("image", |image| &image.name));
        let image = image?;
        let ssh = ssh?;
        Some(Parts { image, machine, boot, seed, ssh, net, cache, steps, left_out, outputs })
    }

    fn named<T>(&self, at: At<T>) -> Named<T> {
        Named { value: at.value, place: self.source.place(&at.span) }
    }

    fn path(&self, at: At<String>) -> Named<PathBuf> {
        let value = folder_of(self.source).join(&at.value);
        Named { value, place: self.source.place(&at.span) }
    }

    fn image(&self, reader: Reader<'_, '_>) -> Option<Image> {
        let name = reader.required_string("name");
        let name = name.and_then(|name| self.file_name(&reader, "name", name));
        let source = self.base_source(&reader);
        let format = reader.parsed("format", |text| {
            text.parse().map_err(|_| format!("`{text}` is no base format; known are qcow2 and raw"))
        });
        let checksum = reader.parsed("checksum", |text| self.expected(text));
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
        if let Some(size) = &size
            && size.value % 512 != 0
        {
            reader.fault(&size.span, "`size` must be a multiple of 512 bytes");
        }
        let allow_backing = reader.strings("allow_backing").unwrap_or_default();
        reader.finish();
        Some(Image {
            name: name?,
            source: self.named(source?),
            format: format.map(|at| at.value),
            checksum: checksum.map(|at| self.named(at)),
            size: size.map(|at| self.named(at)),
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
            let path = folder_of(self.source).join(&only.value);
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
    fn expected(&self, text: &str) -> Result<Expected, String> {
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
            return Ok(Expected::ListFile(folder_of(self.source).join(text)));
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
                timeout: DEFAULT_SSH_TIMEOUT,
            });
        };
        let user = reader.string("user").map_or_else(|| "root".to_string(), |at| at.value);
        let ssh = Ssh {
            user,
            private_key: reader.string("private_key").map(|at| self.path(at)),
            timeout: reader.duration("timeout").map_or(DEFAULT_SSH_TIMEOUT, |at| at.value),
        };
        reader.finish();
        Some(ssh)
    }

    /// Reads a step, and whether it is to be done.
    fn step(&self, reader: Reader<'_, '_>) -> Option<(Step, bool)> {
        let name = reader.string("name");
        let value = reader.value("shell");
        let shell = match value {
            None => {
                reader.fault_with_hint(&reader.span(), "The step does nothing", "Give it `shell`");
                None
            }
            Some(value) => match reader.table_of("shell", value) {
                Some(table) => self.shell(table),
                None => reader
                    .strings_of("shell", value)
                    .and_then(|commands| inline(&reader, commands, &value.span()).map(Shell::of)),
            },
        };
        let place = self.source.place(&value.map_or(reader.span(), |value| value.span()));
        let cache = reader.bool("cache").unwrap_or(true);
        let max_age = reader.duration("max_age");
        if let (Some(max_age), false) = (&max_age, cache) {
            reader.fault(&max_age.span, "A step with `cache = false` has no `max_age`");
        }
        let held = reader.condition("when").unwrap_or(true);
        reader.finish();
        let shell = shell?;
        let title = name.map_or_else(|| shell.title(self.secrets), |at| at.value);
        let title = self.secrets.redact(&title).into_owned();
        let max_age = max_age.map(|at| at.value);
        Some((Step { title, shell, cache, max_age, place }, held))
    }

    fn shell(&self, reader: Reader<'_, '_>) -> Option<Shell> {
        let commands = reader.strings("inline");
        let script = reader.string("script").map(|at| vec![at]);
        let scripts = reader.strings("scripts");
        let given = [commands.is_some(), script.is_some(), scripts.is_some()];
        let run = match (commands, script.or(scripts)) {
            (Some(commands), None) => inline(&reader, commands, &reader.span()),
            (None, Some(paths)) if given.iter().filter(|is| **is).count() == 1 => {
                Some(Run::Scripts(paths.into_iter().map(|at| self.path(at)).collect()))
            }
            _ => {
                reader.fault(
                    &reader.span(),
                    "`shell` needs exactly one of `inline`, `script` and `scripts`",
                );
                None
            }
        };
        let env = reader.string_map("env").into_iter();
        let env: Vec<(String, String)> = env.map(|(name, at)| (name, at.value)).collect();
        for (name, _) in &env {
            let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !name.starts_with(|c: char| c.is_ascii_digit());
            if name.is_empty() || !valid {
                reader.fault(&reader.span(), format!("`{name}` in `env` is no name of a variable"));
            }
        }
        let shell = Shell {
            run: run.unwrap_or(Run::Inline(Vec::new())),
            env,
            sudo: reader.bool("sudo").unwrap_or(false),
            workdir: reader.string("workdir").map(|at| at.value),
            interpreter: reader.string("shell").map(|at| at.value),
            expect: reader.integers("expect", 0..=255).map_or_else(
                || vec![0],
                |codes| codes.into_iter().map(|code| code as i32).collect(),
            ),
            timeout: reader.duration("timeout").map(|at| at.value),
            retries: reader
                .integer("retries", 0..=MAXIMUM_RETRIES)
                .and_then(|at| u32::try_from(at.value).ok())
                .unwrap_or(0),
            retry_delay: reader.duration("retry_delay").map_or(DEFAULT_RETRY_DELAY, |at| at.value),
        };
        reader.finish();
        Some(shell)
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

fn inline(
    reader: &Reader<'_, '_>,
    commands: Vec<At<String>>,
    span: &std::ops::Range<usize>,
) -> Option<Run> {
    if commands.iter().all(|command| command.value.trim().is_empty()) {
        reader.fault(span, "There is no command to run");
        return None;
    }
    Some(Run::Inline(commands.into_iter().map(|at| at.value).collect()))
}

impl Shell {
    /// A step of inline commands with every other setting at its default.
    fn of(run: Run) -> Shell {
        let expect = vec![0];
        Shell {
            run,
            env: Vec::new(),
            sudo: false,
            workdir: None,
            interpreter: None,
            expect,
            timeout: None,
            retries: 0,
            retry_delay: DEFAULT_RETRY_DELAY,
        }
    }

    /// What to call the step when it has no name.
    fn title(&self, secrets: &Secrets) -> String {
        match &self.run {
            Run::Inline(commands) => {
                let first = commands.iter().find(|command| !command.trim().is_empty());
                let first = first.map_or("", |command| command.trim().lines().next().unwrap_or(""));
                let more = if commands.len() > 1 {
                    format!(" (+{})", commands.len() - 1)
                } else {
                    String::new()
                };
                // Hidden before it is cut, so that no part of a secret stays.
                format!("{}{more}", shortened(&secrets.redact(first), 60))
            }
            Run::Scripts(paths) => {
                let name = |path: &Named<PathBuf>| {
                    path.value.file_name().unwrap_or_default().to_string_lossy().into_owned()
                };
                paths.iter().map(name).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
