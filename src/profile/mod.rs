//! `profile.toml`: what to bake. This module knows the keys, their types and defaults, and what
//! can be said about them from the text alone; [`crate::build::plan`] looks at the files they name.

pub mod net;
mod reader;
mod source;
pub mod units;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmbake_convert::Format as OutputFormat;
use kvmbake_disk::Format as DiskFormat;
use toml::de::DeTable;

pub use net::Net;
pub use reader::nearest;
use reader::{At, Faults, Reader};
pub use source::{Fault, Place, Source};

use crate::checksum::Checksum;

/// Smallest guest memory that boots a distribution's kernel and initrd.
const MINIMUM_MEMORY: u64 = 128 << 20;
const DEFAULT_MEMORY: u64 = 1 << 30;
const MAXIMUM_CPUS: i64 = 64;
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
    /// `[seed]`; `None` for a seed of kind "none"
    pub seed: Option<NoCloud>,
    /// `[ssh]`
    pub ssh: Ssh,
    /// `[net]`
    pub net: Net,
    /// `[cache]`
    pub cache: Cache,
    /// `[[step]]`
    pub steps: Vec<Step>,
    /// `[[output]]`
    pub outputs: Vec<Output>,
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
#[derive(Debug)]
pub struct Image {
    /// The name that outputs carry.
    pub name: String,
    /// The base image, resolved against the profile's folder.
    pub source: Named<PathBuf>,
    /// The base's format, when it is pinned.
    pub format: Option<DiskFormat>,
    /// The base's expected digest.
    pub checksum: Option<Named<Checksum>>,
    /// The virtual size to grow to, in bytes.
    pub size: Option<Named<u64>>,
    /// Folders below which the base may name other files.
    pub allow_backing: Vec<PathBuf>,
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

/// First-boot configuration for cloud-init's NoCloud.
#[derive(Debug, Default)]
pub struct NoCloud {
    /// The guest's host name.
    pub hostname: Option<String>,
    /// The user-data.
    pub user_data: Option<Text>,
    /// The network-config.
    pub network_config: Option<Text>,
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
    /// Its format.
    pub format: OutputFormat,
    /// Its file name.
    pub file: String,
    /// Where it stands.
    pub place: Place,
}

impl Profile {
    /// Parses `source`.
    ///
    /// # Errors
    /// Every fault found, in the order of their places; never an empty list.
    pub fn parse(source: Source) -> Result<Profile, Vec<Fault>> {
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
        let context = Context { source: &source };
        let root = Reader::new(document.get_ref(), 0..0, "the profile", &faults);
        let parts = context.profile(&root);
        root.finish();
        let faults = faults.into_sorted();
        match parts {
            Some(parts) if faults.is_empty() => Ok(parts.into_profile(source)),
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
    seed: Option<NoCloud>,
    ssh: Ssh,
    net: Net,
    cache: Cache,
    steps: Vec<Step>,
    outputs: Vec<Output>,
}

impl Parts {
    fn into_profile(self, source: Source) -> Profile {
        let Parts { image, machine, boot, seed, ssh, net, cache, steps, outputs } = self;
        Profile { source, image, machine, boot, seed, ssh, net, cache, steps, outputs }
    }
}

/// What reading needs besides the table at hand.
struct Context<'s> {
    source: &'s Source,
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
        let steps =
            root.tables("step").into_iter().filter_map(|reader| self.step(reader)).collect();
        let image = image.flatten();
        let outputs = self.outputs(root, image.as_ref().map_or("image", |image| &image.name));
        let image = image?;
        Some(Parts { image, machine, boot, seed, ssh: ssh?, net, cache, steps, outputs })
    }

    fn named<T>(&self, at: At<T>) -> Named<T> {
        Named { value: at.value, place: self.source.place(&at.span) }
    }

    fn path(&self, at: At<String>) -> Named<PathBuf> {
        let value = folder_of(self.source).join(&at.value);
        Named { value, place: self.source.place(&at.span) }
    }

    fn image(&self, reader: Reader<'_, '_>) -> Option<Image> {
        let name = reader.required_string("name").and_then(|name| file_name(&reader, "name", name));
        let source = reader.required_string("source");
        let format = reader.parsed("format", |text| {
            text.parse().map_err(|_| format!("`{text}` is no base format; known are qcow2 and raw"))
        });
        let checksum = reader.parsed("checksum", str::parse);
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
            source: self.path(source?),
            format: format.map(|at| at.value),
            checksum: checksum.map(|at| self.named(at)),
            size: size.map(|at| self.named(at)),
            allow_backing: allow_backing.into_iter().map(|at| self.path(at).value).collect(),
        })
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

    fn seed(&self, reader: Option<Reader<'_, '_>>) -> Option<NoCloud> {
        let Some(reader) = reader else { return Some(NoCloud::default()) };
        let kind = reader.required_string("kind");
        let seed = NoCloud {
            hostname: reader.string("hostname").map(|at| at.value),
            user_data: reader.string("user_data").map(|at| self.text(at)),
            network_config: reader.string("network_config").map(|at| self.text(at)),
        };
        let seed = match kind {
            Some(kind) if kind.value == "none" => {
                if !matches!(
                    seed,
                    NoCloud { hostname: None, user_data: None, network_config: None }
                ) {
                    reader.fault(&kind.span, "A seed of kind \"none\" takes no other key");
                }
                None
            }
            Some(kind) if kind.value != "nocloud" => {
                let message =
                    format!("`{}` is no kind of seed; known are nocloud and none", kind.value);
                reader.fault(&kind.span, message);
                None
            }
            _ => Some(seed),
        };
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

    fn step(&self, reader: Reader<'_, '_>) -> Option<Step> {
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
        reader.finish();
        let shell = shell?;
        let title = name.map_or_else(|| shell.title(), |at| at.value);
        Some(Step { title, shell, cache, max_age: max_age.map(|at| at.value), place })
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
        let env = reader.string_map("env");
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
        };
        reader.finish();
        Some(shell)
    }

    fn outputs(&self, root: &Reader<'_, '_>, name: &str) -> Vec<Output> {
        let mut outputs: Vec<Output> = Vec::new();
        for reader in root.tables("output") {
            let format = reader.required_string("format");
            let file = reader.string("name").and_then(|at| file_name(&reader, "name", at));
            let span = format.as_ref().map_or(reader.span(), |at| at.span.clone());
            if let Some(format) = format {
                match format.value.parse::<OutputFormat>() {
                    Ok(format) => {
                        let file = file.unwrap_or_else(|| format!("{name}.{}", format.extension()));
                        if outputs.iter().any(|other| other.file == file) {
                            let message = format!("Two outputs are called `{file}`");
                            reader.fault_with_hint(
                                &span,
                                message,
                                "Give one of them another `name`",
                            );
                        }
                        outputs.push(Output { format, file, place: self.source.place(&span) });
                    }
                    Err(_) => {
                        let known = ["qcow2", "raw", "vdi", "vhd", "vhdx", "vmdk", "ova"];
                        let hint = nearest(&format.value, known).map_or_else(
                            || format!("Known are {}", known.join(", ")),
                            |near| format!("Did you mean `{near}`?"),
                        );
                        let message = format!("`{}` is no output format", format.value);
                        reader.fault_with_hint(&span, message, hint);
                    }
                }
            }
            reader.finish();
        }
        if root.value("output").is_none() {
            root.fault_with_hint(
                &(0..0),
                "The profile has no [[output]]",
                "Add one with format = \"qcow2\"",
            );
        }
        outputs
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

/// A name that becomes a file's: nothing that leads elsewhere.
fn file_name(reader: &Reader<'_, '_>, key: &str, name: At<String>) -> Option<String> {
    let plain = name.value.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
    if name.value.is_empty()
        || !plain
        || name.value.starts_with(['.', '-'])
        || name.value.len() > 128
    {
        let message = format!("`{key}` must be a plain file name of letters, digits and . _ - +");
        reader.fault(&name.span, message);
        return None;
    }
    Some(name.value)
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
        }
    }

    /// What to call the step when it has no name.
    fn title(&self) -> String {
        match &self.run {
            Run::Inline(commands) => {
                let first = commands.iter().find(|command| !command.trim().is_empty());
                let first = first.map_or("", |command| command.trim().lines().next().unwrap_or(""));
                let more = if commands.len() > 1 {
                    format!(" (+{})", commands.len() - 1)
                } else {
                    String::new()
                };
                format!("{}{more}", shortened(first, 60))
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
