//! What defines each layer of a build: the recipe of the booted guest, of each step, of the sealed
//! disk. Only what reaches the guest, or decides what it gets to see, is in a recipe; titles,
//! time-outs, names and paths of the host are not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::plan::Plan;
use super::position::Position;
use crate::cache::{Cache, CacheError, Digest, Field, Kind, Recipe};
use crate::checksum::Algorithm;
use crate::error::Error;
use crate::profile::{Run, SeedKind, Step};
use crate::secret::Secrets;

/// The machine as the guest sees it; raised when devices, their order or their behaviour change so
/// that a guest would set itself up in another way.
const MACHINE: &str = "2";
/// How a disk is sealed; raised when sealing leaves other traces.
const SEALING: &str = "1";

/// Returns the recipe of `position`, its files read anew. `public_key` is the key that the build
/// brings into the guest, when it does.
///
/// # Errors
/// A file cannot be read, or the user stopped the command.
pub fn recipe(
    plan: &Plan,
    position: Position,
    public_key: Option<&str>,
    cache: &Cache,
    cancel: &AtomicBool,
) -> Result<Recipe, Error> {
    match position {
        Position::Boot => boot(plan, public_key, cache, cancel),
        Position::Step(number) => match plan.profile.steps.get(number - 1) {
            Some(step) => self::step(step, &plan.profile.secrets, cache),
            None => Ok(Recipe::new(Kind::Step, Vec::new())),
        },
        Position::Sealed => {
            let removed = if public_key.is_some() { "removed" } else { "none" };
            let fields = vec![Field::text("sealing", SEALING), Field::text("key", removed)];
            Ok(Recipe::new(Kind::Sealed, fields))
        }
    }
}

fn boot(
    plan: &Plan,
    public_key: Option<&str>,
    cache: &Cache,
    cancel: &AtomicBool,
) -> Result<Recipe, Error> {
    let profile = &plan.profile;
    let mut fields = Fields::new(cache, &profile.secrets);
    let digest =
        |path: &Path| cache.file_digest(path, cancel).map_err(|error| unreadable(path, &error));
    for (index, path) in plan.base_files()?.iter().enumerate() {
        let name = if index == 0 { "base".to_string() } else { format!("base file {}", index + 1) };
        let checksum = match &plan.source.checksum {
            // Of the file as it came, which the image follows from.
            Some(checked) if index == 0 => checked.to_string(),
            // The manifest needs this checksum as well, so that the file is read once for both.
            _ => {
                let checksum = cache.file_checksum(path, Algorithm::Sha256, cancel);
                checksum.map_err(|error| unreadable(path, &error))?.to_string()
            }
        };
        let digest = Digest::of(checksum.as_bytes());
        let label = if index == 0 { plan.source.name.clone() } else { label(path) };
        fields.push(Field::file(name, label, 0, digest));
    }
    let mut text = |name: &str, value: String| fields.text(name, &value);
    text("base format", plan.base_format.to_string())?;
    text("size", plan.virtual_size.to_string())?;
    text("machine", MACHINE.into())?;
    text("cpus", profile.machine.cpus.to_string())?;
    text("memory", profile.machine.memory.to_string())?;
    text("cmdline", profile.boot.cmdline.clone().unwrap_or_default())?;
    text("append", profile.boot.append.clone().unwrap_or_default())?;
    text("user", profile.ssh.user.clone())?;
    text("key", public_key.unwrap_or_default().into())?;
    text("dns", profile.net.dns.map_or_else(String::new, |dns| dns.to_string()))?;
    text("host_loopback", profile.net.host_loopback.to_string())?;
    let seed = &profile.seed;
    text("seed", seed.kind.name().into())?;
    text("hostname", seed.hostname.clone().unwrap_or_default())?;
    if seed.eth0_names {
        text("eth0_names", "true".into())?;
    }
    if seed.kind == SeedKind::Files {
        text("label", seed.label.clone())?;
    }
    for (name, kernel) in [("kernel", &profile.boot.kernel), ("initrd", &profile.boot.initrd)] {
        if let Some(path) = kernel {
            fields.push(Field::file(name, label(&path.value), 0, digest(&path.value)?));
        }
    }
    let texts = [
        ("user_data", &plan.seed.user_data),
        ("vendor_data", &plan.seed.vendor_data),
        ("network_config", &plan.seed.network_config),
    ];
    for (name, bytes) in texts {
        if let Some(bytes) = bytes {
            fields.bytes(name, name, 0, bytes)?;
        }
    }
    for (name, bytes) in &plan.seed.files {
        fields.bytes(format!("file {name}"), name, 0, bytes)?;
    }
    Ok(Recipe::new(Kind::Boot, fields.list))
}

fn step(step: &Step, secrets: &Secrets, cache: &Cache) -> Result<Recipe, Error> {
    let shell = &step.shell;
    let mut fields = Fields::new(cache, secrets);
    match &shell.run {
        Run::Inline(commands) => {
            for (index, command) in commands.iter().enumerate() {
                fields.text(format!("command {}", index + 1), command)?;
            }
        }
        Run::Scripts(paths) => {
            for (index, path) in paths.iter().enumerate() {
                let path = &path.value;
                let (mode, bytes) = fs::metadata(path)
                    .map(|metadata| metadata.permissions().mode() & 0o7777)
                    .and_then(|mode| Ok((mode, fs::read(path)?)))
                    .map_err(|error| {
                        Error::input(format!("Cannot read {}", path.display())).because(&error)
                    })?;
                let name = format!("script {}", index + 1);
                fields.bytes(name, &label(path), mode, &bytes)?;
            }
        }
    }
    for (name, value) in &shell.env {
        fields.text(format!("env {name}"), value)?;
    }
    let expect: Vec<String> = shell.expect.iter().map(ToString::to_string).collect();
    fields.text("sudo", &shell.sudo.to_string())?;
    fields.text("workdir", shell.workdir.as_deref().unwrap_or_default())?;
    fields.text("shell", shell.interpreter.as_deref().unwrap_or_default())?;
    fields.text("expect", &expect.join(" "))?;
    Ok(Recipe::new(Kind::Step, fields.list))
}

/// The fields of a recipe. One that holds a secret is kept as a digest that tells nothing of it.
struct Fields<'a> {
    cache: &'a Cache,
    secrets: &'a Secrets,
    list: Vec<Field>,
}

impl<'a> Fields<'a> {
    fn new(cache: &'a Cache, secrets: &'a Secrets) -> Fields<'a> {
        Fields { cache, secrets, list: Vec::new() }
    }

    fn push(&mut self, field: Field) {
        self.list.push(field);
    }

    fn text(&mut self, name: impl Into<String>, value: &str) -> Result<(), Error> {
        let field = match self.secrets.within(value) {
            true => self.cache.secret(name, value.as_bytes())?,
            false => Field::text(name, value),
        };
        self.push(field);
        Ok(())
    }

    fn bytes(
        &mut self,
        name: impl Into<String>,
        label: &str,
        mode: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let field = match self.secrets.within(&String::from_utf8_lossy(bytes)) {
            true => {
                let with_mode = [&mode.to_le_bytes()[..], bytes].concat();
                self.cache.secret(name, &with_mode)?
            }
            false => Field::bytes(name, label, mode, bytes),
        };
        self.push(field);
        Ok(())
    }
}

fn unreadable(path: &Path, error: &CacheError) -> Error {
    match error {
        CacheError::Cancelled => Error::interrupted(),
        error => Error::input(format!("Cannot read {}", path.display())).because(error),
    }
}

/// What a person calls the file.
fn label(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_in_the_key_and_not_in_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
        let secrets = Secrets::default();
        let recipe = |secret: &str| {
            secrets.add(secret);
            let mut fields = Fields::new(&cache, &secrets);
            fields.text("command 1", &format!("login {secret}")).unwrap();
            fields.text("command 2", "true").unwrap();
            fields.bytes("script 1", "a.sh", 0o755, format!("echo {secret}").as_bytes()).unwrap();
            Recipe::new(Kind::Step, fields.list)
        };
        let (one, two) = (recipe("hunter2"), recipe("hunter3"));
        assert_ne!(one.key(None), two.key(None));
        assert!(one.same(&recipe("hunter2")));
        let record = serde_json::to_string(&one).unwrap();
        assert!(!record.contains("hunter2") && record.contains("true"), "{record}");
    }
}
