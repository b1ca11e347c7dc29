//! qcow2 images, over the `imago` crate.
//!
//! `open` and `overlay` make the disks: `header`, `structure` and `refcounts` check a file before imago
//! sees it, `store` is what imago reads and writes through. This file turns imago's view into a
//! [`Block`] and adds what it leaves out: freeing the host's space on discard, walking the data
//! extents, and taking any disk as backing.
//!
//! Images with zstd clusters or extended L2 entries, which imago does not know, and dirty ones, which
//! it refuses, are read through `reader` and not written.
//!
//! Left out: encryption (refused by name), and internal snapshots other than the current state.

mod header;
mod open;
mod overlay;
mod reader;
mod refcounts;
mod store;
mod structure;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, ShallowMapping};

use self::header::Header;
pub use self::open::check_refcounts;
pub(crate) use self::open::{names, open};
pub use self::overlay::{create_overlay, open_overlay};
pub use self::refcounts::RefcountReport;
use self::store::{FileStore, Store};
use crate::block::{Block, Extent, check_range};
use crate::error::{Error, ErrorKind};
use crate::lock::{self, Use};

/// `next_data` joins neighbouring extents up to this length.
const JOIN_LIMIT: u64 = 64 << 20;

/// What is written where an image can not mark clusters as zero (version 2 with a backing disk).
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A qcow2 image.
pub struct Qcow2Block {
    image: FormatAccess<Store>,
    base: Option<Arc<dyn Block>>,
    /// Reading and writing look up where a cluster lies and then go there: they hold this shared.
    /// Freeing clusters holds it alone, so that no cluster is freed, and given to somebody else,
    /// between the two. Taken before every lock of imago's.
    clusters: RwLock<()>,
    path: PathBuf,
    len: u64,
    cluster_size: u64,
    version: u32,
    writable: AtomicBool,
    /// The file of an overlay made here, to step down from writing.
    file: Option<Arc<FileStore>>,
}

/// Wraps a disk so that imago reads unallocated clusters from it.
fn base_format(
    base: Option<&Arc<dyn Block>>,
    path: &Path,
) -> Result<Option<FormatAccess<Store>>, Error> {
    base.map(|base| {
        Raw::open_image(Store::base(Arc::clone(base)), false)
            .map(FormatAccess::new)
            .map_err(|error| Error::io("open", error).on(path))
    })
    .transpose()
}

impl Qcow2Block {
    fn new(
        image: Qcow2<Store>,
        base: Option<Arc<dyn Block>>,
        path: &Path,
        header: &Header,
        writable: bool,
    ) -> Qcow2Block {
        Qcow2Block {
            image: FormatAccess::new(image),
            base,
            clusters: RwLock::new(()),
            path: path.to_owned(),
            len: header.size,
            cluster_size: header.cluster_size(),
            version: header.version,
            writable: AtomicBool::new(writable),
            file: None,
        }
    }

    /// Ends writing for good: what the image holds is in the file now, though not durable yet, and
    /// others may read the file. Only for an overlay made by [`create_overlay`]. The caller sees to
    /// it that no request is under way.
    ///
    /// # Errors
    /// What flushing met; the overlay stays writable then.
    pub fn freeze(&self) -> Result<(), Error> {
        let _alone = self.free_clusters();
        self.image.flush().map_err(|error| self.failed("flush", 0, error))?;
        if let Some(store) = &self.file {
            store.trim().map_err(|error| self.failed("flush", 0, error))?;
            let file = store.host_file().file();
            lock::unlock(file);
            lock::lock(file, &self.path, Use::Read)?;
        }
        self.writable.store(false, Ordering::Release);
        Ok(())
    }

    /// Returns the file's path at the time of opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Keeps clusters from being freed; a read-only image frees none.
    fn keep_clusters(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.is_writable().then(|| self.clusters.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn free_clusters(&self) -> RwLockWriteGuard<'_, ()> {
        self.clusters.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str, offset: u64, error: io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(inner) => inner.on(&self.path),
            Err(error) => Error::io(operation, error).on(&self.path).at(offset),
        }
    }

    fn check(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), Error> {
        check_range(operation, offset, len, self.len).map_err(|error| error.on(&self.path))
    }

    fn check_change(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), Error> {
        if !self.is_writable() {
            return Err(Error::new(ErrorKind::ReadOnly, operation).on(&self.path));
        }
        self.check(operation, offset, len)
    }

    /// Returns the clusters that lie wholly in the range; the disk's last cluster counts as whole
    /// when the range reaches the disk's end.
    fn whole_clusters(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset + len;
        let first = offset.next_multiple_of(self.cluster_size);
        let behind =
            if end == self.len { end } else { end / self.cluster_size * self.cluster_size };
        (first, behind.max(first))
    }

    /// Frees the clusters from `start` to `end` (cluster bounds or the disk's end), so that they
    /// read as zeroes. The caller holds `clusters` alone.
    fn free(&self, operation: &'static str, start: u64, end: u64) -> Result<(), Error> {
        let mut at = start;
        while at < end {
            let failed = |error| self.failed(operation, at, error);
            let (mapping, len) = self.image.get_shallow_mapping(at, end - at).map_err(failed)?;
            match mapping {
                ShallowMapping::Raw { storage, offset, writable, .. } => {
                    self.unmap(at, len).map_err(failed)?;
                    // Nobody else refers to these clusters: they were used once (`writable`),
                    // and none is allocated while we hold `clusters` alone. The host's blocks
                    // go as whole clusters, also where the disk ends inside the last one.
                    if writable {
                        storage.punch(offset, len).map_err(failed)?;
                    }
                }
                ShallowMapping::Special { .. } => self.unmap(at, len).map_err(failed)?,
                ShallowMapping::Indirect { .. } => self.hide_base(operation, at, at + len)?,
                // Zeroes already, or the end.
                _ if len == 0 => break,
                _ => {}
            }
            at += len;
        }
        Ok(())
    }

    /// Marks unallocated clusters as zero where the base has data; elsewhere they are zero.
    fn hide_base(&self, operation: &'static str, start: u64, end: u64) -> Result<(), Error> {
        let mut at = start;
        while let Some(extent) = self.base_data(at, end)? {
            let first = extent.offset / self.cluster_size * self.cluster_size;
            let behind = extent.end().next_multiple_of(self.cluster_size).min(end);
            self.unmap(first, behind - first)
                .map_err(|error| self.failed(operation, first, error))?;
            at = behind;
        }
        Ok(())
    }

    /// Returns the next extent of the base before `end` that may hold data.
    fn base_data(&self, from: u64, end: u64) -> Result<Option<Extent>, Error> {
        let Some(base) = &self.base else {
            return Ok(None);
        };
        Ok(base.next_data(from)?.and_then(|extent| extent.before(end)))
    }

    /// Drops whole clusters, so that they read as zeroes.
    fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.version >= 3 {
            // SAFETY: mappings must not be used across this call; those who look them up hold
            // `clusters` shared, and the caller holds it alone.
            unsafe { self.image.discard_to_zero_unsafe(offset, len) }
        } else if self.base.is_none() {
            // SAFETY: as above.
            unsafe { self.image.discard_to_backing_unsafe(offset, len) }
        } else {
            self.overwrite(offset, len)
        }
    }

    /// Writes zeroes as data.
    fn overwrite(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let count = len.min(ZEROES.len() as u64);
            self.image.write(&ZEROES[..count as usize], offset)?;
            offset += count;
            len -= count;
        }
        Ok(())
    }

    /// Writes zeroes over a part of a cluster, unless it reads as zeroes already.
    fn zero_part(&self, offset: u64, len: u64) -> Result<(), Error> {
        let data = self.data_extent(offset, &mut None)?;
        match data.filter(|extent| extent.offset < offset + len) {
            Some(_) => self
                .overwrite(offset, len)
                .map_err(|error| self.failed("write zeroes to", offset, error)),
            None => Ok(()),
        }
    }

    /// Returns the next extent with data, not joined with its neighbours.
    ///
    /// `base_extent` keeps the base's extent of the last look, which goes on to be looked at: it is
    /// looked up once, however many gaps of ours it spans. In a chain of images the looks at the
    /// lowest would multiply with each one above it otherwise.
    fn data_extent(
        &self,
        from: u64,
        base_extent: &mut Option<Extent>,
    ) -> Result<Option<Extent>, Error> {
        let mut at = from;
        while at < self.len {
            let (mapping, len) = self
                .image
                .get_shallow_mapping(at, self.len - at)
                .map_err(|error| self.failed("find data in", at, error))?;
            if len == 0 {
                break;
            }
            let end = at + len;
            match mapping {
                ShallowMapping::Special { .. } => return Ok(Some(Extent { offset: at, len })),
                ShallowMapping::Raw { storage, offset, .. } => {
                    let stored = storage
                        .next_stored(offset, offset + len)
                        .map_err(|error| self.failed("find data in", at, error))?;
                    if let Some(stored) = stored {
                        let offset = at + (stored.offset - offset);
                        return Ok(Some(Extent { offset, len: stored.len }));
                    }
                }
                ShallowMapping::Indirect { .. } => {
                    if base_extent.is_none_or(|extent| extent.end() <= at) {
                        let nowhere = Extent { offset: u64::MAX, len: 0 };
                        *base_extent = Some(self.base_data(at, self.len)?.unwrap_or(nowhere));
                    }
                    if let Some(extent) = base_extent.filter(|extent| extent.offset < end) {
                        let start = extent.offset.max(at);
                        return Ok(Some(Extent {
                            offset: start,
                            len: extent.end().min(end) - start,
                        }));
                    }
                }
                _ => {}
            }
            at = end;
        }
        Ok(None)
    }
}

impl Block for Qcow2Block {
    fn len(&self) -> u64 {
        self.len
    }

    fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check("read", offset, buf.len() as u64)?;
        let _kept = self.keep_clusters();
        self.image.read(buf, offset).map_err(|error| self.failed("read", offset, error))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.check_change("write", offset, buf.len() as u64)?;
        let _kept = self.keep_clusters();
        self.image.write(buf, offset).map_err(|error| self.failed("write", offset, error))
    }

    fn flush(&self) -> Result<(), Error> {
        if !self.is_writable() {
            return Ok(());
        }
        self.image.flush().and_then(|()| self.image.sync()).map_err(|error| {
            match error.downcast::<Error>() {
                Ok(inner) => inner.on(&self.path),
                Err(error) => Error::io("flush", error).on(&self.path),
            }
        })
    }

    /// Frees the clusters that lie wholly in the range; what is left of it stays as it is.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check_change("discard", offset, len)?;
        let (start, end) = self.whole_clusters(offset, len);
        let _alone = self.free_clusters();
        self.free("discard", start, end)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check_change("write zeroes to", offset, len)?;
        let (start, end) = self.whole_clusters(offset, len);
        let _alone = self.free_clusters();
        let behind = offset + len;
        self.zero_part(offset, start.min(behind) - offset)?;
        self.free("write zeroes to", start, end)?;
        let tail = end.max(start).min(behind);
        if start < behind {
            self.zero_part(tail, behind - tail)?;
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        let _kept = self.keep_clusters();
        let mut base_extent = None;
        let Some(mut joined) = self.data_extent(from, &mut base_extent)? else {
            return Ok(None);
        };
        while joined.len < JOIN_LIMIT {
            match self.data_extent(joined.end(), &mut base_extent)? {
                Some(next) if next.offset == joined.end() => joined.len += next.len,
                _ => break,
            }
        }
        Ok(Some(joined))
    }

    fn is_read_only(&self) -> bool {
        !self.is_writable()
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        let _kept = self.keep_clusters();
        let Ok((mapping, here)) = self.image.get_shallow_mapping(offset, len) else { return Ok(0) };
        let len = len.min(here);
        match mapping {
            ShallowMapping::Raw { storage, offset, .. } => storage.share(offset, len, file, at),
            ShallowMapping::Indirect { .. } => match &self.base {
                Some(base) if offset + len <= base.len() => base.share(offset, len, file, at),
                _ => Ok(0),
            },
            _ => Ok(0),
        }
    }
}

impl fmt::Debug for Qcow2Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Block")
            .field("path", &self.path)
            .field("len", &self.len)
            .field("cluster_size", &self.cluster_size)
            .field("writable", &self.is_writable())
            .finish_non_exhaustive()
    }
}
