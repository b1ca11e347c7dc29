//! One pass over a disk, any number of images.
//!
//! As many threads as there are processors take the data through, mebibyte by mebibyte: each
//! loads a chunk, takes its fingerprint and compresses it for the images that want that; in the
//! disk's order the encoders give it places; and the thread writes it to every image. The memory
//! is a few chunks a thread, whatever the disk's size. Then the images are completed, made durable,
//! read back and compared, and their checksums taken, as far as the options ask for it.
//!
//! Nothing is created before every format has agreed to hold the disk. When anything fails, or
//! the caller wishes to stop, every file created here is removed again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use kvmbake_disk::Block;

use crate::check::{Checked, Expected, Written, check};
use crate::chunk::{CHUNK, Chunk, UNIT, next_extent};
use crate::compress::{Packer, Packs};
use crate::digest::{BlockDigests, ContentHasher, DiskDigest};
use crate::encode::{DiskInfo, Encoder, Identity, plan};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, Marks};
use crate::format::Format;
use crate::options::Encoding;
use crate::output::{Cancel, Output, Parts};
use crate::pipeline::{self, SINGLE, Worker};
use crate::progress::{Progress, Stage};
use crate::vmdk;

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
    /// Take the digest of the disk's content.
    pub digest: bool,
    /// Take SHA-512 and MD5 of every file.
    pub checksums: bool,
    /// Make every file durable before returning.
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { verify: true, digest: true, checksums: true, sync: true }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Export {
    /// The digest of the disk's content, if asked for.
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
    let (disk_digest, expected) = write(source, targets, &mut images, options, progress, cancel)?;
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
    let checked = check(source, targets, &files, expected, options, progress, cancel)?;
    for sync in syncs {
        wait_for_sync(&sync, cancel)?;
    }
    let mut checked = checked.into_iter();
    let artifacts = targets
        .iter()
        .zip(images)
        .map(|(target, image)| image.finished(target, &mut checked))
        .collect::<Result<_, _>>()?;
    Ok(Export { disk_digest, artifacts })
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

/// Reads the disk once, feeds every encoder and completes the images; returns the digest, if asked
/// for, and what the images hold.
fn write(
    source: &dyn Block,
    targets: &[Target],
    images: &mut [Image],
    options: &Options,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<(Option<DiskDigest>, Expected), Error> {
    let packings: Vec<_> = images.iter().map(|image| image.encoder.packing()).collect();
    // A unit that is compressed is compressed as a whole.
    let longest = packings.iter().flatten().map(|packing| packing.unit).max().unwrap_or(0);
    let span = (longest as u64).max(SINGLE);
    let marks = options.verify || images.iter().any(|image| image.encoder.needs_identity());
    let (mut encoders, mut outputs) = (Vec::new(), Vec::new());
    for image in &mut *images {
        encoders.push(&mut image.encoder);
        outputs.push(&image.output);
    }
    let mut workers = Vec::new();
    for _ in 0..pipeline::threads() {
        let packers = packings.iter().zip(&outputs).map(|(packing, output)| {
            packing
                .clone()
                .map(Packer::new)
                .transpose()
                .map(|packer| (packer, Packs::default()))
                .map_err(|error| output.failed("compress", error))
        });
        workers.push(Writer {
            source,
            outputs: &outputs,
            packers: packers.collect::<Result<_, _>>()?,
            marks: marks.then(Marks::default),
            digests: options.digest.then(BlockDigests::default),
            parts: vec![vec![Parts::default(); span as usize / CHUNK]; outputs.len()],
            first: 0,
            left: Vec::new(),
            progress,
        });
    }
    let mut images_so_far = Encoders {
        encoders,
        fingerprint: Fingerprint::default(),
        digest: options.digest.then(ContentHasher::new),
        data: 0,
        pieces: 0,
    };
    pipeline::run(source, source.len(), span, &mut workers, &mut images_so_far, cancel)?;
    let Encoders { fingerprint, digest, data, .. } = images_so_far;
    let size = source.len();
    let fingerprint = fingerprint.finish(size);
    for (image, target) in images.iter_mut().zip(targets) {
        cancel.check()?;
        image.encoder.finish(&Identity::new(fingerprint, target), &image.output, cancel)?;
    }
    Ok((digest.map(|digest| digest.finish(size)), Expected { fingerprint, size, data }))
}

/// What the threads of an export share, in the disk's order.
struct Encoders<'a> {
    encoders: Vec<&'a mut Box<dyn Encoder>>,
    fingerprint: Fingerprint,
    digest: Option<ContentHasher>,
    /// Bytes of the disk's data.
    data: u64,
    /// Pieces of the disk that have had their turn.
    pieces: usize,
}

/// One thread of an export.
struct Writer<'a> {
    source: &'a dyn Block,
    outputs: &'a [&'a Output],
    /// One for each image; without a packer its data are written as they are.
    packers: Vec<(Option<Packer>, Packs)>,
    marks: Option<Marks>,
    digests: Option<BlockDigests>,
    /// For each image and each chunk of a piece, what goes where.
    parts: Vec<Vec<Parts>>,
    /// The image to write to first where none is busy: another one for each piece.
    first: usize,
    /// The images that still lack the piece at hand.
    left: Vec<usize>,
    progress: &'a dyn Progress,
}

impl<'a> Worker for Writer<'a> {
    type Shared = Encoders<'a>;

    fn prepare(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
        if let Some(marks) = &mut self.marks {
            marks.clear();
            chunks.iter().for_each(|chunk| marks.take(chunk));
        }
        if let Some(digests) = &mut self.digests {
            digests.clear();
            chunks.iter().for_each(|chunk| digests.take(chunk));
        }
        for ((packer, packs), output) in self.packers.iter_mut().zip(self.outputs) {
            if let Some(packer) = packer {
                packer.pack(chunks, packs, output)?;
            }
        }
        Ok(())
    }

    fn place(&mut self, chunks: &[Chunk], shared: &mut Encoders<'a>) -> Result<(), Error> {
        if let Some(marks) = &self.marks {
            shared.fingerprint.add(marks);
        }
        if let (Some(digest), Some(digests)) = (&mut shared.digest, &self.digests) {
            digest.update(digests);
        }
        for (index, encoder) in shared.encoders.iter_mut().enumerate() {
            let output = self.outputs[index];
            match &self.packers[index] {
                (Some(_), packs) => encoder.write_packed(packs, output)?,
                (None, _) => {
                    for (chunk, parts) in chunks.iter().zip(&mut self.parts[index]) {
                        encoder.write(chunk, output, parts)?;
                    }
                }
            }
        }
        shared.data += chunks.iter().map(Chunk::data_len).sum::<u64>();
        self.first = shared.pieces % self.outputs.len().max(1);
        shared.pieces += 1;
        Ok(())
    }

    fn complete(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
        self.left.extend((self.first..self.outputs.len()).chain(0..self.first));
        while let Some(&first) = self.left.first() {
            // Rather to a file that no other thread writes to than waiting.
            let free =
                self.left.iter().enumerate().find_map(|(next, index)| {
                    self.outputs[*index].try_turn().map(|turn| (next, turn))
                });
            let (next, _turn) = free.unwrap_or_else(|| (0, self.outputs[first].turn()));
            let index = self.left.remove(next);
            for (chunk, parts) in chunks.iter().zip(&mut self.parts[index]) {
                parts.write(chunk, self.outputs[index], self.source)?;
            }
        }
        self.progress.advanced(chunks.iter().map(Chunk::data_len).sum());
        Ok(())
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
