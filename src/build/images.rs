//! The sealed disk to its images, and the manifest over them: what can be taken from an earlier build
//! is, the rest is encoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_convert::Target;
use kvmbake_disk::Block;

use super::chain::Chain;
use super::manifest::{self, Artifact, Manifest};
use super::outlook::{Outlook, State};
use super::workspace::Workspace;
use super::{Build, export, reuse, stage};
use crate::cache::{Exported, LayerId};
use crate::calendar::rfc3339;
use crate::checksum::{self, Checksum};
use crate::error::{Blame, Error};
use crate::profile::Output;
use crate::profile::units::Size;
use crate::report::Event;

/// What an export left.
pub struct Images {
    artifacts: Vec<Artifact>,
    /// The digest of the disk's content.
    disk_digest: String,
}

impl Build {
    /// Returns the folder of a finished build below `output` that holds what this one would make, if
    /// nobody has touched it.
    pub(super) fn unchanged(&self, outlook: &Outlook, output: &Path) -> Option<PathBuf> {
        let last = outlook.entries.last().map(|entry| &entry.state);
        let (Some(layers), Some(State::Cached(sealed)), false) = (&self.layers, last, self.force)
        else {
            return None;
        };
        let outputs = &self.plan.profile.outputs;
        let found = reuse::find(layers.cache(), sealed.id(), outputs);
        let (folder, artifacts) = reuse::unchanged(&found, outputs, output)?;
        self.note("nothing changed since the finished build");
        self.done(&folder, &artifacts);
        Some(folder)
    }

    /// Writes the images into `workspace`.
    pub(super) async fn write_images(
        &self,
        disk: Arc<dyn Block>,
        sealed: Option<LayerId>,
        workspace: &Workspace,
    ) -> Result<(Images, String), Error> {
        let outputs = &self.plan.profile.outputs;
        let mut artifacts: Vec<Option<Artifact>> = vec![None; outputs.len()];
        let mut disk_digest = None;
        if let (Some(layers), Some(sealed)) = (&self.layers, sealed) {
            let found = reuse::find(layers.cache(), sealed, outputs);
            for ((found, output), place) in found.iter().zip(outputs).zip(&mut artifacts) {
                if let Some((taken, digest)) = take(found, output, workspace).await {
                    *place = Some(taken);
                    disk_digest = Some(digest);
                }
            }
        }
        let missing: Vec<&Output> = outputs
            .iter()
            .zip(&artifacts)
            .filter(|(_, taken)| taken.is_none())
            .map(|(o, _)| o)
            .collect();
        let reused = outputs.len() - missing.len();
        if !missing.is_empty() {
            let targets = missing
                .iter()
                .map(|output| Target::new(output.format, workspace.path(&output.file)))
                .collect();
            let (report, cancel) = (Arc::clone(&self.report), self.cancel.clone());
            let export = export::export(disk, targets, report, cancel).await?;
            disk_digest = export.disk_digest.as_ref().map(ToString::to_string).or(disk_digest);
            let mut written = export.artifacts.iter();
            for place in artifacts.iter_mut().filter(|place| place.is_none()) {
                *place = written.next().map(described).transpose()?;
            }
        }
        let artifacts: Vec<Artifact> = artifacts.into_iter().flatten().collect();
        let detail = match reused {
            0 => format!("{} images, each read back and compared", artifacts.len()),
            _ => format!("{} images, {reused} of them from an earlier build", artifacts.len()),
        };
        Ok((Images { artifacts, disk_digest: taken(disk_digest.as_ref())? }, detail))
    }

    /// Remembers where the images are.
    pub(super) fn remember(&self, sealed: LayerId, folder: &Path, manifest: &Manifest) {
        let Some(layers) = &self.layers else { return };
        let outputs = &self.plan.profile.outputs;
        if let Err(error) = reuse::remember(layers.cache(), sealed, folder, outputs, manifest) {
            self.note(&format!("the images will be written again next time: {error}"));
        }
    }

    /// Tells that the build is complete.
    pub(super) fn done(&self, folder: &Path, artifacts: &[Artifact]) {
        let artifacts: Vec<String> = artifacts.iter().map(describe).collect();
        self.report.event(Event::Done {
            folder: &folder.display().to_string(),
            artifacts: &artifacts,
            took: self.begun.elapsed(),
        });
    }

    pub(super) fn manifest(&self, chain: &Chain, digest: Checksum, images: Images) -> Manifest {
        let profile = &self.plan.profile;
        let kernel = chain.kernel.clone().unwrap_or_default();
        Manifest {
            manifest_version: Manifest::version(),
            kvmbake_version: env!("CARGO_PKG_VERSION"),
            name: profile.image.name.clone(),
            started: rfc3339(self.now),
            seconds: stage::seconds(self.begun.elapsed()),
            source: manifest::Source {
                file: self.plan.source.name.clone(),
                url: self.plan.source.url.clone(),
                format: self.plan.base_format.to_string(),
                digest: digest.to_string(),
            },
            profile: manifest::Profile {
                file: export::file_name(profile.source.path()),
                digest: checksum::of_bytes(profile.source.text().as_bytes()).to_string(),
            },
            machine: manifest::Machine {
                cpus: profile.machine.cpus,
                memory: profile.machine.memory,
                boot: kernel.origin,
                cmdline: kernel.cmdline,
            },
            steps: chain.steps.clone(),
            disk: manifest::Disk {
                virtual_size: self.plan.virtual_size,
                digest: images.disk_digest,
            },
            artifacts: images.artifacts,
        }
    }
}

/// Takes an image from an earlier build.
async fn take(
    found: &[Exported],
    output: &Output,
    workspace: &Workspace,
) -> Option<(Artifact, String)> {
    for exported in found {
        let (source, target) = (exported.path.clone(), workspace.path(&output.file));
        let artifact = reuse::artifact(exported, output)?;
        let made = target.clone();
        match tokio::task::spawn_blocking(move || reuse::copy(&source, &target)).await {
            Ok(Ok(())) => return Some((artifact, exported.disk.clone())),
            // It is encoded instead, which needs the name to be free.
            _ => drop(std::fs::remove_file(made)),
        }
    }
    None
}

fn describe(artifact: &Artifact) -> String {
    let (size, allocated) = (Size(artifact.size), Size(artifact.allocated));
    format!("{}  {size}, {allocated} on disk", artifact.file)
}

fn described(artifact: &kvmbake_convert::Artifact) -> Result<Artifact, Error> {
    Ok(Artifact {
        file: export::file_name(&artifact.path),
        format: artifact.format.to_string(),
        virtual_size: artifact.virtual_size,
        size: artifact.file_size,
        allocated: artifact.allocated,
        sha512: taken(artifact.sha512.as_ref())?,
        md5: taken(artifact.md5.as_ref())?,
    })
}

/// A digest that the export was asked for.
fn taken(digest: Option<&String>) -> Result<String, Error> {
    digest.cloned().ok_or_else(|| Error::new(Blame::Internal, "The export took no digest"))
}
