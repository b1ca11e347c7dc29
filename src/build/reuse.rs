//! Exports that an earlier build wrote and nobody has touched: the images of an unchanged disk in an
//! unchanged format are the same bytes, so they are not written again. The cache keeps no images of
//! its own; it remembers where they went.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::manifest::{Artifact, ExtentFile, Manifest};
use crate::cache::{Cache, CacheError, ExportKey, Exported, LayerId};
use crate::profile::Output;
use crate::sparse;

/// The encoders' version; raised when they write other bytes for the same disk.
const ENCODERS: &str = "1";
/// What is copied at once.
const CHUNK: usize = 1 << 20;

/// The exports of one sealed disk.
pub struct Exports<'a> {
    /// Where they are remembered.
    pub cache: &'a Cache,
    /// The sealed disk's layer.
    pub layer: LayerId,
    /// The time that the images state, if one was asked for.
    pub time: Option<u64>,
    /// The virtual size that the sealed disk is grown to.
    pub size: u64,
}

/// An image of an earlier build that lies somewhere untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The image's file.
    pub image: Exported,
    /// The file beside it, of an image that consists of two.
    pub extent: Option<Exported>,
}

impl Exports<'_> {
    /// Returns the untouched images, output by output.
    pub fn find(&self, outputs: &[Output]) -> Vec<Vec<Kept>> {
        outputs.iter().map(|output| self.find_one(output)).collect()
    }

    fn find_one(&self, output: &Output) -> Vec<Kept> {
        let images = self.with_key(output, Part::Image, |key| self.cache.find_export(key));
        let Some(name) = output.extent() else {
            return images.into_iter().map(|image| Kept { image, extent: None }).collect();
        };
        let extents = self.with_key(output, Part::Extent, |key| self.cache.find_export(key));
        let beside = |image: Exported| {
            let path = image.path.with_file_name(&name);
            let extent = extents.iter().find(|extent| extent.path == path).cloned();
            extent.map(|extent| Kept { image, extent: Some(extent) })
        };
        images.into_iter().filter_map(beside).collect()
    }

    /// Remembers where the images of a finished build lie.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn remember(
        &self,
        folder: &Path,
        outputs: &[Output],
        manifest: &Manifest,
    ) -> Result<(), CacheError> {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        for (output, artifact) in outputs.iter().zip(&manifest.artifacts) {
            let image = Exported {
                path: folder.join(&output.file),
                virtual_size: artifact.virtual_size,
                allocated: artifact.allocated,
                sha512: artifact.sha512.clone(),
                md5: artifact.md5.clone(),
                disk: manifest.disk.digest.clone(),
            };
            if let Some(extent) = &artifact.extent {
                let extent = Exported {
                    path: folder.join(&extent.file),
                    allocated: extent.allocated,
                    sha512: extent.sha512.clone(),
                    md5: extent.md5.clone(),
                    ..image.clone()
                };
                self.with_key(output, Part::Extent, |key| self.cache.record_export(key, &extent))?;
            }
            self.with_key(output, Part::Image, |key| self.cache.record_export(key, &image))?;
        }
        Ok(())
    }

    fn with_key<T>(
        &self,
        output: &Output,
        part: Part,
        use_key: impl FnOnce(&ExportKey<'_>) -> T,
    ) -> T {
        let format = output.format().to_string();
        // The debugging form has every option, also those that are added one day.
        let mut options = format!("{part:?} {:?} {:?} {}", output.encoding, self.time, self.size);
        if output.encoding.states_file_name() {
            options.push_str(&output.file);
        }
        let layer = self.layer;
        use_key(&ExportKey { layer, format: &format, options: &options, encoder: ENCODERS })
    }
}

/// The files of an image.
#[derive(Debug, Clone, Copy)]
enum Part {
    Image,
    Extent,
}

/// Returns the finished build in `folder` that holds all outputs under their names, if there is one;
/// the newest of several. `size` is the disk's.
pub fn unchanged(
    found: &[Vec<Kept>],
    outputs: &[Output],
    folder: &Path,
    size: u64,
) -> Option<(PathBuf, Vec<Artifact>)> {
    let folder = folder.canonicalize().ok()?;
    let mut builds: Vec<&Path> = found
        .first()?
        .iter()
        .filter_map(|kept| kept.image.path.parent())
        .filter(|build| build.parent() == Some(&folder) && build.join("manifest.json").is_file())
        .collect();
    builds.sort();
    builds.into_iter().rev().find_map(|build| {
        let artifacts: Option<Vec<Artifact>> = found
            .iter()
            .zip(outputs)
            .map(|(kept, output)| {
                let path = build.join(&output.file);
                artifact(kept.iter().find(|kept| kept.image.path == path)?, output, size)
            })
            .collect();
        Some((build.to_path_buf(), artifacts?))
    })
}

/// What a manifest says of an image that was exported before, of a disk of `size` bytes.
pub fn artifact(kept: &Kept, output: &Output, size: u64) -> Option<Artifact> {
    let len = |exported: &Exported| Some(fs::metadata(&exported.path).ok()?.len());
    let image = &kept.image;
    let extent = match (&kept.extent, output.extent()) {
        (Some(extent), Some(file)) => Some(ExtentFile {
            file,
            size: len(extent)?,
            allocated: extent.allocated,
            sha512: extent.sha512.clone(),
            md5: extent.md5.clone(),
        }),
        _ => None,
    };
    Some(Artifact {
        file: output.file.clone(),
        format: output.format().to_string(),
        virtual_size: image.virtual_size,
        rounded_up_from: (image.virtual_size != size).then_some(size),
        size: len(image)?,
        allocated: image.allocated,
        sha512: image.sha512.clone(),
        md5: image.md5.clone(),
        extent,
    })
}

/// Gives `target` the content of `source`: as a reflink where the file system has them, else as a
/// sparse copy.
///
/// # Errors
/// The file system's; `target` may be half-written then.
pub fn copy(source: &Path, target: &Path) -> io::Result<()> {
    let from = File::open(source)?;
    let to = fs::OpenOptions::new().read(true).write(true).create_new(true).open(target)?;
    to.set_permissions(fs::Permissions::from_mode(from.metadata()?.permissions().mode() & 0o777))?;
    // SAFETY: FICLONE takes a descriptor as its argument; both are open.
    if unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0 {
        return to.sync_all();
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = sparse::next_data(&from, at)?.filter(|data| *data < length) {
        let end = sparse::next_hole(&from, data)?.unwrap_or(length).min(length);
        at = data;
        while at < end {
            let part = &mut buffer[..CHUNK.min((end - at) as usize)];
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    to.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmbake_convert::{Encoding, Format};

    use super::super::manifest;
    use crate::profile::{Place, Source};

    fn output(format: Format, file: &str, settings: &[(&str, &str)]) -> Output {
        let mut encoding = Encoding::from(format);
        for (key, value) in settings {
            encoding.set(key, value).unwrap();
        }
        let place: Place = Source::new("p.toml", "").place(&(0..0));
        Output { encoding, file: file.into(), place }
    }

    /// A finished build of these outputs below `folder`, of a disk of 1000 bytes.
    fn finished(folder: &Path, outputs: &[Output]) -> (PathBuf, Manifest) {
        let build = folder.join("web-1");
        fs::create_dir(&build).unwrap();
        let artifact = |output: &Output| {
            for file in output.files() {
                fs::write(build.join(&file), &file).unwrap();
            }
            let extent = output.extent().map(|file| ExtentFile {
                size: file.len() as u64,
                file,
                allocated: 4096,
                sha512: "ee".into(),
                md5: "ff".into(),
            });
            Artifact {
                file: output.file.clone(),
                format: output.format().to_string(),
                virtual_size: 1024,
                rounded_up_from: Some(1000),
                size: output.file.len() as u64,
                allocated: 4096,
                sha512: "aa".into(),
                md5: "bb".into(),
                extent,
            }
        };
        let artifacts = outputs.iter().map(artifact).collect();
        let manifest = manifest::tests::with_artifacts(artifacts);
        fs::write(build.join("manifest.json"), "{}").unwrap();
        (build, manifest)
    }

    #[test]
    fn an_image_is_taken_only_for_the_same_options_name_and_time() {
        let store = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(&store.path().join("cache")).unwrap();
        let layer = serde_json::from_value(serde_json::json!("5e".repeat(32))).unwrap();
        let out = tempfile::tempdir().unwrap();
        let exports = Exports { cache: &cache, layer, time: None, size: 1000 };
        let outputs = [
            output(Format::Qcow2, "web.qcow2", &[]),
            output(Format::Vmdk, "web.vmdk", &[("subformat", "monolithicFlat")]),
        ];
        let (folder, manifest) = finished(out.path(), &outputs);
        exports.remember(&folder, &outputs, &manifest).unwrap();
        let found = exports.find(&outputs);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        let (build, artifacts) = unchanged(&found, &outputs, out.path(), 1000).unwrap();
        assert_eq!(build, folder.canonicalize().unwrap());
        let json = |artifacts: &[Artifact]| serde_json::to_value(artifacts).unwrap();
        assert_eq!(json(&artifacts), json(&manifest.artifacts));

        let others = [
            output(Format::Qcow2, "web.qcow2", &[("cluster_size", "4K")]),
            output(Format::Qcow2, "web.qcow2", &[("level", "9")]),
            // A VMDK states its own name.
            output(Format::Vmdk, "other.vmdk", &[("subformat", "monolithicFlat")]),
            output(Format::Vmdk, "web.vmdk", &[]),
        ];
        assert!(exports.find(&others).iter().all(Vec::is_empty));
        let renamed = [output(Format::Qcow2, "other.qcow2", &[])];
        assert_eq!(exports.find(&renamed)[0].len(), 1, "a qcow2 does not");
        let dated = Exports { time: Some(1), ..exports };
        assert!(dated.find(&outputs).iter().all(Vec::is_empty));
        let grown = Exports { size: 2000, ..exports };
        assert!(grown.find(&outputs).iter().all(Vec::is_empty), "a disk of another size");

        // Without the file that holds its data the image is nothing.
        fs::remove_file(folder.join("web-flat.vmdk")).unwrap();
        assert_eq!(exports.find(&outputs).iter().map(Vec::len).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_stays_sparse() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&source).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", (20 << 20) + 7).unwrap();
        copy(&source, &target).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20);
        assert!(copy(&source, &target).is_err(), "an existing file is never replaced");
    }
}
