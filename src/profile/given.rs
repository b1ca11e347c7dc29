//! What a profile is given from outside: values of its variables, the environment, the time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::secret::Secrets;

/// The largest file of variables, or of one variable.
const LIMIT: u64 = 1 << 20;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    CommandLine,
    /// A file of variables.
    File(PathBuf),
}

/// What stands outside a profile.
#[derive(Debug, Clone)]
pub struct Given {
    pub(super) values: BTreeMap<String, (String, Origin)>,
    /// The cells of the matrix that are asked for; all when there is none.
    pub cells: Vec<String>,
    /// Looks up a variable of the environment.
    pub environment: fn(&str) -> Option<String>,
    /// When the command began.
    pub time: SystemTime,
    /// Takes the secrets that are found.
    pub secrets: Secrets,
}

impl Default for Given {
    /// Nothing: no values, no environment, the beginning of time.
    fn default() -> Given {
        Given {
            values: BTreeMap::new(),
            cells: Vec::new(),
            environment: |_| None,
            time: SystemTime::UNIX_EPOCH,
            secrets: Secrets::default(),
        }
    }
}

impl Given {
    /// Gives the environment of this process and the time of now.
    pub fn of_process(secrets: &Secrets) -> Given {
        Given {
            values: BTreeMap::new(),
            cells: Vec::new(),
            environment: |name| std::env::var(name).ok(),
            time: SystemTime::now(),
            secrets: secrets.clone(),
        }
    }

    /// Gives a value on the command line.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.into(), (value.into(), Origin::CommandLine));
    }

    /// Gives the values in the file at `path`: TOML, or JSON by its extension. Later ones replace
    /// earlier ones.
    ///
    /// # Errors
    /// A sentence: the file cannot be read, or is no table of texts, numbers and booleans.
    pub fn read_file(&mut self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        let text = read(path).map_err(|error| format!("Cannot read {shown}: {error}"))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let table: toml::Table = if is_json {
            serde_json::from_str(&text).map_err(|error| format!("{shown} is not JSON: {error}"))?
        } else {
            text.parse().map_err(|error: toml::de::Error| {
                // The whole error quotes the file, which may hold secrets.
                format!("{shown} is not TOML: {}", error.message())
            })?
        };
        for (name, value) in table {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(value) => value.to_string(),
                other => {
                    let kind = other.type_str();
                    return Err(format!(
                        "`{name}` in {shown} is no text, number or boolean but {kind}"
                    ));
                }
            };
            self.values.insert(name, (value, Origin::File(path.into())));
        }
        Ok(())
    }

    /// Returns the value of a variable and where it came from.
    pub fn value(&self, name: &str) -> Option<&(String, Origin)> {
        self.values.get(name)
    }

    /// Returns the names of all values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}

/// Reads a text of at most 1 MiB.
///
/// # Errors
/// The file system's; it is larger, or no regular file, or no UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}
