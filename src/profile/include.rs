//! `include`: profiles that a profile builds on. Tables are merged, and what the including profile says
//! wins; lists of tables, such as `[[step]]`, are put one after the other, the included ones first.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::given;
use super::source::{Fault, Source};

/// Most files of one profile; nobody has more by intent.
const LIMIT: usize = 64;

impl Source {
    /// Reads what the profile includes, and what that includes. A file that several include is there
    /// once, where it comes first. The faults are those of `include` alone; what could be read is in
    /// the source all the same.
    pub fn with_includes(mut self) -> (Source, Vec<Fault>) {
        let mut faults = Vec::new();
        let path = identity(self.path());
        let mut seen = vec![path.clone()];
        self.follow(0, &mut vec![path], &mut seen, &mut faults);
        (self, faults)
    }

    /// Reads what the file at `index` includes. `above` are the files that lead to it, `seen` all files.
    fn follow(
        &mut self,
        index: usize,
        above: &mut Vec<PathBuf>,
        seen: &mut Vec<PathBuf>,
        faults: &mut Vec<Fault>,
    ) {
        for (name, span) in self.included(index, faults) {
            let path = self.folder_at(&span).join(&name);
            let identity = identity(&path);
            let mut fault = |message: String| {
                faults.push(Fault { message, place: self.place(&span), hint: None });
            };
            if above.contains(&identity) {
                fault(format!("`{name}` includes itself, directly or by others"));
                continue;
            }
            if seen.contains(&identity) {
                continue;
            }
            if self.files().len() == LIMIT {
                fault(format!("A profile includes at most {} files", LIMIT - 1));
                return;
            }
            let text = match given::read(&path) {
                Ok(text) => text,
                Err(error) => {
                    fault(format!("Cannot read {}: {error}", path.display()));
                    continue;
                }
            };
            let added = self.add(index, path, text);
            seen.push(identity.clone());
            above.push(identity);
            self.follow(added, above, seen, faults);
            above.pop();
        }
    }

    /// Returns what the file at `index` names, with the places. A file that is no TOML names nothing;
    /// what is wrong with it is told when it is parsed.
    fn included(&self, index: usize, faults: &mut Vec<Fault>) -> Vec<(String, Range<usize>)> {
        let text = self.padded(index);
        let Ok(document) = DeTable::parse(&text) else { return Vec::new() };
        let Some(value) = document.get_ref().get("include") else { return Vec::new() };
        let mut fault = |span: &Range<usize>, message: &str| {
            let hint = Some("Such as include = [\"common.toml\"]".to_string());
            faults.push(Fault { message: message.into(), place: self.place(span), hint });
        };
        let Some(items) = value.get_ref().as_array() else {
            fault(&value.span(), "`include` must be a list of files");
            return Vec::new();
        };
        let mut named = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(name) if name.contains("{{") => {
                    fault(&item.span(), "`include` takes no variables: they may come from it");
                }
                Some(name) => named.push((name.to_string(), item.span())),
                None => fault(&item.span(), "`include` must be a list of files"),
            }
        }
        named
    }

    /// Returns the text of the file at `index` with as many blanks before it as the files before have
    /// bytes: a parser's spans are the source's offsets then.
    fn padded(&self, index: usize) -> String {
        let Some(file) = self.files().get(index) else { return String::new() };
        format!("{}{}", " ".repeat(file.start), file.text)
    }

    /// Returns the texts of all files, to be given to [`Source::parse`].
    pub(super) fn texts(&self) -> Vec<String> {
        (0..self.files().len()).map(|index| self.padded(index)).collect()
    }

    /// Parses `texts`, and merges the files to one table.
    ///
    /// # Errors
    /// The faults of files that are no TOML.
    pub(super) fn parse<'t>(&self, texts: &'t [String]) -> Result<DeTable<'t>, Vec<Fault>> {
        let mut tables = Vec::with_capacity(texts.len());
        let mut faults = Vec::new();
        for (text, file) in texts.iter().zip(self.files()) {
            match DeTable::parse(text) {
                Ok(document) => tables.push(Some(document.into_inner())),
                Err(error) => {
                    let span = error.span().unwrap_or(file.start..file.start);
                    faults.push(Fault {
                        message: format!("Not valid TOML: {}", error.message()),
                        place: self.place(&span),
                        hint: None,
                    });
                }
            }
        }
        if faults.is_empty() { Ok(self.merged(0, &mut tables)) } else { Err(faults) }
    }

    fn merged<'t>(&self, index: usize, tables: &mut [Option<DeTable<'t>>]) -> DeTable<'t> {
        let mut whole = DeTable::new();
        for included in &self.files()[index].includes {
            merge(&mut whole, self.merged(*included, tables));
        }
        merge(&mut whole, tables[index].take().unwrap_or_default());
        whole
    }
}

/// The path by which two ways to one file are told to be the same.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Puts `over` on top of `table`.
fn merge<'t>(table: &mut DeTable<'t>, over: DeTable<'t>) {
    for (key, value) in over {
        let below = table.remove(key.get_ref().as_ref());
        let value = match below {
            Some(below) => merged_value(below, value),
            None => value,
        };
        table.insert(key, value);
    }
}

fn merged_value<'t>(
    below: Spanned<DeValue<'t>>,
    over: Spanned<DeValue<'t>>,
) -> Spanned<DeValue<'t>> {
    let span = over.span();
    let value = match (below.into_inner(), over.into_inner()) {
        (DeValue::Table(mut below), DeValue::Table(over)) => {
            merge(&mut below, over);
            DeValue::Table(below)
        }
        (DeValue::Array(mut below), DeValue::Array(over))
            if is_of_tables(&below) && is_of_tables(&over) =>
        {
            over.into_iter().for_each(|item| below.push(item));
            DeValue::Array(below)
        }
        (_, over) => over,
    };
    Spanned::new(span, value)
}

fn is_of_tables(items: &[Spanned<DeValue<'_>>]) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get_ref().is_table())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::profile::{BaseSource, Given, Profile};

    const MAIN: &str = "include = [\"sub/common.toml\", \"sub/outputs.toml\"]\n\
        [image]\nname = \"web\"\n[machine]\ncpus = 4\n\
        [[step]]\nshell = { script = \"own.sh\" }\n[[output]]\nformat = \"raw\"\n";
    const COMMON: &str = "include = [\"deeper/vars.toml\"]\n[image]\nname = \"common\"\n\
        source = \"{{ base }}.qcow2\"\n[machine]\ncpus = 1\nmemory = \"2G\"\n\
        [[step]]\nshell = { script = \"setup.sh\" }\n[[step]]\nshell = \"true\"\n";
    const VARS: &str = "[vars]\nbase = \"debian\"\ntoken = { file = \"token\" }\n";
    const OUTPUTS: &str = "include = [\"deeper/vars.toml\"]\n[[output]]\nformat = \"vdi\"\n";

    fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sub/deeper")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn load(folder: &Path) -> Result<Profile, Vec<Fault>> {
        let path = folder.join("p.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (source, faults) = Source::new(path, text).with_includes();
        if faults.is_empty() { Profile::parse_with(source, &Given::default()) } else { Err(faults) }
    }

    fn whole() -> tempfile::TempDir {
        project(&[
            ("p.toml", MAIN),
            ("sub/common.toml", COMMON),
            ("sub/outputs.toml", OUTPUTS),
            ("sub/deeper/vars.toml", VARS),
            ("sub/deeper/token", "value\n"),
        ])
    }

    #[test]
    fn tables_are_merged_lists_of_tables_follow_each_other_and_the_including_profile_wins() {
        let folder = whole();
        let profile = load(folder.path()).unwrap();
        assert_eq!(profile.image.name, "web");
        assert_eq!((profile.machine.cpus, profile.machine.memory), (4, 2 << 30));
        let BaseSource::File(source) = &profile.image.source.value else { panic!("no file") };
        assert_eq!(source, &folder.path().join("sub/debian.qcow2"));
        let scripts = profile.steps.iter().flat_map(|step| step.action.files());
        let scripts: Vec<PathBuf> = scripts.map(|script| script.value.clone()).collect();
        let expected = ["sub/setup.sh", "own.sh"].map(|name| folder.path().join(name));
        assert_eq!(scripts, expected, "each relative to its own file, the included first");
        let outputs: Vec<&str> = profile.outputs.iter().map(|one| one.file.as_str()).collect();
        assert_eq!(outputs, ["web.vdi", "web.raw"]);
        assert_eq!(profile.source.paths().count(), 4, "the one that two include is there once");
    }

    #[test]
    fn a_fault_names_the_file_that_it_is_in_with_line_and_column() {
        let folder = whole();
        let at = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            let faults = load(folder.path()).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:#?}");
            let place = &faults[0].place;
            let file = place.path.strip_prefix(folder.path()).unwrap().display().to_string();
            (file, place.line, place.column, faults[0].message.clone())
        };
        let (file, line, column, message) =
            at("sub/common.toml", &COMMON.replace("memory", "menory"));
        assert_eq!((file.as_str(), line, column), ("sub/common.toml", 7, 1), "{message}");
        assert!(message.contains("Unknown key `menory`"), "{message}");
        let (file, line, _, message) = at("sub/common.toml", "[image]\nname = \n");
        assert_eq!((file.as_str(), line), ("sub/common.toml", 2), "{message}");
        fs::write(folder.path().join("sub/common.toml"), COMMON).unwrap();
        let (file, line, column, message) =
            at("sub/deeper/vars.toml", "[vars]\nbase = \"{{ bass }}\"\n");
        assert_eq!((file.as_str(), line, column), ("sub/deeper/vars.toml", 2, 9), "{message}");
    }

    #[test]
    fn what_cannot_be_included_is_refused_at_its_place() {
        for (include, part) in [
            ("[\"none.toml\"]", "Cannot read"),
            ("[\"p.toml\"]", "includes itself"),
            ("[\"sub/back.toml\"]", "includes itself"),
            ("\"p.toml\"", "must be a list"),
            ("[1]", "must be a list"),
            ("[\"{{ a }}.toml\"]", "takes no variables"),
            ("[\"sub\"]", "not a regular file"),
        ] {
            let text = format!("include = {include}\n");
            let folder = project(&[
                ("p.toml", &text),
                ("sub/back.toml", "include = [\"deeper/back.toml\"]\n"),
                ("sub/deeper/back.toml", "include = [\"../../p.toml\"]\n"),
            ]);
            let faults = load(folder.path()).unwrap_err();
            assert_eq!(faults.len(), 1, "{include}: {faults:#?}");
            assert!(faults[0].message.contains(part), "{include}: {faults:#?}");
        }
    }
}
