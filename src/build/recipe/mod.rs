//! What defines each layer of a build: the recipe of the booted guest, of each step, of the sealed
//! disk. Only what reaches the guest, or decides what it gets to see, is in a recipe; titles,
//! time-outs, names and paths of the host are not.

mod step;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::plan::Plan;
use super::position::Position;
use crate::cache::{Cache, CacheError, Digest, Field, Kind, Recipe};
use crate::checksum::Algorithm;
use crate::error::Error;
use crate::profile::SeedKind;
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
            Some(step) => step::recipe(step, &plan.profile.secrets, cache, cancel),
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
    text("size", plan.build_size.to_string())?;
    text("machine", MACHINE.into())?;
    text("cpus", profile.machine.cpus.to_string())?;
    text("memory", profile.machine.memory.to_string())?;
    text("cmdline", profile.boot.cmdline.clone().unwrap_or_default())?;
    text("append", profile.boot.append.clone().unwrap_or_default())?;
    text("user", profile.ssh.user.clone())?;
    text("key", public_key.unwrap_or_default().into())?;
    text("dns", profile.net.dns.map_or_else(String::new, |dns| dns.to_string()))?;
    text("host_loopback", profile.net.host_loopback.to_string())?;
    for (key, value) in profile.net.lan.differences() {
        text(key, value)?;
    }
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
    use std::sync::Arc;

    use super::super::cancel::Cancel;
    use super::*;
    use crate::profile::Given;
    use crate::report::{Report, plain_to};

    /// The recipes of all positions of each cell of the matrix in `profile`.
    fn recipes(folder: &Path, profile: &str) -> Vec<Vec<Recipe>> {
        let cache = Cache::open_at(&folder.join("cache")).unwrap();
        std::fs::File::create(folder.join("base.raw")).unwrap().set_len(1 << 20).unwrap();
        std::fs::write(folder.join("p.toml"), profile).unwrap();
        let quiet: Arc<dyn Report> = plain_to(Box::new(std::io::sink())).into();
        let report = |_: &crate::profile::Profile| Arc::clone(&quiet);
        let path = folder.join("p.toml");
        let plans = Plan::load_cells(&path, &Given::default(), report, &Cancel::default());
        let of = |plan: &Plan| {
            let stop = AtomicBool::new(false);
            let recipe = |position| recipe(plan, position, Some("key"), &cache, &stop).unwrap();
            Position::all(plan.profile.steps.len()).map(recipe).collect()
        };
        plans.unwrap().iter().map(of).collect()
    }

    #[test]
    fn cells_that_differ_only_in_size_have_all_layers_in_common() {
        let folder = tempfile::tempdir().unwrap();
        let profile = "[matrix]\nkind = [\"a\", \"b\"]\nsize = [\"4M\", \"2M\", \"3M\"]\n\
            [image]\nname = \"web\"\nsource = \"base.raw\"\nformat = \"raw\"\n\
            size = \"{{ matrix.size }}\"\n[[step]]\nshell = \"true\"\n\
            [[step]]\nshell = \"echo {{ matrix.kind }}\"\n[[output]]\nformat = \"raw\"\n";
        let keys = |recipes: &[Recipe]| -> Vec<String> {
            recipes.iter().map(|recipe| recipe.key(None).to_string()).collect()
        };
        let cells = recipes(folder.path(), profile);
        assert_eq!(cells.len(), 6);
        assert!(cells[..3].iter().all(|cell| keys(cell) == keys(&cells[0])));
        let (a, b) = (keys(&cells[0]), keys(&cells[3]));
        assert_eq!((&a[..2], &a[3]), (&b[..2], &b[3]), "up to the step that differs");
        assert_ne!(a[2], b[2]);
        // Each at its own size, where the profile wants that.
        let own = profile.replace("size = \"{{", "build_size = \"{{ matrix.size }}\"\nsize = \"{{");
        let cells = recipes(folder.path(), &own);
        assert_ne!(keys(&cells[0])[0], keys(&cells[1])[0]);
        assert_eq!(keys(&cells[0])[0], keys(&cells[3])[0]);
    }

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
