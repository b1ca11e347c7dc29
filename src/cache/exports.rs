//! Where the images of sealed layers lie that were exported before, so that an unchanged one is not
//! written again. The store keeps no copies: a record counts only while its file is untouched.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Cache;
use super::digest::Digest;
use super::envelope;
use super::error::CacheError;
use super::memo::Identity;
use super::recipe::{LayerId, put};

/// How many places are remembered of one export.
const KEPT: usize = 8;

/// What an export's bytes follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportKey<'a> {
    /// The sealed layer.
    pub layer: LayerId,
    /// The format.
    pub format: &'a str,
    /// All options that the bytes depend on.
    pub options: &'a str,
    /// The version of the encoder.
    pub encoder: &'a str,
}

/// An exported file and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Where it lies, absolute.
    pub path: PathBuf,
    /// The size of the disk in it, in bytes.
    pub virtual_size: u64,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
    /// SHA-512 of the file, in hexadecimal digits.
    pub sha512: String,
    /// MD5 of the file, in hexadecimal digits.
    pub md5: String,
    /// The digest of the disk's content.
    pub disk: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Records {
    pub layer: LayerId,
    files: Vec<(Identity, Exported)>,
}

impl Cache {
    /// Returns the untouched files that this export was written to, the latest first.
    ///
    /// Linking to such a file is a change of it: pass it to [`Cache::record_export`] again.
    pub fn find_export(&self, key: &ExportKey<'_>) -> Vec<Exported> {
        let mut files = self.exports(key);
        files.retain(|(identity, file)| identity_of(&file.path) == Some(*identity));
        files.into_iter().map(|(_, file)| file).collect()
    }

    /// Remembers where an export lies. Other names of the same file, by hard links, are taken for
    /// untouched as well, because making such a link changed their ctime.
    ///
    /// # Errors
    /// The file is gone, or the store cannot be written.
    pub fn record_export(&self, key: &ExportKey<'_>, file: &Exported) -> Result<(), CacheError> {
        let path = std::path::absolute(&file.path).map_err(CacheError::io("find", &file.path))?;
        let metadata = fs::symlink_metadata(&path).map_err(CacheError::io("look at", &path))?;
        let identity = Identity::of(&metadata);
        let mut files = self.exports(key);
        files.retain(|(_, known)| known.path != path);
        for (known, _) in &mut files {
            let same = (known.device, known.inode, known.length, known.mtime_ns)
                == (identity.device, identity.inode, identity.length, identity.mtime_ns);
            if same {
                *known = identity;
            }
        }
        files.retain(|(identity, known)| identity_of(&known.path) == Some(*identity));
        files.insert(0, (identity, Exported { path, ..file.clone() }));
        files.truncate(KEPT);
        let records = Records { layer: key.layer, files };
        envelope::write(&self.exports_path(key), &records, false)
    }

    fn exports(&self, key: &ExportKey<'_>) -> Vec<(Identity, Exported)> {
        let records = envelope::read::<Records>(&self.exports_path(key)).ok().flatten();
        records.filter(|records| records.layer == key.layer).map_or(Vec::new(), |found| found.files)
    }

    fn exports_path(&self, key: &ExportKey<'_>) -> PathBuf {
        let mut text = Vec::new();
        text.extend_from_slice(key.layer.digest().as_bytes());
        [key.format, key.options, key.encoder]
            .iter()
            .for_each(|part| put(&mut text, part.as_bytes()));
        self.root.join("exports").join(Digest::of(&text).prefix(32)).with_extension("json")
    }
}

fn identity_of(path: &Path) -> Option<Identity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then(|| Identity::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Store, build, eventually};
    use super::*;

    fn exported(path: &Path) -> Exported {
        Exported {
            path: path.into(),
            virtual_size: 1 << 20,
            allocated: 4096,
            sha512: "ab".into(),
            md5: "cd".into(),
            disk: "ef".into(),
        }
    }

    #[test]
    fn an_untouched_export_is_found_under_its_key_alone() {
        let store = Store::new();
        let layer = build(&store.cache, None, "sealed").id();
        let key = ExportKey { layer, format: "qcow2", options: "", encoder: "1" };
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("web.qcow2");
        fs::write(&path, "image").unwrap();
        store.cache.record_export(&key, &exported(&path)).unwrap();
        assert_eq!(store.again().find_export(&key), [exported(&path)]);
        for other in [
            ExportKey { format: "raw", ..key },
            ExportKey { options: "zstd", ..key },
            ExportKey { encoder: "2", ..key },
            ExportKey { layer: build(&store.cache, None, "other").id(), ..key },
        ] {
            assert!(store.cache.find_export(&other).is_empty(), "{other:?}");
        }
        fs::write(&path, "IMAGE").unwrap();
        eventually(|| {
            fs::write(&path, "IMAGE").unwrap();
            store.cache.find_export(&key).is_empty()
        });
        fs::remove_file(&path).unwrap();
        assert!(store.cache.find_export(&key).is_empty());
        assert!(store.cache.record_export(&key, &exported(&path)).is_err());
    }

    #[test]
    fn a_hard_link_renews_the_record_of_its_file() {
        let store = Store::new();
        let layer = build(&store.cache, None, "sealed").id();
        let key = ExportKey { layer, format: "raw", options: "", encoder: "1" };
        let out = tempfile::tempdir().unwrap();
        let (first, second) = (out.path().join("1.raw"), out.path().join("2.raw"));
        fs::write(&first, "image").unwrap();
        store.cache.record_export(&key, &exported(&first)).unwrap();
        fs::hard_link(&first, &second).unwrap();
        store.cache.record_export(&key, &exported(&second)).unwrap();
        assert_eq!(store.cache.find_export(&key), [exported(&second), exported(&first)]);
    }
}
