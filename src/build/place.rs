//! The folders of one build: a workspace for what it leaves, and one for the overlays of its guests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::layers;
use super::workspace::Workspace;
use crate::cache::{Cache, Scratch};
use crate::error::Error;

/// Where a build without a cache keeps its overlays.
const OVERLAYS: &str = "overlays";

/// The folders of one build; removed when dropped.
pub struct Place {
    workspace: Workspace,
    overlays: PathBuf,
    _scratch: Option<Scratch>,
}

impl Place {
    /// Makes the folders of a build of the image `name`. The workspace is in `output`, or beside the
    /// overlays of a build that leaves nothing; those are in the cache where it is used.
    pub(super) fn create(
        output: Option<&Path>,
        name: &str,
        now: SystemTime,
        cache: Option<&Cache>,
    ) -> Result<Place, Error> {
        let scratch =
            cache.map(Cache::scratch).transpose().map_err(|error| layers::failed(&error))?;
        let beside =
            scratch.as_ref().map_or_else(std::env::temp_dir, |scratch| scratch.folder().into());
        let failed = |path: PathBuf, error: io::Error| {
            Error::input(format!("Cannot create {}", path.display())).because(&error)
        };
        let workspace = Workspace::create(output.unwrap_or(&beside), name, now)
            .map_err(|(path, error)| failed(path, error))?;
        let overlays = match &scratch {
            Some(scratch) => scratch.folder().to_path_buf(),
            None => {
                let folder = workspace.path(OVERLAYS);
                fs::create_dir(&folder).map_err(|error| failed(folder.clone(), error))?;
                folder
            }
        };
        Ok(Place { workspace, overlays, _scratch: scratch })
    }

    /// Returns the folder of what the build leaves.
    pub(super) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Returns the folder of overlays.
    pub(super) fn overlays(&self) -> &Path {
        &self.overlays
    }

    /// Gives up the overlays and returns the rest.
    pub(super) fn into_workspace(self) -> io::Result<Workspace> {
        if self.overlays.starts_with(self.workspace.path("")) {
            fs::remove_dir_all(&self.overlays)?;
        }
        Ok(self.workspace)
    }
}
