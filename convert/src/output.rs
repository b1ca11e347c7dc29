//! A file being written, which goes away again unless it is kept; what of a chunk goes where in
//! it; and the wish to stop.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use kvmbake_disk::{Block, Error as DiskError};

use crate::chunk::Chunk;
use crate::error::Error;

/// Whether to go on: the caller's wish, and the first failure of a sibling thread.
#[derive(Clone, Copy)]
pub(crate) struct Cancel<'a> {
    pub(crate) wish: &'a AtomicBool,
    pub(crate) failed: &'a AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Cancel<'static> {
    /// Returns a wish that never comes.
    pub(crate) fn never() -> Cancel<'static> {
        Cancel { wish: &NEVER, failed: &NEVER }
    }
}

impl Cancel<'_> {
    /// Returns [`Error::Cancelled`] when it is time to stop.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.wish.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    /// Makes every other thread of this export stop.
    pub(crate) fn fail(self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// Bytes of one write. For a longer one Linux fills its page cache with memory that is contiguous for
/// as long, which is rarely memory in use a moment ago: in a virtual machine whose host takes free
/// memory back, writes of 1 MiB took up to five times the processor time of these.
const PIECE: usize = 32 << 10;

/// Shorter pieces are copied even where they could be shared: each would be an extent of its own in
/// the file system's books.
const LEAST_SHARED: usize = 64 << 10;

/// A new file, removed on drop unless [`Output::keep`] was called.
#[derive(Debug)]
pub(crate) struct Output {
    file: Arc<File>,
    path: PathBuf,
    /// Without it the file is only measured: `reached` grows and nothing is written.
    writes: bool,
    reached: AtomicU64,
    /// Whether the disk's file may be one that this one can share bytes with.
    shares: AtomicBool,
    /// Held by the thread that writes data to it.
    turn: Mutex<()>,
    keep: bool,
    /// The file beside it that holds the image's data.
    extent: Option<Box<Output>>,
}

impl Output {
    /// Creates the file; one that exists is refused.
    pub(crate) fn create(path: &Path) -> Result<Output, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| DiskError::io("create", error).on(path))?;
        Ok(Output {
            file: Arc::new(file),
            path: path.to_owned(),
            writes: true,
            reached: AtomicU64::new(0),
            shares: AtomicBool::new(true),
            turn: Mutex::default(),
            keep: false,
            extent: None,
        })
    }

    /// Creates the file and the one beside it that will hold its data.
    pub(crate) fn create_two(path: &Path, extent: &Path) -> Result<Output, Error> {
        let mut output = Output::create(path)?;
        output.extent = Some(Box::new(Output::create(extent)?));
        Ok(output)
    }

    /// Returns an output that writes nothing and only notes how long the file would be.
    pub(crate) fn nowhere(has_extent: bool) -> Result<Output, Error> {
        let path = Path::new("/dev/null");
        let file = File::open(path).map_err(|error| DiskError::io("open", error).on(path))?;
        let extent = if has_extent { Some(Box::new(Output::nowhere(false)?)) } else { None };
        Ok(Output {
            file: Arc::new(file),
            path: path.to_owned(),
            writes: false,
            reached: AtomicU64::new(0),
            shares: AtomicBool::new(false),
            turn: Mutex::default(),
            keep: true,
            extent,
        })
    }

    /// Returns the length of the files that were not written.
    pub(crate) fn reached(&self) -> u64 {
        self.files().map(|output| output.reached.load(Ordering::Relaxed)).sum()
    }

    /// Returns the file beside it.
    pub(crate) fn extent(&self) -> Option<&Output> {
        self.extent.as_deref()
    }

    /// Returns the file, then the one beside it if there is one.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Output> {
        std::iter::once(self).chain(self.extent())
    }

    /// Returns the turn to write much, if no other thread has it. The system lets one thread at a
    /// time write to a file, and the others burn time where they wait for every piece.
    pub(crate) fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            // It protects nothing that could be half done.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits for the turn.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        if !self.writes {
            self.reached.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            // Up to the next multiple: no page of the file is written to twice, wherever a format begins.
            let len = (PIECE - (at % PIECE as u64) as usize).min(rest.len());
            let (piece, after) = rest.split_at(len);
            self.file
                .write_all_at(piece, at)
                .map_err(|error| DiskError::io("write", error).on(&self.path).at(at))?;
            (rest, at) = (after, at + len as u64);
        }
        Ok(())
    }

    /// Writes all of `bytes`, which the disk has at `from`; what the disk's file system can share is not
    /// copied.
    fn take(&self, source: &dyn Block, from: u64, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let mut done = 0;
        // Behind the disk's end are zeroes, which is more than its file may say.
        let inside = source.len().saturating_sub(from).min(bytes.len() as u64) as usize;
        while self.shares.load(Ordering::Relaxed) && inside - done >= LEAST_SHARED {
            let (at, left) = (done as u64, (inside - done) as u64);
            match source.share(from + at, left, &self.file, offset + at) {
                Ok(0) => break,
                Ok(shared) => done += shared as usize,
                Err(_) => self.shares.store(false, Ordering::Relaxed),
            }
        }
        self.write_at(&bytes[done..], offset + done as u64)
    }

    /// Returns the error of making the file out of something.
    pub(crate) fn failed(&self, operation: &'static str, error: std::io::Error) -> Error {
        DiskError::io(operation, error).on(&self.path).into()
    }

    /// Sets the length; what was never written is a hole.
    pub(crate) fn set_len(&self, len: u64) -> Result<(), Error> {
        if !self.writes {
            self.reached.store(len, Ordering::Relaxed);
            return Ok(());
        }
        self.file.set_len(len).map_err(|error| DiskError::io("write", error).on(&self.path).into())
    }

    /// Returns the file for another thread.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Returns where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's length and the bytes it occupies on the host.
    pub(crate) fn sizes(&self) -> Result<(u64, u64), Error> {
        let metadata =
            self.file.metadata().map_err(|error| DiskError::io("stat", error).on(&self.path))?;
        Ok((metadata.len(), metadata.blocks() * 512))
    }

    /// Lets the file stay.
    pub(crate) fn keep(mut self) {
        self.keep = true;
        if let Some(extent) = self.extent.take() {
            extent.keep();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "could not remove an unfinished image");
        }
    }
}

/// The parts of a chunk that an encoder has given places, to be written when it has gone on to the
/// next chunk: places are given in order, the bytes can go there in any.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts(Vec<(Range<usize>, u64)>);

impl Parts {
    /// Notes that a range of the chunk, inside valid units, goes to the byte `place` of the file
    /// that holds the image's data.
    pub(crate) fn put(&mut self, range: Range<usize>, place: u64) {
        self.0.push((range, place));
    }

    /// Writes the parts of the chunk, which was loaded from `source`, and forgets them.
    pub(crate) fn write(
        &mut self,
        chunk: &Chunk,
        output: &Output,
        source: &dyn Block,
    ) -> Result<(), Error> {
        let output = output.extent().unwrap_or(output);
        self.0.drain(..).try_for_each(|(range, place)| {
            let from = chunk.offset() + range.start as u64;
            output.take(source, from, chunk.bytes(range), place)
        })
    }
}
