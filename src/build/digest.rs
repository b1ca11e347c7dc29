//! The checksum of the base: compared with the profile's, and kept for the manifest.

use std::path::Path;

use tokio::task::JoinHandle;

use super::Build;
use super::stage::Stages;
use crate::cache::CacheError;
use crate::checksum::{self, Algorithm, Checksum};
use crate::error::{Blame, Error};
use crate::profile::units::Size;
use crate::report::Stage;

/// A checksum being computed; `None` when the user stopped it.
type PendingChecksum = JoinHandle<std::io::Result<Option<Checksum>>>;

/// The base's digest, known or on its way.
pub enum Digest {
    Known(Checksum),
    Pending(PendingChecksum),
}

impl Build {
    /// Checks the base. Without a cache only the manifest needs its digest, which is computed beside
    /// the build then.
    pub(super) async fn base(&self) -> Result<Digest, Error> {
        let source = &self.plan.source.path;
        let checked = async {
            let digest = match (&self.plan.source.checksum, &self.plan.source.expected) {
                (Some(checked), _) => Digest::Known(checked.clone()),
                (None, Some(expected)) => {
                    let found = self.spawn_checksum(expected.algorithm);
                    let found = await_checksum(found, source).await?;
                    self.plan.compare_checksum(&found)?;
                    Digest::Known(found)
                }
                // With a cache the first layer's recipe needs it, and this one would come too late.
                (None, None) if self.layers.is_some() => {
                    let found = self.spawn_checksum(Algorithm::Sha256);
                    Digest::Known(await_checksum(found, source).await?)
                }
                (None, None) => Digest::Pending(self.spawn_checksum(Algorithm::Sha256)),
            };
            let size = Size(self.plan.virtual_size);
            Ok((digest, format!("{}, {size}", self.plan.base_format)))
        };
        let stages = Stages::new(self.report.as_ref());
        let name = self.plan.profile.image.source.value.to_string();
        stages.run(Stage::Base, &name, checked).await
    }

    fn spawn_checksum(&self, algorithm: Algorithm) -> PendingChecksum {
        let path = self.plan.source.path.clone();
        let cancel = self.cancel.clone();
        let cache = self.layers.as_ref().map(|layers| layers.cache().clone());
        tokio::task::spawn_blocking(move || match cache {
            Some(cache) => match cache.file_checksum(&path, algorithm, cancel.flag()) {
                Ok(checksum) => Ok(Some(checksum)),
                Err(CacheError::Cancelled) => Ok(None),
                Err(error) => Err(std::io::Error::other(error)),
            },
            None => checksum::of_file(&path, algorithm, cancel.flag()),
        })
    }

    pub(super) async fn digest(&self, digest: Digest) -> Result<Checksum, Error> {
        match digest {
            Digest::Known(checksum) => Ok(checksum),
            Digest::Pending(task) => await_checksum(task, &self.plan.source.path).await,
        }
    }
}

async fn await_checksum(pending: PendingChecksum, path: &Path) -> Result<Checksum, Error> {
    pending
        .await
        .map_err(|error| Error::new(Blame::Internal, "A worker died").because(&error))?
        .map_err(|error| Error::input(format!("Cannot read {}", path.display())).because(&error))?
        .ok_or_else(Error::interrupted)
}
