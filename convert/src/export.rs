//! One pass over a disk, any number of images.
//!
//! A reader walks the data extents and hands each chunk to one thread per image, and to one that
//! takes the disk's digest; queues are bounded and the buffers shared, so the slowest sets the
//! pace and the memory stays the same whatever the disk's size. Then the images are completed,
//! made durable, read back and compared, and their checksums taken, all at once.
//!
//! Nothing is created before every format has agreed to hold the disk. When anything fails, or
//! the caller wishes to stop, every file created here is removed again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use kvmbake_disk::Block;

use crate::check::{Checked, Expected, Written, check};
use crate::chunk::{Chunk, Pool, Scanner, UNIT, next_extent};
use crate::digest::{ContentHasher, DiskDigest};
use crate::encode::{DiskInfo, Encoder, Identity, plan};
use crate::error::Error;
use crate::format::Format;
use crate::options::Encoding;
use crate::output::{Cancel, Output};
use crate::progress::{Progress, Stage};
use crate::vmdk;

/// Chunk buffers in flight: 16 MiB.
const POOL: usize = 16;
/// Chunks that are passed on together: handing over costs two context switches, and where the
/// processors are busy a wait for each.
const BATCH: usize = 4;
/// Batches waiting for one writer.
const QUEUE: usize = POOL / BATCH;

/// Chunks in order, shared by all writers.
type Batch = Arc<Vec<Arc<Chunk>>>;

/// An image to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its format, and how to write it.
    pub encoding: Encoding,
    /// Where to write it; must not exist.
    pub path: PathBuf,
    /// The file name that it will have in the end, which a VMDK states inside: the caller may
    /// write to a temporary `path` and rename.
    pub name: String,
    /// The image's identifier; derived from the disk's content when absent.
    pub uuid: Option<[u8; 16]>,
    /// The time that the image states, in seconds since 1970; fixed when absent.
    pub time: Option<u64>,
    /// Directories below which the backing file of a qcow2 target may in turn name files.
    pub allow_backing: Vec<PathBuf>,
}

impl Target {
    /// Returns a target whose file keeps its name.
    pub fn new(encoding: impl Into<Encoding>, path: impl Into<PathBuf>) -> Target {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Target {
            encoding: encoding.into(),
            path,
            name,
            uuid: None,
            time: None,
            allow_backing: Vec::new(),
        }
    }

    /// Returns the target with another final file name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Target {
        self.name = name.into();
        self
    }

    /// Returns where the image's second file will be, if it has one: beside the first.
    pub fn extent_path(&self) -> Option<PathBuf> {
        match &self.encoding {
            Encoding::Vmdk(options) => {
                vmdk::extent_name(&self.name, options).map(|name| self.path.with_file_name(name))
            }
            _ => None,
        }
    }

    /// Returns the files and directories that the image may name: its own backing file, and what
    /// the caller allows that one.
    pub(crate) fn allowed(&self) -> Vec<PathBuf> {
        let mut allowed = self.allow_backing.clone();
        if let Encoding::Qcow2(options) = &self.encoding
            && let Some(name) = &options.backing_file
        {
            allowed.push(self.path.parent().unwrap_or(Path::new("")).join(name));
        }
        allowed
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.encoding.format()
    }
}

/// What an export does beyond writing. The default does everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Read every image back and compare it with the disk.
    pub verify: bool,
    /// Take SHA-512 and MD5 of every file.
    pub checksums: bool,
    /// Make every file durable before returning.
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { verify: true, checksums: true, sync: true }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Export {
    /// The digest of the disk's content. `None` only where nothing asked for it: no verification,
    /// and no format whose identifiers come from the content.
    pub disk_digest: Option<DiskDigest>,
    /// The images, in the order of the targets.
    pub artifacts: Vec<Artifact>,
}

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its format.
    pub format: Format,
    /// Where it was written.
    pub path: PathBuf,
    /// The disk's size as the image states it: the source's, rounded up to 512 bytes in all
    /// formats but raw.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// The bytes that the file occupies on the host.
    pub allocated: u64,
    /// SHA-512 of the file in hexadecimal, if asked for.
    pub sha512: Option<String>,
    /// MD5 of the file in hexadecimal, if asked for.
    pub md5: Option<String>,
    /// The second file that the image consists of, which holds its data: that of a VMDK in two
    /// files.
    pub extent: Option<ExtentFile>,
}

/// The file beside an image that holds its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentFile {
    /// Where it was written.
    pub path: PathBuf,
    /// Its length in bytes.
    pub file_size: u64,
    /// The bytes that it occupies on the host.
    pub allocated: u64,
    /// SHA-512 in hexadecimal, if asked for.
    pub sha512: Option<String>,
    /// MD5 in hexadecimal, if asked for.
    pub md5: Option<String>,
}

/// Writes the disk to every target, verified, durable and with checksums.
///
/// # Errors
/// [`Error::Refused`] before anything is created; [`Error::Cancelled`] soon after `cancel` was
/// set; otherwise the first thing that failed. No file is left behind.
pub fn export(
    source: &dyn Block,
    targets: &[Target],
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Export, Error> {
    export_with(source, targets, &Options::default(), progress, cancel)
}

/// Writes the disk to every target, with options.
///
/// # Errors
/// Those of [`export`].
pub fn export_with(
    source: &dyn Block,
    targets: &[Target],
    options: &Options,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Export, Error> {
    let failed = AtomicBool::new(false);
    let cancel = Cancel { wish: cancel, failed: &failed };
    let disk = survey(source, cancel)?;
    let encoders: Vec<_> =
        targets.iter().map(|target| plan(target, &disk)).collect::<Result<_, _>>()?;
    let mut images = Vec::new();
    for (target, encoder) in targets.iter().zip(encoders) {
        images.push(Image::create(target, encoder)?);
    }

    progress.started(Stage::Write, (disk.data_units * UNIT as u64).min(disk.virtual_size));
    let hash = options.verify || images.iter().any(|image| image.encoder.needs_identity());
    let (images, expected) = write(source, targets, images, hash, progress, cancel)?;
    progress.finished(Stage::Write);

    let syncs = if options.sync { start_syncs(&images) } else { Vec::new() };
    let mut files = Vec::new();
    for (index, image) in images.iter().enumerate() {
        for output in image.output.files() {
            files.push(Written {
                target: index,
                path: output.path().to_owned(),
                size: output.sizes()?.0,
            });
        }
    }
    let checked = check(targets, &files, expected, options, progress, cancel)?;
    for sync in syncs {
        wait_for_sync(&sync, cancel)?;
    }
    let mut checked = checked.into_iter();
    let artifacts = targets
        .iter()
        .zip(images)
        .map(|(target, image)| image.finished(target, &mut checked))
        .collect::<Result<_, _>>()?;
    Ok(Export { disk_digest: expected.map(|expected| expected.digest), artifacts })
}

/// An image in the making; dropping it removes the file.
struct Image {
    encoder: Box<dyn Encoder>,
    output: Output,
}

impl Image {
    fn create(target: &Target, encoder: Box<dyn Encoder>) -> Result<Image, Error> {
        let output = match encoder.extent() {
            Some(extent) => Output::create_two(&target.path, &extent)?,
            None => Output::create(&target.path)?,
        };
        Ok(Image { encoder, output })
    }

    /// Returns what was made; `checked` gives the checksums of its files in order.
    fn finished(
        self,
        target: &Target,
        checked: &mut impl Iterator<Item = Checked>,
    ) -> Result<Artifact, Error> {
        // Taken again: after the sync, delayed allocation is over.
        let (file_size, allocated) = self.output.sizes()?;
        let Checked { sha512, md5 } = checked.next().unwrap_or_default();
        let extent = match self.output.extent() {
            Some(output) => {
                let (file_size, allocated) = output.sizes()?;
                let Checked { sha512, md5 } = checked.next().unwrap_or_default();
                let path = output.path().to_owned();
                Some(ExtentFile { path, file_size, allocated, sha512, md5 })
            }
            None => None,
        };
        self.output.keep();
        Ok(Artifact {
            format: target.format(),
            path: target.path.clone(),
            virtual_size: self.encoder.virtual_size(),
            file_size,
            allocated,
            sha512,
            md5,
            extent,
        })
    }
}

/// Counts the units that may hold data, so that formats can refuse and progress has a total.
pub(crate) fn survey(source: &dyn Block, cancel: Cancel<'_>) -> Result<DiskInfo, Error> {
    let virtual_size = source.len();
    let mut data_units = 0;
    let mut next = 0;
    while let Some(extent) = next_extent(source, next, virtual_size)? {
        cancel.check()?;
        let last = (extent.end() - 1) / UNIT as u64;
        data_units += last + 1 - extent.offset / UNIT as u64;
        // What follows in the last unit belongs to a unit already counted.
        next = (last + 1) * UNIT as u64;
    }
    Ok(DiskInfo { virtual_size, data_units })
}

/// Reads the disk once and feeds every encoder; returns the completed images and what they hold.
fn write(
    source: &dyn Block,
    targets: &[Target],
    images: Vec<Image>,
    hash: bool,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<(Vec<Image>, Option<Expected>), Error> {
    let (hashed, written) = thread::scope(|scope| {
        let mut queues = Vec::new();
        let hasher = hash.then(|| {
            let (queue, batches) = sync_channel(QUEUE);
            queues.push(queue);
            scope.spawn(move || hash_chunks(&batches))
        });
        let writers: Vec<_> = images
            .into_iter()
            .map(|image| {
                let (queue, batches) = sync_channel(QUEUE);
                queues.push(queue);
                scope.spawn(move || image.encode(&batches, cancel).inspect_err(|_| cancel.fail()))
            })
            .collect();
        let read = read(source, queues, progress, cancel).inspect_err(|_| cancel.fail());
        let hashed = hasher.map(joined);
        // Every thread ends before the first error is chosen.
        let written: Vec<_> = writers.into_iter().map(joined).collect();
        let mut error = read.err();
        let mut images = Vec::new();
        for outcome in written {
            match outcome {
                Ok(image) => images.push(image),
                Err(next) => error = Some(Error::first(error, next)),
            }
        }
        (hashed, error.map_or(Ok(images), Err))
    });
    let mut images = written?;
    let expected = hashed.map(|(hasher, data)| Expected {
        digest: hasher.finish(source.len()),
        size: source.len(),
        data,
    });
    // Formats that take nothing from the identity get that of an empty disk.
    let digest = expected.map_or_else(|| ContentHasher::new().finish(0), |found| found.digest);
    for (image, target) in images.iter_mut().zip(targets) {
        cancel.check()?;
        image.encoder.finish(&Identity::new(digest, target), &image.output, cancel)?;
    }
    Ok((images, expected))
}

fn joined<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sends every chunk to every queue. The queues close when this returns.
fn read(
    source: &dyn Block,
    queues: Vec<SyncSender<Batch>>,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<(), Error> {
    let mut pool = Pool::new(POOL);
    let mut scanner = Scanner::new(source, source.len());
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            let mut chunk = pool.take(cancel)?;
            if !scanner.read(&mut chunk, cancel)? {
                break;
            }
            batch.push(Arc::new(chunk));
        }
        let is_last = batch.len() < BATCH;
        let len = batch.iter().map(|chunk| chunk.data_len()).sum();
        let batch = Arc::new(batch);
        for queue in &queues {
            // A queue closes early only when its thread failed, and that thread says why.
            queue.send(Arc::clone(&batch)).map_err(|_| Error::Cancelled)?;
        }
        progress.advanced(len);
        if is_last {
            return Ok(());
        }
    }
}

fn hash_chunks(batches: &Receiver<Batch>) -> (ContentHasher, u64) {
    let mut hasher = ContentHasher::new();
    let mut data = 0;
    for batch in batches {
        for chunk in batch.iter() {
            hasher.update(chunk);
            data += chunk.data_len();
        }
    }
    (hasher, data)
}

impl Image {
    fn encode(mut self, batches: &Receiver<Batch>, cancel: Cancel<'_>) -> Result<Image, Error> {
        for batch in batches {
            for chunk in batch.iter() {
                cancel.check()?;
                self.encoder.write(chunk, &self.output)?;
            }
        }
        Ok(self)
    }
}

/// Begins to make every file durable, each on a thread of its own that nobody must wait for: an
/// fsync cannot be interrupted, and a cancelled export does not need its end.
fn start_syncs(images: &[Image]) -> Vec<Receiver<Result<(), Error>>> {
    images
        .iter()
        .flat_map(|image| image.output.files())
        .map(|output| {
            let (done, outcome) = channel();
            let (file, path) = (output.file(), output.path().to_owned());
            thread::spawn(move || {
                let result = File::sync_all(&file)
                    .map_err(|error| kvmbake_disk::Error::io("write", error).on(&path).into());
                // Nobody listens any more after a failure elsewhere.
                let _ = done.send(result);
            });
            outcome
        })
        .collect()
}

fn wait_for_sync(outcome: &Receiver<Result<(), Error>>, cancel: Cancel<'_>) -> Result<(), Error> {
    loop {
        cancel.check()?;
        match outcome.recv_timeout(Duration::from_millis(50)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Cancelled),
        }
    }
}
