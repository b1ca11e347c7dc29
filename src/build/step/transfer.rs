//! The `upload` and `download` actions, and what becomes of what was downloaded.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kvmbake_provision::Privilege;
use kvmbake_provision::step::{self, DownloadStep, Place, Render, UploadStep};

use crate::error::Error;
use crate::profile::{Action, Download, HostPath, Profile, Upload};

/// The file of a layer that holds what its step downloaded.
pub const DOWNLOADS: &str = "downloads";

/// Returns one upload as `provision` does it.
pub fn one_upload(upload: &Upload) -> step::Upload {
    let render = upload.template.clone().map(|variables| {
        let render: Render = Arc::new(move |text: &str| variables.render(text));
        render
    });
    step::Upload {
        folder: upload.folder.clone(),
        source: upload.source.clone(),
        to: upload.to.clone(),
        mode: upload.mode,
        owner: upload.owner.clone(),
        privilege: Privilege::with_sudo(upload.sudo),
        render,
    }
}

/// Returns the step as `provision` runs it.
pub fn upload(uploads: &[Upload]) -> UploadStep {
    UploadStep { uploads: uploads.iter().map(one_upload).collect() }
}

/// Returns the step as `provision` runs it, with its pack in `scratch`.
pub fn download(downloads: &[Download], scratch: &Path) -> DownloadStep {
    let one = |download: &Download| step::Download {
        source: download.source.clone(),
        privilege: Privilege::with_sudo(download.sudo),
        limit: download.limit,
    };
    DownloadStep { downloads: downloads.iter().map(one).collect(), pack: scratch.join(DOWNLOADS) }
}

/// Whether a build of `profile` brings files of its guest.
pub fn are_there(profile: &Profile) -> bool {
    profile.steps.iter().any(|step| matches!(step.action, Action::Download(_)))
}

/// Puts what the steps of `profile` downloaded to its places; what belongs to the build's folder only
/// when there is one.
///
/// # Errors
/// The host's file system failed.
pub fn deliver(
    profile: &Profile,
    packs: &[(usize, Arc<File>)],
    folder: Option<&Path>,
) -> Result<usize, Error> {
    let mut count = 0;
    for (number, pack) in packs {
        let step = profile.steps.get(number.wrapping_sub(1));
        let Some(Action::Download(downloads)) = step.map(|step| &step.action) else { continue };
        let place = |download: &Download| {
            let path = match &download.to {
                HostPath::Absolute(path) => path.clone(),
                HostPath::Output(path) => folder?.join(path),
            };
            Some(Place { path, renamed: download.renamed })
        };
        let places: Vec<Option<Place>> = downloads.iter().map(place).collect();
        count += step::deliver(pack, &places).map_err(|(path, error)| {
            Error::input(format!("Cannot write what was downloaded to {}", path.display()))
                .because(&error)
        })?;
    }
    Ok(count)
}
