//! The files of the host that a profile's build follows from, for whoever waits for them to change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::profile::net::Target;
use crate::profile::{BaseSource, Expected, Given, Profile, Source, Text, folder_of};

/// Files, and folders with all that is in them.
#[derive(Debug, Default)]
pub struct Inputs {
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Inputs {
    /// Returns what the profile at `path` names with what it is `given`; of one that cannot be read, the
    /// profile alone.
    pub fn of(path: &Path, given: &Given) -> Inputs {
        let mut inputs = Inputs::default();
        inputs.add(path);
        let text = std::fs::read_to_string(path).ok();
        let Some(text) = text else { return inputs };
        let (source, _) = Source::new(path, text).with_includes();
        source.paths().for_each(|path| inputs.add(path));
        for profile in Profile::cells(source, given).unwrap_or_default() {
            inputs.add_named(&profile);
        }
        inputs
    }

    fn add_named(&mut self, profile: &Profile) {
        if let BaseSource::File(path) = &profile.image.source.value {
            self.add(path);
        }
        if let Some(Expected::ListFile(path)) = profile.image.checksum.as_ref().map(|at| &at.value)
        {
            self.add(path);
        }
        let boot = [&profile.boot.kernel, &profile.boot.initrd];
        let key = [&profile.ssh.private_key];
        for named in boot.into_iter().chain(key).flatten() {
            self.add(&named.value);
        }
        let seed = &profile.seed;
        let texts = [&seed.user_data, &seed.vendor_data, &seed.network_config];
        let files = seed.files.iter().map(|(_, text)| text);
        for text in texts.into_iter().flatten().chain(files) {
            if let Text::File(named) = text {
                self.add(&named.value);
            }
        }
        for step in &profile.steps {
            step.action.files().into_iter().for_each(|file| self.add(&file.value));
            for path in step.action.trees() {
                match path.is_dir() {
                    true => drop(self.folders.insert(absolute(&path))),
                    false => self.add(&path),
                }
            }
        }
        for forward in &profile.net.forwards {
            // What the guest writes itself is no reason to run again.
            if let Target::Folder { path, writable: false } = &forward.target {
                self.folders.insert(absolute(&path.value));
            }
        }
    }

    /// Adds a file.
    pub fn add(&mut self, path: &Path) {
        self.files.insert(absolute(path));
    }

    /// Returns whether `path` is one of the files or lies in one of the folders.
    pub fn contain(&self, path: &Path) -> bool {
        let path = absolute(path);
        self.files.contains(&path) || self.folders.iter().any(|folder| path.starts_with(folder))
    }

    /// Returns the folders to watch, and whether with all below them.
    pub fn folders(&self) -> Vec<(PathBuf, bool)> {
        let parents = self.files.iter().filter_map(|file| file.parent());
        let parents: BTreeSet<&Path> = parents.collect();
        let flat = parents.into_iter().map(|folder| (folder.to_path_buf(), false));
        flat.chain(self.folders.iter().map(|folder| (folder.clone(), true)))
            .filter(|(folder, _)| folder.is_dir())
            .collect()
    }
}

/// The path as the system's notifications have it.
fn absolute(path: &Path) -> PathBuf {
    match (folder_of(path).canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_a_profile_names_are_inputs_and_their_neighbours_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let text = "[image]\nname = \"a\"\nsource = \"base.qcow2\"\n[net]\nserve = \"www\"\n\
                    [seed]\nkind = \"nocloud\"\nuser_data = \"user-data\"\n\
                    [[step]]\nshell = { script = \"setup.sh\" }\n[[output]]\nformat = \"raw\"\n";
        std::fs::write(path("a.toml"), text).unwrap();
        std::fs::create_dir_all(path("www/deep")).unwrap();
        let inputs = Inputs::of(&path("a.toml"), &Given::default());
        for name in ["a.toml", "base.qcow2", "user-data", "setup.sh", "www/deep/file"] {
            assert!(inputs.contain(&path(name)), "{name}");
        }
        assert!(!inputs.contain(&path("setup.sh.swp")));
        let folders = inputs.folders();
        let real = folder.path().canonicalize().unwrap();
        assert_eq!(folders, [(real.clone(), false), (real.join("www"), true)]);
        // What is included is an input, also while something in it is at fault.
        std::fs::write(path("a.toml"), format!("include = [\"b.toml\"]\n{text}")).unwrap();
        for included in ["[ssh]\nprivate_key = \"id\"\n", "[sssh]\n", "nonsense"] {
            std::fs::write(path("b.toml"), included).unwrap();
            let inputs = Inputs::of(&path("a.toml"), &Given::default());
            assert!(inputs.contain(&path("b.toml")), "{included}");
            assert_eq!(inputs.contain(&path("id")), included.contains("id"));
        }
        std::fs::write(path("a.toml"), "nonsense").unwrap();
        assert!(Inputs::of(&path("a.toml"), &Given::default()).contain(&path("a.toml")));
    }
}
