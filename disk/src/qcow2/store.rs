//! What imago's qcow2 driver sees as its files: the image itself, and the disk behind it.
//!
//! imago's own `File` holds a lock through fsync and opens files by name; this store is handed
//! files that are already open and locked, keeps `sync` out of everybody's way, and lets any
//! [`Block`] stand in as the backing disk.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::block::{Block, Extent};
use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;
use crate::share::share;
use crate::zero::is_zero;

/// How much an image file grows at once.
const GROWTH: u64 = 4 << 20;

/// A file of the image, or a backing disk.
pub(super) struct Store {
    kind: Kind,
    helper: CommonStorageHelper,
}

enum Kind {
    File(Arc<FileStore>),
    Base(Arc<dyn Block>),
}

/// An image file that grows.
pub(super) struct FileStore {
    file: HostFile,
    /// The file's length. It only grows, and only under `growing`, before anything is written
    /// into the new part: so no write is ever cut off.
    len: AtomicU64,
    growing: Mutex<()>,
    /// Where the written part ends: everything from here to `len` was never written and is zero.
    written: AtomicU64,
    /// The length grows to multiples of this, because growing is dear; trimming cuts the rest off.
    step: u64,
}

impl Store {
    /// The image file itself.
    pub(super) fn image(file: HostFile) -> Store {
        Store::file(file, GROWTH)
    }

    /// An external data file, whose length means something.
    pub(super) fn data(file: HostFile) -> Store {
        Store::file(file, 1)
    }

    fn file(file: HostFile, step: u64) -> Store {
        Store {
            kind: Kind::File(Arc::new(FileStore {
                len: AtomicU64::new(file.len()),
                written: AtomicU64::new(file.len()),
                growing: Mutex::new(()),
                file,
                step,
            })),
            helper: CommonStorageHelper::default(),
        }
    }

    /// Returns the file behind, when it is one.
    pub(super) fn file_store(&self) -> Option<Arc<FileStore>> {
        match &self.kind {
            Kind::File(store) => Some(Arc::clone(store)),
            Kind::Base(_) => None,
        }
    }

    pub(super) fn base(disk: Arc<dyn Block>) -> Store {
        Store { kind: Kind::Base(disk), helper: CommonStorageHelper::default() }
    }

    /// Returns the first extent at or after `from` and before `end` that the host stores.
    pub(super) fn next_stored(&self, from: u64, end: u64) -> io::Result<Option<Extent>> {
        match &self.kind {
            Kind::File(store) => store.file.next_stored(from, end),
            Kind::Base(disk) => {
                let extent = disk.next_data(from).map_err(Error::into_io)?;
                Ok(extent.and_then(|extent| extent.before(end)))
            }
        }
    }

    /// Lets `file` have bytes of it without copying them; see [`Block::share`].
    pub(super) fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        match &self.kind {
            Kind::File(store) => share(store.file.file(), offset, len, file, at),
            Kind::Base(disk) => disk.share(offset, len, file, at),
        }
    }

    /// Gives the range's space back to the host; a no-op where that is impossible.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.kind {
            Kind::File(store) => match store.file.punch(offset, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                result => result,
            },
            Kind::Base(_) => Ok(()),
        }
    }
}

impl FileStore {
    /// Returns the file.
    pub(super) fn host_file(&self) -> &HostFile {
        &self.file
    }

    /// Cuts off what the file grew by in advance. Nobody may write meanwhile.
    pub(super) fn trim(&self) -> io::Result<()> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.written.load(Ordering::Acquire);
        if self.len.load(Ordering::Acquire) > written {
            self.file.set_len(written)?;
            self.len.store(written, Ordering::Release);
        }
        Ok(())
    }

    /// Grows the file to at least `end`.
    fn grow(&self, end: u64) -> io::Result<()> {
        if end <= self.len.load(Ordering::Acquire) {
            return Ok(());
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if end > self.len.load(Ordering::Acquire) {
            let mut len = end.checked_next_multiple_of(self.step).unwrap_or(end);
            if self.file.set_len(len).is_err() {
                // Close to a limit there may be room for this much, if not for more.
                len = end;
                self.file.set_len(len)?;
            }
            self.len.store(len, Ordering::Release);
        }
        Ok(())
    }

    fn write(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let end = end_of(offset, bufv.len())?;
        self.grow(end)?;
        let written = self.written.fetch_max(end, Ordering::AcqRel);
        for buf in bufv.into_inner() {
            // Copied from where the base has nothing, most of a new cluster is zeroes: leave them
            // to the hole that is there.
            if written > offset || !is_zero(&buf) {
                self.file.write_all_at(&buf, offset)?;
            }
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        self.grow(end)?;
        let written = self.written.fetch_max(end, Ordering::AcqRel);
        self.file.punch(offset, len.min(written.saturating_sub(offset)))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let stored =
            self.len.load(Ordering::Acquire).saturating_sub(offset).min(buf.len() as u64) as usize;
        let (stored, behind) = buf.split_at_mut(stored);
        behind.fill(0);
        if stored.is_empty() {
            return Ok(());
        }
        self.file.read_exact_at(stored, offset).map_err(Error::into_io)
    }
}

impl Storage for Store {
    fn size(&self) -> io::Result<u64> {
        Ok(match &self.kind {
            Kind::File(store) => store.len.load(Ordering::Acquire),
            Kind::Base(disk) => disk.len(),
        })
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buf in bufv.into_inner() {
            match &self.kind {
                Kind::File(store) => store.read(&mut buf, offset)?,
                Kind::Base(disk) => {
                    let stored = disk.len().saturating_sub(offset).min(buf.len() as u64);
                    let (stored, behind) = buf.split_at_mut(stored as usize);
                    behind.fill(0);
                    if !stored.is_empty() {
                        disk.read_at(stored, offset).map_err(Error::into_io)?;
                    }
                }
            }
            offset += buf.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        match &self.kind {
            Kind::File(store) => store.write(bufv, offset),
            Kind::Base(_) => Err(Error::new(ErrorKind::ReadOnly, "write").into_io()),
        }
    }

    // imago writes the zeroes itself where this is `Unsupported`.
    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        match &self.kind {
            Kind::File(store) => store.write_zeroes(offset, length),
            Kind::Base(_) => Err(Error::new(ErrorKind::ReadOnly, "write").into_io()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match &self.kind {
            Kind::File(store) => store.file.sync_data(),
            Kind::Base(_) => Ok(()),
        }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        // A file that stays a little longer is as good.
        let _ = self.trim();
    }
}

fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    offset.checked_add(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::File(store) => write!(f, "{}", store.file.path().display()),
            Kind::Base(disk) => write!(f, "backing disk of {} bytes", disk.len()),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({self})")
    }
}
