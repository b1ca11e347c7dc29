//! The sealed disk to its images, and the manifest over them: what can be taken from an earlier build
//! is, the rest is encoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_convert::Target;
use kvmbake_disk::Block;

use super::chain::Chain;
use super::layers::Layers;
use super::manifest::{self, Artifact, ExtentFile, Manifest};
use super::outlook::{Outlook, State};
use super::reuse::{Exports, Kept};
use super::step::transfer;
use super::workspace::Workspace;
use super::{Build, export, reuse, stage};
use crate::cache::LayerId;
use crate::calendar::rfc3339;
use crate::checksum::{self, Checksum};
use crate::error::{Blame, Error};
use crate::profile::Output;
use crate::profile::units::Size;
use crate::report::{Event, Stage};

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
        if transfer::are_there(&self.plan.profile) {
            // Where they went, the exports do not remember.
            return None;
        }
        let outputs = &self.plan.profile.outputs;
        let found = self.exports(layers, sealed.id()).find(outputs);
        let size = self.plan.virtual_size;
        let (folder, artifacts) = reuse::unchanged(&found, outputs, output, size)?;
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
            let found = self.exports(layers, sealed).find(outputs);
            for ((found, output), place) in found.iter().zip(outputs).zip(&mut artifacts) {
                if let Some((taken, digest)) = self.take(found, output, workspace).await {
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
                .map(|output| Target {
                    time: self.plan.time,
                    ..Target::new(output.encoding.clone(), workspace.path(&output.file))
                })
                .collect();
            let (report, cancel) = (Arc::clone(&self.report), self.cancel.clone());
            let export = export::export(disk, targets, report, cancel).await?;
            disk_digest = export.disk_digest.as_ref().map(ToString::to_string).or(disk_digest);
            let mut written = export.artifacts.iter();
            for place in artifacts.iter_mut().filter(|place| place.is_none()) {
                let size = self.plan.virtual_size;
                *place = written.next().map(|image| described(image, size)).transpose()?;
            }
        }
        let artifacts: Vec<Artifact> = artifacts.into_iter().flatten().collect();
        for artifact in &artifacts {
            if let Some(size) = artifact.rounded_up_from {
                let format = &artifact.format;
                let text = export::rounded_up(&artifact.file, format, size, artifact.virtual_size);
                self.report.event(Event::Note { stage: Stage::Export, text: &text });
            }
        }
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
        let remembered = self.exports(layers, sealed).remember(folder, outputs, manifest);
        if let Err(error) = remembered {
            self.note(&format!("the images will be written again next time: {error}"));
        }
    }

    fn exports<'a>(&self, layers: &'a Layers, layer: LayerId) -> Exports<'a> {
        Exports { cache: layers.cache(), layer, time: self.plan.time, size: self.plan.virtual_size }
    }

    /// Takes an image from an earlier build.
    async fn take(
        &self,
        found: &[Kept],
        output: &Output,
        workspace: &Workspace,
    ) -> Option<(Artifact, String)> {
        for kept in found {
            let artifact = reuse::artifact(kept, output, self.plan.virtual_size)?;
            let files: Vec<(PathBuf, PathBuf)> = std::iter::once(&kept.image)
                .chain(&kept.extent)
                .zip(output.files())
                .map(|(exported, file)| (exported.path.clone(), workspace.path(&file)))
                .collect();
            let made: Vec<PathBuf> = files.iter().map(|(_, target)| target.clone()).collect();
            let copy =
                move || files.iter().try_for_each(|(source, target)| reuse::copy(source, target));
            if let Ok(Ok(())) = tokio::task::spawn_blocking(copy).await {
                return Some((artifact, kept.image.disk.clone()));
            }
            // It is encoded instead, which needs the names to be free.
            made.iter().for_each(|file| drop(std::fs::remove_file(file)));
        }
        None
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
                digest: checksum::of_bytes(profile.source.whole_text().as_bytes()).to_string(),
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

fn describe(artifact: &Artifact) -> String {
    let on_disk = |file: &str, size: u64, allocated: u64| {
        format!("{file}  {}, {} on disk", Size(size), Size(allocated))
    };
    let image = on_disk(&artifact.file, artifact.size, artifact.allocated);
    match &artifact.extent {
        Some(extent) => {
            format!("{image}; {}", on_disk(&extent.file, extent.size, extent.allocated))
        }
        None => image,
    }
}

fn described(artifact: &kvmbake_convert::Artifact, size: u64) -> Result<Artifact, Error> {
    let extent = artifact.extent.as_ref().map(|extent| {
        Ok::<_, Error>(ExtentFile {
            file: export::file_name(&extent.path),
            size: extent.file_size,
            allocated: extent.allocated,
            sha512: taken(extent.sha512.as_ref())?,
            md5: taken(extent.md5.as_ref())?,
        })
    });
    Ok(Artifact {
        file: export::file_name(&artifact.path),
        format: artifact.format.to_string(),
        virtual_size: artifact.virtual_size,
        rounded_up_from: (artifact.virtual_size != size).then_some(size),
        size: artifact.file_size,
        allocated: artifact.allocated,
        sha512: taken(artifact.sha512.as_ref())?,
        md5: taken(artifact.md5.as_ref())?,
        extent: extent.transpose()?,
    })
}

/// A digest that the export was asked for.
fn taken(digest: Option<&String>) -> Result<String, Error> {
    digest.cloned().ok_or_else(|| Error::new(Blame::Internal, "The export took no digest"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use kvmbake_disk::MemoryBlock;

    use super::super::{Cancel, Options, Plan};
    use super::*;
    use crate::profile::Given;
    use crate::report::{Notes, Report};

    fn load(profile: &Path) -> Result<Plan, Error> {
        let report: Arc<dyn Report> = Arc::new(Notes::default());
        Plan::load(profile, &Given::default(), &report, &Cancel::default())
    }

    #[test]
    fn images_are_written_as_their_outputs_say() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; (3 << 20) + 1];
        bytes[5000..9000].fill(7);
        bytes[3 << 20] = 1;
        std::fs::write(folder.path().join("base.raw"), &bytes).unwrap();
        let profile = folder.path().join("p.toml");
        let text = "[image]\nname = \"web\"\nsource = \"base.raw\"\nformat = \"raw\"\n\
                    [[output]]\nformat = \"vmdk\"\noptions.subformat = \"monolithicFlat\"\n\
                    [[output]]\nformat = \"vhd\"\noptions = { subformat = \"fixed\" }\n\
                    [[output]]\nformat = \"qcow2\"\ncompress = true\noptions.cluster_size = \"4K\"\n\
                    [[output]]\nformat = \"raw\"\n";
        std::fs::write(&profile, text).unwrap();
        let plan = Arc::new(load(&profile).unwrap());
        let notes = Arc::new(Notes::default());
        let options = Options { no_cache: true, ..Options::default() };
        let build =
            Build::new(plan, &options, Arc::clone(&notes) as Arc<dyn Report>, Cancel::default())
                .unwrap();
        let out = folder.path().join("out");
        let workspace = Workspace::create(&out, "web", SystemTime::now()).unwrap();
        let disk = Arc::new(MemoryBlock::read_only(bytes));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (images, _) = runtime.block_on(build.write_images(disk, None, &workspace)).unwrap();

        let [vmdk, vhd, qcow2, raw] = images.artifacts.as_slice() else {
            panic!("{:?}", images.artifacts)
        };
        let extent = vmdk.extent.as_ref().unwrap();
        assert_eq!((extent.file.as_str(), extent.size), ("web-flat.vmdk", (3 << 20) + 512));
        assert_eq!(extent.sha512.len(), 128);
        let sizes =
            [vmdk, vhd, qcow2, raw].map(|image| (image.virtual_size, image.rounded_up_from));
        let size = (3 << 20) + 1;
        let sector = ((3 << 20) + 512, Some(size));
        assert_eq!(sizes, [sector, (4 << 20, Some(size)), sector, (size, None)]);
        let notes = notes.take();
        let rounded = "web.vhd: 3145729 bytes are rounded up to 4194304, which vhd can express";
        assert!(notes.iter().any(|note| note == rounded), "{notes:?}");
        for file in ["web.vmdk", "web-flat.vmdk", "web.vhd", "web.qcow2", "web.raw"] {
            assert!(workspace.path(file).is_file(), "{file}");
        }
        // The cluster size in the header, and a place that is marked as compressed.
        let header = std::fs::read(workspace.path("web.qcow2")).unwrap();
        assert_eq!(header[20..24], 12u32.to_be_bytes());
    }

    #[test]
    fn a_sealed_disk_is_grown_to_the_size_of_the_images() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.raw"), vec![0; 1 << 20]).unwrap();
        let profile = folder.path().join("p.toml");
        let text = "[image]\nname = \"web\"\nsource = \"base.raw\"\nformat = \"raw\"\n\
                    size = \"8M\"\nbuild_size = \"2M\"\n[[output]]\nformat = \"raw\"\n";
        std::fs::write(&profile, text).unwrap();
        let plan = Arc::new(load(&profile).unwrap());
        assert_eq!((plan.build_size, plan.virtual_size), (2 << 20, 8 << 20));
        let options = Options { no_cache: true, ..Options::default() };
        let report: Arc<dyn Report> = Arc::new(Notes::default());
        let build = Build::new(plan, &options, report, Cancel::default()).unwrap();
        let place = build.place(Some(folder.path())).unwrap();
        let disk: Arc<dyn Block> = Arc::new(MemoryBlock::read_only(vec![5; 2 << 20]));
        let grown = build.grown(&disk, &place).unwrap();
        let mut buf = [9; 1024];
        grown.read_at(&mut buf, (2 << 20) - 512).unwrap();
        assert_eq!(grown.len(), 8 << 20);
        assert!(buf[..512] == [5; 512] && buf[512..] == [0; 512]);
        assert!(Arc::ptr_eq(&build.grown(&grown, &place).unwrap(), &grown), "large enough");
    }

    #[test]
    fn disks_that_an_output_cannot_hold_are_refused_before_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let base = std::fs::File::create(folder.path().join("base.raw")).unwrap();
        base.set_len(1 << 20).unwrap();
        let profile = folder.path().join("p.toml");
        let text = "[image]\nname = \"web\"\nsource = \"base.raw\"\nformat = \"raw\"\n\
                    size = \"3T\"\n[[output]]\nformat = \"vhd\"\n[[output]]\nformat = \"qcow2\"\n\
                    options.cluster_size = 512\n[[output]]\nformat = \"raw\"\n";
        std::fs::write(&profile, text).unwrap();
        let Err(error) = load(&profile) else { panic!("it is planned") };
        let faults: Vec<_> = error.faults.iter().map(|f| (f.place.line, &*f.message)).collect();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].0 == 7 && faults[0].1.contains("2040 GiB"), "{faults:?}");
        assert!(faults[1].0 == 9 && faults[1].1.contains("L1 table"), "{faults:?}");
    }
}
