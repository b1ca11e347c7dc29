//! The cache of built artifacts: one folder each, named by what defines its content.
//!
//! `$XDG_CACHE_HOME/kvmbake-rig/NAME-KEY/`, where KEY is the SHA-256 of the recipe's files, its arguments and the keys of
//! the artifacts it is made from. An artifact is built in a folder beside and renamed in when complete, under a lock, so
//! that two runs that race build it once and a killed build leaves nothing that looks finished. Older versions of an
//! artifact are removed when a new one is in. Versions of Debian packages are not part of the key: `clean` rebuilds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::error::{RigError, at};

/// The folder that holds every artifact.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// What defines an artifact: a script and everything that it reads.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// The artifact's name in the cache.
    pub name: String,
    /// The script, in `recipes/`.
    pub script: &'static str,
    /// Words before the output folder.
    pub before: Vec<String>,
    /// Words after the output folder.
    pub after: Vec<String>,
    /// Folders in `recipes/` that the script takes files from.
    pub folders: &'static [&'static str],
    /// More that the content depends on, such as other artifacts' keys.
    pub inputs: Vec<String>,
    /// Whether the script must run as root.
    pub root: bool,
}

/// An artifact that is there.
#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    /// Its folder.
    pub path: PathBuf,
    /// The digest that names its content.
    pub key: String,
}

impl Cache {
    /// Opens the user's cache: `$XDG_CACHE_HOME/kvmbake-rig`, or `~/.cache/kvmbake-rig`.
    pub fn open() -> Result<Self, RigError> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .unwrap_or_else(|| {
                PathBuf::from(std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache")
            });
        let root = base.join("kvmbake-rig");
        fs::create_dir_all(&root).map_err(at(&root))?;
        Ok(Self { root })
    }

    /// Returns the cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes an exclusive lock by name, waiting for it; it is held until the file is dropped.
    pub(crate) fn lock(&self, name: &str) -> Result<File, RigError> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at(&path))?;
        file.lock().map_err(at(&path))?;
        Ok(file)
    }

    /// Returns the artifact, built by its recipe unless it is there already.
    pub(crate) fn artifact(&self, recipe: &Recipe) -> Result<Artifact, RigError> {
        let key = recipe.key()?;
        self.make(&recipe.name, &key, |partial, lock| self.cook(recipe, partial, lock))
    }

    /// Returns the artifact `name` with `key`, made by `build` in a folder beside and renamed in.
    pub(crate) fn make(
        &self,
        name: &str,
        key: &str,
        build: impl FnOnce(&Path, &File) -> Result<(), RigError>,
    ) -> Result<Artifact, RigError> {
        let path = self.root.join(format!("{name}-{}", &key[..16]));
        let artifact = Artifact { path: path.clone(), key: key.to_string() };
        if path.exists() {
            return Ok(artifact);
        }
        let lock = self.lock(name)?;
        if path.exists() {
            return Ok(artifact);
        }
        let partial = self.root.join(format!("{name}.partial"));
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(at(&partial))?;
        let start = Instant::now();
        eprintln!("rig: building {name} (cached afterwards) …");
        build(&partial, &lock)?;
        fs::rename(&partial, &path).map_err(at(&path))?;
        eprintln!("rig: built {name} in {:.0} s", start.elapsed().as_secs_f32());
        self.forget(name, Some(&path))?;
        Ok(artifact)
    }

    /// Removes every version of the artifact `name` but `keep`.
    pub(crate) fn forget(&self, name: &str, keep: Option<&Path>) -> Result<(), RigError> {
        for entry in fs::read_dir(&self.root).map_err(at(&self.root))?.flatten() {
            let file = entry.file_name();
            let version = file
                .to_str()
                .and_then(|text| text.strip_prefix(name))
                .and_then(|rest| rest.strip_prefix('-'));
            let is_version = version
                .is_some_and(|key| key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit()));
            if is_version && keep != Some(entry.path().as_path()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn cook(&self, recipe: &Recipe, partial: &Path, lock: &File) -> Result<(), RigError> {
        let script = recipes().join(recipe.script);
        let log_path = self.root.join(format!("{}.log", recipe.name));
        let log = File::create(&log_path).map_err(at(&log_path))?;
        // Nothing outlives this process, and no mount of a killed script stays behind: a recipe for root runs in mount
        // and process namespaces of its own. (Through sudo the death signal is lost; the lock below covers that.)
        let mut words = vec!["setpriv", "--pdeathsig", "KILL"];
        let sudo = recipe.root && !is_root();
        if sudo {
            words.push("sudo");
        }
        if recipe.root {
            words.extend(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        }
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("bash");
        // A program of /sbin is on root's PATH only, and mmdebstrap must not see an odd one.
        command
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8");
        command.arg("-x").arg(&script).args(&recipe.before).arg(partial).args(&recipe.after);
        // The script inherits the lock, as its empty standard input: should this process be killed, the next one waits
        // until the script is gone too.
        command.stdin(lock.try_clone().map_err(at(partial))?);
        command.stdout(log.try_clone().map_err(at(&log_path))?).stderr(log);
        let status = command
            .status()
            .map_err(|source| RigError::Program { program: recipe.script.into(), source })?;
        if !status.success() {
            let tail = last_lines(&log_path, 15);
            return Err(RigError::Recipe {
                name: recipe.name.clone(),
                status,
                log: log_path,
                tail,
            });
        }
        if sudo {
            let owner = program_output("id", &["-u"])?;
            program_output("sudo", &["chown", "-R", owner.trim(), &partial.display().to_string()])?;
        }
        Ok(())
    }
}

impl Recipe {
    /// Returns the SHA-256, in hexadecimal, of everything the artifact is made from.
    pub(crate) fn key(&self) -> Result<String, RigError> {
        let mut files = vec![recipes().join(self.script)];
        for folder in self.folders {
            let folder = recipes().join(folder);
            for entry in fs::read_dir(&folder).map_err(at(&folder))?.flatten() {
                files.push(entry.path());
            }
        }
        files.sort();
        let mut text =
            format!("{}\0{:?}\0{:?}\0", self.before.join("\0"), self.inputs, host_release());
        for file in files {
            text.push_str(&fs::read_to_string(&file).map_err(at(&file))?);
            text.push('\0');
        }
        digest(&text)
    }
}

/// Returns the SHA-256 of a text, by coreutils.
pub(crate) fn digest(text: &str) -> Result<String, RigError> {
    use std::io::Write;
    let fail = |source| RigError::Program { program: "sha256sum".into(), source };
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    Ok(String::from_utf8_lossy(&output.stdout).chars().take(64).collect())
}

/// Returns the folder with the recipes, in the source tree.
fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")
}

/// Returns the host's release as os-release gives it: L1 is of the same one.
fn host_release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().find(|line| line.starts_with("VERSION_CODENAME=")).unwrap_or("unknown").to_string()
}

fn is_root() -> bool {
    program_output("id", &["-u"]).is_ok_and(|text| text.trim() == "0")
}

/// Runs a small program of the host and returns what it printed.
pub(crate) fn program_output(program: &str, words: &[&str]) -> Result<String, RigError> {
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| RigError::Program { program: program.into(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(RigError::Guest { command: format!("{program} {}", words.join(" ")), stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the last lines of a log.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Removes a folder and all in it, but never what is mounted in it; as root through sudo where a killed root build left
/// files that are not ours.
pub(crate) fn remove(path: &Path) -> Result<(), RigError> {
    let text = path.display().to_string();
    let words = ["rm", "-rf", "--one-file-system", &text];
    match program_output(words[0], &words[1..]) {
        Ok(_) => Ok(()),
        Err(error) if is_root() => Err(error),
        Err(_) => program_output("sudo", &words).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Cache {
        let root =
            std::env::temp_dir().join(format!("kvmbake-rig-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        Cache { root }
    }

    #[test]
    fn an_artifact_is_built_once_and_replaces_its_older_versions() {
        let cache = scratch("once");
        let (old, new) = ("0".repeat(64), "1".repeat(64));
        let first = cache
            .make("thing", &old, |folder, _| fs::write(folder.join("x"), "old").map_err(at(folder)))
            .unwrap();
        let again = cache.make("thing", &old, |_, _| panic!("built twice")).unwrap();
        assert_eq!(first.path, again.path);
        fs::create_dir(cache.root().join("thing-other-0000000000000000")).unwrap();
        cache
            .make("thing", &new, |folder, _| fs::write(folder.join("x"), "new").map_err(at(folder)))
            .unwrap();
        assert!(!first.path.exists());
        assert!(cache.root().join("thing-other-0000000000000000").exists());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_nothing_that_looks_finished() {
        let cache = scratch("failed");
        let key = "2".repeat(64);
        let fail =
            |_: &Path, _: &File| Err(RigError::Boot { reason: "no".into(), tail: String::new() });
        assert!(cache.make("thing", &key, fail).is_err());
        let made = cache
            .make("thing", &key, |folder, _| fs::write(folder.join("x"), "y").map_err(at(folder)))
            .unwrap();
        assert_eq!(fs::read_to_string(made.path.join("x")).unwrap(), "y");
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_digest_is_sha256() {
        assert_eq!(
            digest("abc").unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
