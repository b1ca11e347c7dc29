//! What is done with finished images: comparing each with the disk and taking its checksums.
//!
//! The jobs of all images share one queue and as many threads as there are processors, the
//! longest first, so that they end together.

use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::checksum::checksum;
use crate::digest::{DiskDigest, digest_of};
use crate::error::Error;
use crate::export::{Options, Target};
use crate::image::{self, OpenOptions};
use crate::mapped::ImageFile;
use crate::output::Cancel;
use crate::progress::{Progress, Stage};

/// What the images must hold.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) digest: DiskDigest,
    pub(crate) size: u64,
    /// Bytes of the disk's data: what each comparison reads.
    pub(crate) data: u64,
}

/// The checksums of an image, those that were asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    pub(crate) sha512: Option<String>,
    pub(crate) md5: Option<String>,
}

#[derive(Clone, Copy)]
enum Job {
    Compare,
    Sha512,
    Md5,
}

/// Checks every image; `targets` and `file_sizes` run in parallel.
pub(crate) fn check(
    targets: &[Target],
    file_sizes: &[u64],
    expected: Option<Expected>,
    options: &Options,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<Vec<Checked>, Error> {
    let mut jobs = Vec::new();
    for (index, size) in file_sizes.iter().enumerate() {
        if let (true, Some(expected)) = (options.verify, expected) {
            jobs.push((expected.data, Job::Compare, index));
        }
        if options.checksums {
            jobs.push((*size, Job::Sha512, index));
            jobs.push((*size, Job::Md5, index));
        }
    }
    let mut results = vec![Checked::default(); targets.len()];
    if jobs.is_empty() {
        return Ok(results);
    }
    jobs.sort_by_key(|job| job.0);
    progress.started(Stage::Verify, jobs.iter().map(|job| job.0).sum());
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let jobs = Mutex::new(jobs);
    let work = || -> Result<Vec<(usize, Job, String)>, Error> {
        let mut done = Vec::new();
        loop {
            // A queue is sound whatever happened to another thread while it was held.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((_, job, index)) = job else { return Ok(done) };
            let result = run(job, &targets[index], expected, progress, cancel);
            let result = result.inspect_err(|_| cancel.fail())?;
            done.push((index, job, result));
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
                for (index, job, result) in done {
                    match job {
                        Job::Compare => {}
                        Job::Sha512 => results[index].sha512 = Some(result),
                        Job::Md5 => results[index].md5 = Some(result),
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
    target: &Target,
    expected: Option<Expected>,
    progress: &dyn Progress,
    cancel: Cancel<'_>,
) -> Result<String, Error> {
    let advanced = |bytes| progress.advanced(bytes);
    match job {
        Job::Compare => {
            if let Some(expected) = expected {
                compare(target, expected, cancel, &advanced)?;
            }
            Ok(String::new())
        }
        Job::Sha512 => checksum::<sha2::Sha512>(&ImageFile::open(&target.path)?, cancel, &advanced),
        Job::Md5 => checksum::<md5::Md5>(&ImageFile::open(&target.path)?, cancel, &advanced),
    }
}

/// Reads the image back and compares it: the same bytes over the disk's size, zeroes behind.
fn compare(
    target: &Target,
    expected: Expected,
    cancel: Cancel<'_>,
    advanced: &dyn Fn(u64),
) -> Result<(), Error> {
    let mismatch =
        |reason| Error::Mismatch { path: target.path.clone(), format: target.format, reason };
    let disk = image::open(&target.path, &OpenOptions::with_format(target.format))?;
    if disk.len() < expected.size {
        return Err(mismatch(format!("{} bytes instead of {}", disk.len(), expected.size)));
    }
    let found = digest_of(&*disk, expected.size, cancel, advanced)?;
    if found != expected.digest {
        return Err(mismatch(format!("it reads as {found}, the disk as {}", expected.digest)));
    }
    let mut rest = vec![0; (disk.len() - expected.size).min(1 << 20) as usize];
    let mut at = expected.size;
    while at < disk.len() {
        let len = (disk.len() - at).min(rest.len() as u64) as usize;
        disk.read_at(&mut rest[..len], at)?;
        if !crate::chunk::is_zero(&rest[..len]) {
            return Err(mismatch(format!(
                "there is data beyond the disk's {} bytes",
                expected.size
            )));
        }
        at += len as u64;
    }
    Ok(())
}
