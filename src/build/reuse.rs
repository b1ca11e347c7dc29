//! Exports that an earlier build wrote and nobody has touched: the images of an unchanged disk in an
//! unchanged format are the same bytes, so they are not written again. The cache keeps no images of
//! its own; it remembers where they went.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::manifest::{Artifact, Manifest};
use crate::cache::{Cache, CacheError, ExportKey, Exported, LayerId};
use crate::profile::Output;
use crate::sparse;

/// The encoders' version; raised when they write other bytes for the same disk.
const ENCODERS: &str = "1";
/// What is copied at once.
const CHUNK: usize = 1 << 20;

/// The images of the sealed disk `layer` that lie somewhere untouched, output by output.
pub fn find(cache: &Cache, layer: LayerId, outputs: &[Output]) -> Vec<Vec<Exported>> {
    let find = |output: &Output| with_key(layer, output, |key| cache.find_export(key));
    outputs.iter().map(find).collect()
}

fn with_key<T>(layer: LayerId, output: &Output, use_key: impl FnOnce(&ExportKey<'_>) -> T) -> T {
    let format = output.format.to_string();
    use_key(&ExportKey { layer, format: &format, options: "", encoder: ENCODERS })
}

/// Returns the finished build in `folder` that holds all outputs under their names, if there is one;
/// the newest of several.
pub fn unchanged(
    found: &[Vec<Exported>],
    outputs: &[Output],
    folder: &Path,
) -> Option<(PathBuf, Vec<Artifact>)> {
    let folder = folder.canonicalize().ok()?;
    let mut builds: Vec<&Path> = found
        .first()?
        .iter()
        .filter_map(|exported| exported.path.parent())
        .filter(|build| build.parent() == Some(&folder) && build.join("manifest.json").is_file())
        .collect();
    builds.sort();
    builds.into_iter().rev().find_map(|build| {
        let artifacts: Option<Vec<Artifact>> = found
            .iter()
            .zip(outputs)
            .map(|(exported, output)| {
                let path = build.join(&output.file);
                let exported = exported.iter().find(|exported| exported.path == path)?;
                artifact(exported, output)
            })
            .collect();
        Some((build.to_path_buf(), artifacts?))
    })
}

/// What a manifest says of an image that was exported before.
pub fn artifact(exported: &Exported, output: &Output) -> Option<Artifact> {
    Some(Artifact {
        file: output.file.clone(),
        format: output.format.to_string(),
        virtual_size: exported.virtual_size,
        size: fs::metadata(&exported.path).ok()?.len(),
        allocated: exported.allocated,
        sha512: exported.sha512.clone(),
        md5: exported.md5.clone(),
    })
}

/// Remembers where the images of a finished build lie.
///
/// # Errors
/// The cache cannot be written.
pub fn remember(
    cache: &Cache,
    layer: LayerId,
    folder: &Path,
    outputs: &[Output],
    manifest: &Manifest,
) -> Result<(), CacheError> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    for (output, artifact) in outputs.iter().zip(&manifest.artifacts) {
        let exported = Exported {
            path: folder.join(&output.file),
            virtual_size: artifact.virtual_size,
            allocated: artifact.allocated,
            sha512: artifact.sha512.clone(),
            md5: artifact.md5.clone(),
            disk: manifest.disk.digest.clone(),
        };
        with_key(layer, output, |key| cache.record_export(key, &exported))?;
    }
    Ok(())
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
