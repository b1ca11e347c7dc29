//! What is done with finished images: comparing them with the disk and taking their checksums.
//!
//! The comparison reads all images side by side, from the files as they are now and through the
//! readers: the first must have the disk's digest, the others the same chunks as the first, which
//! costs one hash however many images there are.
//!
//! The jobs share one queue and as many threads as there are processors, the longest first, so
//! that they end together.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

use kvmbake_disk::Block;

use crate::checksum::{Algorithm, checksum};
use crate::chunk::{Chunk, Scanner, UNIT, is_zero};
use crate::digest::{ContentHasher, DiskDigest};
use crate::error::Error;
use crate::export::{Options, Target};
use crate::image::{self, OpenOptions};
use crate::mapped::ImageFile;
use crate::options::Encoding;
use crate::output::Cancel;
use crate::progress::{Progress, Stage};
use crate::raw::RawOptions;

/// What the images must hold.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) digest: DiskDigest,
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

#[derive(Clone, Copy)]
enum Job {
    Compare,
    Checksum(usize, Algorithm),
}

/// Checks every image; returns the checksums of `files` in their order.
pub(crate) fn check(
    targets: &[Target],
    files: &[Written],
    expected: Option<Expected>,
    options: &Options,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<Vec<Checked>, Error> {
    let mut jobs = Vec::new();
    if let (true, Some(expected)) = (options.verify, expected) {
        jobs.push((expected.data * targets.len() as u64, Job::Compare));
    }
    if options.checksums {
        for (index, file) in files.iter().enumerate() {
            jobs.push((file.size, Job::Checksum(index, Algorithm::Sha512)));
            jobs.push((file.size, Job::Checksum(index, Algorithm::Md5)));
        }
    }
    let mut results = vec![Checked::default(); files.len()];
    if jobs.is_empty() {
        return Ok(results);
    }
    jobs.sort_by_key(|job| job.0);
    progress.started(Stage::Verify, jobs.iter().map(|job| job.0).sum());
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let jobs = Mutex::new(jobs);
    let work = || -> Result<Vec<(Job, String)>, Error> {
        let mut done = Vec::new();
        loop {
            // A queue is sound whatever happened to another thread while it was held.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((_, job)) = job else { return Ok(done) };
            let result = run(job, targets, files, expected, progress, cancel);
            let result = result.inspect_err(|_| cancel.fail())?;
            done.push((job, result));
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
                for (job, result) in done {
                    match job {
                        Job::Compare => {}
                        Job::Checksum(index, Algorithm::Sha512) => {
                            results[index].sha512 = Some(result);
                        }
                        Job::Checksum(index, _) => results[index].md5 = Some(result),
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

fn run(
    job: Job,
    targets: &[Target],
    files: &[Written],
    expected: Option<Expected>,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<String, Error> {
    let advanced = |bytes| progress.advanced(bytes);
    match job {
        Job::Compare => {
            if let Some(expected) = expected {
                compare(targets, files, expected, cancel, &advanced)?;
            }
            Ok(String::new())
        }
        Job::Checksum(index, algorithm) => {
            checksum(&ImageFile::open(&files[index].path)?, algorithm, cancel, &advanced)
        }
    }
}

/// Reads every image back and compares it: the disk's bytes over the disk's size, zeroes behind.
fn compare(
    targets: &[Target],
    files: &[Written],
    expected: Expected,
    cancel: Cancel<'_>,
    advanced: &dyn Fn(u64),
) -> Result<(), Error> {
    let mut disks = Vec::new();
    for (index, target) in targets.iter().enumerate() {
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
        disks.push(disk);
    }
    let mut scans: Vec<_> = disks
        .iter()
        .map(|disk| (Scanner::new(&**disk, expected.size), Chunk::unpooled()))
        .collect();
    let mut hasher = ContentHasher::new();
    let Some(((first_scan, first), others)) = scans.split_first_mut() else { return Ok(()) };
    loop {
        let more = first_scan.read(first, cancel)?;
        for ((scan, chunk), target) in others.iter_mut().zip(&targets[1..]) {
            let has_more = scan.read(chunk, cancel)?;
            if has_more != more || (more && !chunk.has_content_of(first)) {
                let place = [more.then_some(&*first), has_more.then_some(&*chunk)];
                let at = place.into_iter().flatten().map(Chunk::offset).min().unwrap_or(0);
                let other = targets[0].path.display();
                return Err(mismatch(
                    target,
                    format!("it differs from {other} in the mebibyte at {at:#x}"),
                ));
            }
        }
        if !more {
            break;
        }
        hasher.update(first);
        advanced(first.data_len() * targets.len() as u64);
    }
    let found = hasher.finish(expected.size);
    if found != expected.digest {
        let reason = format!("it reads as {found}, the disk as {}", expected.digest);
        return Err(mismatch(&targets[0], reason));
    }
    Ok(())
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
    use crate::digest::digest;
    use crate::format::Format;

    /// Compares two raw images of which the second was changed.
    fn compared(change: impl Fn(&fs::File)) -> Result<(), Error> {
        let directory = tempfile::tempdir().unwrap();
        let targets = ["one.raw", "two.raw"]
            .map(|name| Target::new(Format::Raw, directory.path().join(name)));
        for target in &targets {
            let file = fs::File::create(&target.path).unwrap();
            file.set_len(8 << 20).unwrap();
            file.write_all_at(&[5; 5000], 3 << 20).unwrap();
        }
        let disk = image::open(&targets[0].path, &OpenOptions::with_format(Format::Raw)).unwrap();
        let expected = Expected { digest: digest(&*disk).unwrap(), size: disk.len(), data: 8192 };
        drop(disk);
        change(&fs::File::options().write(true).open(&targets[1].path).unwrap());
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let both = compare(&targets, &[], expected, cancel, &|_| {});
        // Alone, it is held against the digest.
        let alone = compare(&targets[1..], &[], expected, cancel, &|_| {});
        assert_eq!(both.is_ok(), alone.is_ok());
        both
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
            ((3 << 20) + 4999, 4, "0x300000"),
            ((3 << 20) + 9000, 1, "0x300000"),
            (0, 1, "0x0"),
            ((8 << 20) - 1, 1, "0x700000"),
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
