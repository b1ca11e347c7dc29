//! `profile.toml`: what to bake. This module knows the keys, their types and defaults, and what
//! can be said about them from the text alone; [`crate::build::plan`] looks at the files they name.

mod condition;
mod faults;
mod given;
mod image;
mod include;
mod lan;
mod matrix;
pub mod net;
mod output;
mod reader;
pub mod schema;
mod seed;
mod source;
mod step;
mod template;
mod test;
pub mod units;
mod vars;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmbake_convert::Encoding;
use kvmbake_provision::session::SudoPassword;
use toml::de::DeTable;

use faults::Faults;
pub use given::{Given, read as read_bounded};
pub use image::{BaseSource, Expected, Image};
pub use matrix::{Cell, shortened};
use matrix::{Matrix, Variant};
pub use net::Net;
pub use reader::nearest;
use reader::{At, Reader};
pub use seed::{Seed, SeedKind, Text};
pub use source::{Fault, Place, Source, absolute, folder_of};
pub use step::{
    Action, Ansible, AnsibleLocal, Breakpoint, Download, HostCommand, HostPath, OnError, Playbook,
    Run, Shell, Step, Upload,
};
pub use template::is_name as is_variable_name;
pub use test::Test;
use vars::Scope;

use crate::secret::Secrets;

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
