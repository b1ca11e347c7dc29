//! The pipeline: base → overlay → seed → boot → steps → seal → artifacts.
//!
//! One build works in a folder of its own ([`workspace`]), writes only an overlay, and publishes
//! the finished folder by one rename. Whatever ends it early leaves nothing behind.

pub mod cancel;
mod console;
pub mod export;
mod guest;
mod life;
mod manifest;
pub mod plan;
mod seal;
mod stage;
mod step;
mod workspace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use kvmbake_convert::Target;
use kvmbake_disk::{Block, Counted, MemoryBlock, Volatile};
use kvmbake_provision::key::BuildKey;
use kvmbake_provision::seed::NoCloud;
use tokio::task::JoinHandle;

pub use cancel::Cancel;
pub use plan::Plan;

use crate::checksum::{self, Algorithm, Checksum};
use crate::error::{Blame, Error};
use crate::profile::units::Size;
use crate::report::{Event, Report, Stage};
use console::Console;
use guest::{Guest, Setup};
use manifest::Manifest;
use stage::Stages;
use workspace::Workspace;

const OVERLAY: &str = "overlay.qcow2";
const SERIAL_LOG: &str = "serial.log";

/// Builds what `plan` says into a new folder below `output`, and returns that folder.
///
/// # Errors
/// Whatever ended the build; nothing of it is left then.
pub async fn run(
    plan: Arc<Plan>,
    output: &Path,
    report: Arc<dyn Report>,
    cancel: Cancel,
) -> Result<PathBuf, Error> {
    let begun = Instant::now();
    clean(output, report.as_ref())?;
    let now = SystemTime::now();
    let workspace =
        Workspace::create(output, &plan.profile.image.name, now).map_err(|(path, error)| {
            Error::input(format!("Cannot create {}", path.display())).because(&error)
        })?;
    let build =
        Build { plan, workspace: &workspace, report: Arc::clone(&report), cancel, begun, now };
    let manifest = build.run().await?;
    let failed = |error: std::io::Error| {
        Error::input(format!("Cannot finish the build in {}", output.display())).because(&error)
    };
    manifest.write(&workspace.path("")).map_err(failed)?;
    let folder = workspace.publish().map_err(failed)?;
    let artifacts: Vec<String> = manifest.artifacts.iter().map(describe).collect();
    report.event(Event::Done {
        folder: &folder.display().to_string(),
        artifacts: &artifacts,
        took: begun.elapsed(),
    });
    Ok(folder)
}

fn describe(artifact: &manifest::Artifact) -> String {
    let (size, allocated) = (Size(artifact.size), Size(artifact.allocated));
    format!("{}  {size}, {allocated} on disk", artifact.file)
}

fn clean(output: &Path, report: &dyn Report) -> Result<(), Error> {
    let removed = workspace::remove_leftovers(output).map_err(|(path, error)| {
        Error::input(format!("Cannot remove what a dead build left at {}", path.display()))
            .because(&error)
    })?;
    for folder in removed {
        let text = format!("removed {}, which a dead build left", folder.display());
        report.event(Event::Note { stage: Stage::Clean, text: &text });
    }
    Ok(())
}

/// One build under way.
struct Build<'w> {
    plan: Arc<Plan>,
    workspace: &'w Workspace,
    report: Arc<dyn Report>,
    cancel: Cancel,
    begun: Instant,
    now: SystemTime,
}

impl Build<'_> {
    async fn run(&self) -> Result<Manifest, Error> {
        let stages = Stages::new(self.report.as_ref());
        let base = self.plan.profile.image.source.value.display().to_string();
        let (disk, digest) = stages.run(Stage::Base, &base, self.base()).await?;
        let key = Arc::new(self.key()?);
        let setup = self.setup(&disk, Arc::clone(&key))?;
        let mut guest = stages
            .run(Stage::Boot, "reading the kernel from the image", async {
                let guest = Guest::boot(setup).await?;
                let origin = guest.kernel.origin.clone();
                Ok((guest, origin))
            })
            .await?;
        stages
            .run(Stage::Ssh, "waiting for the guest", async {
                let server = guest.connect().await?.server().to_string();
                Ok(((), format!("{}@guest, {server}", self.plan.profile.ssh.user)))
            })
            .await?;
        step::wait_for_cloud_init(&mut guest, &stages, self.plan.profile.ssh.timeout).await?;
        let mut steps = Vec::new();
        for (index, step) in self.plan.profile.steps.iter().enumerate() {
            steps.push(
                step::run(&mut guest, &stages, index + 1, step, Arc::clone(&self.report)).await?,
            );
        }
        let kernel = guest.kernel.clone();
        stages
            .run(Stage::Seal, "removing the build's key", seal::seal(guest, self.removable(&key)))
            .await?;
        let export = stages.run(Stage::Export, "", self.export(disk)).await?;
        let digest = self.digest(digest).await?;
        self.manifest(&kernel, digest, steps, &export)
    }

    /// Checks the base and lays the overlay on it. The base's digest, which only the manifest
    /// needs, is computed beside the rest of the build.
    async fn base(&self) -> Result<((Arc<Counted<Arc<dyn Block>>>, Digest), String), Error> {
        let plan = Arc::clone(&self.plan);
        let cancel = self.cancel.clone();
        let verified =
            tokio::task::spawn_blocking(move || plan.verify_checksum_until(cancel.flag()));
        verified.await.map_err(died)??;
        let digest = match &self.plan.profile.image.checksum {
            Some(checksum) => Digest::Known(checksum.value.clone()),
            None => Digest::Pending(self.spawn_digest()),
        };
        let path = self.workspace.path(OVERLAY);
        let overlay = kvmbake_disk::create_overlay(
            &path,
            Arc::clone(&self.plan.base),
            self.plan.virtual_size,
        )
        .map_err(|error| Error::input("Cannot create the build's overlay").because(&error))?;
        // What a guest flushes need not outlive this process: a dead build's overlay is thrown away,
        // and the images are made durable on their own.
        let overlay = Arc::new(Volatile(overlay)) as Arc<dyn Block>;
        let detail = format!("{}, {}", self.plan.base_format, Size(self.plan.virtual_size));
        Ok(((Arc::new(Counted::new(overlay)), digest), detail))
    }

    fn spawn_digest(&self) -> JoinHandle<std::io::Result<Option<Checksum>>> {
        let path = self.plan.profile.image.source.value.clone();
        let cancel = self.cancel.clone();
        tokio::task::spawn_blocking(move || {
            checksum::of_file(&path, Algorithm::Sha256, cancel.flag())
        })
    }

    async fn digest(&self, digest: Digest) -> Result<Checksum, Error> {
        match digest {
            Digest::Known(checksum) => Ok(checksum),
            Digest::Pending(task) => task
                .await
                .map_err(died)?
                .map_err(|error| Error::input("Cannot read the base image").because(&error))?
                .ok_or_else(Error::interrupted),
        }
    }

    /// The key that the build brought into the guest; one that the profile names was there, or was
    /// put there by the profile's own means, and stays.
    fn removable<'k>(&self, key: &'k BuildKey) -> Option<&'k BuildKey> {
        self.plan.private_key.is_none().then_some(key)
    }

    fn key(&self) -> Result<BuildKey, Error> {
        if let Some(key) = &self.plan.private_key {
            return Ok(key.clone());
        }
        BuildKey::generate(&self.plan.profile.image.name)
            .map_err(|error| Error::new(Blame::Internal, "Cannot make a key").because(&error))
    }

    fn setup(
        &self,
        disk: &Arc<Counted<Arc<dyn Block>>>,
        key: Arc<BuildKey>,
    ) -> Result<Setup, Error> {
        let path = self.workspace.path(SERIAL_LOG);
        let console = Console::create(&path).map_err(|error| {
            Error::input(format!("Cannot create {}", path.display())).because(&error)
        })?;
        Ok(Setup {
            plan: Arc::clone(&self.plan),
            disk: Arc::clone(disk),
            seed: self.seed(&key)?,
            key,
            console,
            report: Arc::clone(&self.report),
            cancel: self.cancel.clone(),
        })
    }

    /// The seed disk. Its instance id follows from the key, so that cloud-init sees a new instance
    /// in each build and the same one after a reboot within it.
    fn seed(&self, key: &BuildKey) -> Result<Option<Arc<MemoryBlock>>, Error> {
        let Some(seed) = &self.plan.profile.seed else { return Ok(None) };
        let public_key = key.public_openssh();
        let digest = checksum::of_bytes(public_key.as_bytes()).to_string();
        let id: String = digest.chars().skip("sha256:".len()).take(16).collect();
        let seed = NoCloud {
            instance_id: format!("kvmbake-{id}"),
            hostname: seed.hostname.clone(),
            user_data: self.plan.user_data.clone(),
            vendor_data: None,
            network_config: self.plan.network_config.clone(),
            public_key: self.plan.private_key.is_none().then_some(public_key),
            user: Some(self.plan.profile.ssh.user.clone()),
        };
        let image =
            seed.build().map_err(|error| Error::input("Cannot make the seed").because(&error))?;
        Ok(Some(Arc::new(MemoryBlock::read_only(image))))
    }

    /// Writes the images and removes the overlay.
    async fn export(
        &self,
        disk: Arc<Counted<Arc<dyn Block>>>,
    ) -> Result<(kvmbake_convert::Export, String), Error> {
        let targets: Vec<Target> = self
            .plan
            .profile
            .outputs
            .iter()
            .map(|output| Target::new(output.format, self.workspace.path(&output.file)))
            .collect();
        let (report, cancel) = (Arc::clone(&self.report), self.cancel.clone());
        let export = export::export(disk, targets, report, cancel).await?;
        std::fs::remove_file(self.workspace.path(OVERLAY))
            .map_err(|error| Error::input("Cannot remove the build's overlay").because(&error))?;
        let detail = format!("{} images, each read back and compared", export.artifacts.len());
        Ok((export, detail))
    }

    fn manifest(
        &self,
        kernel: &guest::Booted,
        digest: Checksum,
        steps: Vec<manifest::Step>,
        export: &kvmbake_convert::Export,
    ) -> Result<Manifest, Error> {
        let profile = &self.plan.profile;
        let digest_of_disk = export.disk_digest.as_ref().map(ToString::to_string);
        let artifacts = export.artifacts.iter().map(described).collect::<Result<_, _>>()?;
        Ok(Manifest {
            manifest_version: Manifest::version(),
            kvmbake_version: env!("CARGO_PKG_VERSION"),
            name: profile.image.name.clone(),
            started: workspace::rfc3339(self.now),
            seconds: stage::seconds(self.begun.elapsed()),
            source: manifest::Source {
                file: export::file_name(&profile.image.source.value),
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
                boot: kernel.origin.clone(),
                cmdline: kernel.cmdline.clone(),
            },
            steps,
            disk: manifest::Disk {
                virtual_size: self.plan.virtual_size,
                digest: taken(digest_of_disk.as_ref())?,
            },
            artifacts,
        })
    }
}

fn described(artifact: &kvmbake_convert::Artifact) -> Result<manifest::Artifact, Error> {
    Ok(manifest::Artifact {
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

/// The base's digest, known or on its way.
enum Digest {
    Known(Checksum),
    Pending(JoinHandle<std::io::Result<Option<Checksum>>>),
}

fn died(error: tokio::task::JoinError) -> Error {
    Error::new(Blame::Internal, "A worker died").because(&error)
}
