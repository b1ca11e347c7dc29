//! The recipes of each profile's last run, so that the next one can tell what changed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Cache;
use super::digest::Digest;
use super::envelope;
use super::error::CacheError;
use super::recipe::{LayerId, Recipe};

/// One layer of a profile's last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// What a person calls it.
    pub title: String,
    /// What made it.
    pub recipe: Recipe,
    /// The layer, when one was kept.
    pub layer: Option<LayerId>,
}

/// A profile's last run: its layers in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The layers, the first one first.
    pub layers: Vec<Traced>,
}

impl Cache {
    /// Returns the last run of the profile at `path`; `None` when there was none, or what is known
    /// of it is damaged.
    pub fn trace(&self, path: &Path) -> Option<Trace> {
        envelope::read(&self.trace_path(path).ok()?).ok().flatten()
    }

    /// Remembers the run of the profile at `path`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn record_trace(&self, path: &Path, trace: &Trace) -> Result<(), CacheError> {
        envelope::write(&self.trace_path(path)?, trace, false)
    }

    fn trace_path(&self, profile: &Path) -> Result<PathBuf, CacheError> {
        let path = std::path::absolute(profile).map_err(CacheError::io("find", profile))?;
        let name = Digest::of(path.as_os_str().as_bytes()).prefix(32);
        Ok(self.root.join("traces").join(name).with_extension("json"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Store, recipe};
    use super::*;

    #[test]
    fn each_profile_has_its_own_trace() {
        let store = Store::new();
        let (web, mail) = (Path::new("/p/web.toml"), Path::new("/p/mail.toml"));
        let traced = Traced { title: "boot".into(), recipe: recipe("boot"), layer: None };
        let trace = Trace { layers: vec![traced] };
        store.cache.record_trace(web, &trace).unwrap();
        assert_eq!(store.again().trace(web), Some(trace));
        assert_eq!(store.cache.trace(mail), None);
        std::fs::write(store.cache.trace_path(web).unwrap(), "{}").unwrap();
        assert_eq!(store.cache.trace(web), None);
    }
}
