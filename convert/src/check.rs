//! What is done with finished images: comparing them with the disk and taking their checksums.
//!
//! The images are read back one after the other, from the files as they are now and through the
//! readers, each by all threads; they must have the disk's fingerprint. Where one has not, it is
//! compared with the disk once more to say from where on.
//!
//! The checksums share one queue and as many threads as there are processors, the longest first,
//! so that they end together.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

use kvmbake_disk::{Block, is_zero};

use crate::checksum::{Algorithm, checksum};
use crate::chunk::{Chunk, UNIT};
use crate::compare::first_difference;
use crate::error::Error;
use crate::export::{Options, Target};
use crate::fingerprint::{Fingerprint, Marks};
use crate::image::{self, OpenOptions};
use crate::mapped::ImageFile;
use crate::options::Encoding;
use crate::output::Cancel;
use crate::pipeline::{self, SINGLE, Worker};
use crate::progress::{Progress, Stage};
use crate::raw::RawOptions;

/// What the images must hold.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) size: u64,
    /// Bytes of the disk's data: what each comparison reads.
    pub(crate) data: u64,
}

/// A file that was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// The index of the target that it belongs to.
    pub(crate) target: usize,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
}

/// The checksums of a file, those that were asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    pub(crate) sha512: Option<String>,
    pub(crate) md5: Option<String>,
}

/// Checks every image; returns the checksums of `files` in their order.
pub(crate) fn check(
    source: &dyn Block,
    targets: &[Target],
    files: &[Written],
    expected: Expected,
    options: &Options,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<Vec<Checked>, Error> {
    let mut results = vec![Checked::default(); files.len()];
    if !options.verify && !options.checksums {
        return Ok(results);
    }
    let mut total = 0;
    if options.verify {
        total += expected.data * targets.len() as u64;
    }
    // The longest is the last.
    let mut jobs = Vec::new();
    if options.checksums {
        for (index, file) in files.iter().enumerate() {
            jobs.push((file.size, index, Algorithm::Sha512));
            jobs.push((file.size, index, Algorithm::Md5));
        }
    }
    jobs.sort_by_key(|job| job.0);
    total += jobs.iter().map(|job| job.0).sum::<u64>();
    progress.started(Stage::Verify, total);
    if options.verify {
        for (index, target) in targets.iter().enumerate() {
            compare(source, target, index, files, expected, progress, cancel)?;
        }
    }
    let threads = pipeline::threads().min(jobs.len());
    let jobs = Mutex::new(jobs);
    let work = || -> Result<Vec<(usize, Algorithm, String)>, Error> {
        let mut done = Vec::new();
        loop {
            // A queue is sound whatever happened to another thread while it was held.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((_, index, algorithm)) = job else { return Ok(done) };
            let advanced = |bytes| progress.advanced(bytes);
            let sum = ImageFile::open(&files[index].path)
                .map_err(Error::from)
                .and_then(|file| checksum(&file, algorithm, cancel, &advanced))
                .inspect_err(|_| cancel.fail())?;
            done.push((index, algorithm, sum));
        }
    };
    let joined: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });
    let mut first_error = None;
    for outcome in joined {
        match outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Ok(done) => {
                for (index, algorithm, sum) in done {
                    match algorithm {
                        Algorithm::Sha512 => results[index].sha512 = Some(sum),
                        _ => results[index].md5 = Some(sum),
                    }
                }
            }
            Err(error) => first_error = Some(Error::first(first_error, error)),
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => {
            progress.finished(Stage::Verify);
            Ok(results)
        }
    }
}

/// Reads an image back and compares it: the disk's bytes over the disk's size, zeroes behind.
fn compare(
    source: &dyn Block,
    target: &Target,
    index: usize,
    files: &[Written],
    expected: Expected,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<(), Error> {
    let mut options = OpenOptions::with_format(target.format());
    // An image in two files may name the second one, which was written here, and no other.
    let own = files.iter().filter(|file| file.target == index && file.path != target.path);
    options.allow_backing.extend(own.map(|file| file.path.clone()));
    options.allow_backing.extend(target.allowed());
    let disk = match target.encoding {
        Encoding::Raw(RawOptions { packing: Some(packing), .. }) => {
            image::open_packed_as(&target.path, packing)?
        }
        _ => image::open(&target.path, &options)?,
    };
    check_rest(target, &*disk, expected.size, cancel)?;
    let mut fingerprint = Fingerprint::default();
    let mut workers: Vec<_> =
        (0..pipeline::threads()).map(|_| Marker { marks: Marks::default(), progress }).collect();
    pipeline::run(&*disk, expected.size, SINGLE, &mut workers, &mut fingerprint, cancel)?;
    if fingerprint.finish(expected.size) == expected.fingerprint {
        return Ok(());
    }
    Err(mismatch(
        target,
        match first_difference(source, &*disk, cancel)? {
            Some(at) => format!("it differs from the disk at byte {at:#x}"),
            None => "it differs from what was read of the disk, which has changed since".to_owned(),
        },
    ))
}

/// One thread of a comparison.
struct Marker<'a> {
    marks: Marks,
    progress: &'a dyn Progress,
}

impl Worker for Marker<'_> {
    type Shared = Fingerprint;

    fn prepare(&mut self, chunks: &[Chunk]) -> Result<(), Error> {
        self.marks.clear();
        chunks.iter().for_each(|chunk| self.marks.take(chunk));
        Ok(())
    }

    fn place(&mut self, chunks: &[Chunk], shared: &mut Fingerprint) -> Result<(), Error> {
        shared.add(&self.marks);
        self.progress.advanced(chunks.iter().map(Chunk::data_len).sum());
        Ok(())
    }
}

/// Checks that the image is as large as the disk, and zero where it is larger.
fn check_rest(
    target: &Target,
    disk: &dyn Block,
    size: u64,
    cancel: Cancel<'_>,
) -> Result<(), Error> {
    if disk.len() < size {
        return Err(mismatch(target, format!("{} bytes instead of {size}", disk.len())));
    }
    let mut rest = vec![0; (disk.len() - size).min(UNIT as u64) as usize];
    let mut at = size;
    while at < disk.len() {
        cancel.check()?;
        let len = (disk.len() - at).min(rest.len() as u64) as usize;
        disk.read_at(&mut rest[..len], at)?;
        if !is_zero(&rest[..len]) {
            return Err(mismatch(target, format!("there is data beyond the disk's {size} bytes")));
        }
        at += len as u64;
    }
    Ok(())
}

fn mismatch(target: &Target, reason: String) -> Error {
    Error::Mismatch { path: target.path.clone(), format: target.format(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::format::Format;
    use crate::progress::Silent;

    /// Compares an image that was changed with what it was.
    fn compared(change: impl Fn(&fs::File)) -> Result<(), Error> {
        let directory = tempfile::tempdir().unwrap();
        let [before, after] = ["one.raw", "two.raw"].map(|name| directory.path().join(name));
        for path in [&before, &after] {
            let file = fs::File::create(path).unwrap();
            file.set_len(8 << 20).unwrap();
            file.write_all_at(&[5; 5000], 3 << 20).unwrap();
        }
        let disk = image::open(&before, &OpenOptions::with_format(Format::Raw)).unwrap();
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let mut fingerprint = Fingerprint::default();
        let mut workers = [Marker { marks: Marks::default(), progress: &Silent }];
        pipeline::run(&*disk, disk.len(), SINGLE, &mut workers, &mut fingerprint, cancel).unwrap();
        let fingerprint = fingerprint.finish(disk.len());
        let expected = Expected { fingerprint, size: disk.len(), data: 8192 };
        change(&fs::File::options().write(true).open(&after).unwrap());
        let target = Target::new(Format::Raw, after);
        compare(&*disk, &target, 0, &[], expected, &Silent, cancel)
    }

    #[test]
    fn equal_content_in_other_holes_is_equal() {
        compared(|_| ()).unwrap();
        compared(|file| file.write_all_at(&[0; 70_000], 6 << 20).unwrap()).unwrap();
        compared(|file| file.set_len((8 << 20) + 512).unwrap()).unwrap();
    }

    #[test]
    fn every_difference_is_found_and_placed() {
        for (at, byte, place) in [
            ((3 << 20) + 4999, 4, "0x301387"),
            ((3 << 20) + 9000, 1, "0x302328"),
            (0, 1, "at byte 0x0"),
            ((8 << 20) - 1, 1, "0x7fffff"),
            (8 << 20, 1, "beyond"),
        ] {
            let error = compared(|file| file.write_all_at(&[byte], at).unwrap()).unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
            assert!(error.to_string().contains("two.raw"), "{error}");
        }
        let error = compared(|file| file.set_len(7 << 20).unwrap()).unwrap_err();
        assert!(error.to_string().contains("instead of"), "{error}");
        let erase = |file: &fs::File| file.write_all_at(&[0; 5000], 3 << 20).unwrap();
        assert!(compared(erase).unwrap_err().to_string().contains("0x300000"));
    }
}
