//! The base image on its way from where the profile says it is to a file that can be opened: found in
//! the cache, downloaded, checked, unpacked.
//!
//! A file on this host that is not packed is used where it lies. Everything else goes through the
//! cache's bases, also when a build takes no layers from the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cancel::Cancel;
use crate::cache::{Base, Cache, CacheError, Origin, Unpack};
use crate::checksum::{self, Algorithm, Checksum};
use crate::error::{Blame, Error, with_causes};
use crate::fetch::{
    Arrived, Checked, Client, Condition, Download, FetchError, Told, Url, find_sum,
};
use crate::profile::{BaseSource, Expected, Fault, Image, Place};
use crate::report::{Event, Report, Stage};

/// The largest list of checksums, in bytes.
const LIST: u64 = 4 << 20;
/// How often the worker's end is looked for.
const POLL: Duration = Duration::from_millis(20);
/// Between two reports of progress.
const TELL: Duration = Duration::from_millis(100);

/// A base that can be opened.
#[derive(Debug, Clone)]
pub struct Source {
    /// The image's file.
    pub path: PathBuf,
    /// The name of the file as it came.
    pub name: String,
    /// The URL that it came from.
    pub url: Option<String>,
    /// What the file's checksum must be, when that is still to be checked.
    pub expected: Option<Checksum>,
    /// A checksum of the file as it came, which was checked.
    pub checksum: Option<Checksum>,
    /// Keeps the file in the cache.
    _base: Option<Base>,
}

impl Source {
    /// Returns a file on this host, whose content nothing is expected of.
    pub fn of_file(path: &Path) -> Source {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Source { path: path.into(), name, url: None, expected: None, checksum: None, _base: None }
    }
}

/// Gets the base image of a profile.
///
/// # Errors
/// What the profile names is not there, or is another than it should be; each mirror's answer.
pub fn get(image: &Image, report: &Arc<dyn Report>, cancel: &Cancel) -> Result<Source, Error> {
    let place = image.source.place.clone();
    let getter =
        Getter { image: image.clone(), place, report: Arc::clone(report), cancel: cancel.clone() };
    // A thread of its own, as a read from a silent server cannot be interrupted.
    let worker = std::thread::Builder::new().name("base".into()).spawn(move || getter.get());
    let worker = worker
        .map_err(|error| Error::new(Blame::Internal, "Cannot start a thread").because(&error))?;
    while !worker.is_finished() {
        if cancel.is_set() {
            return Err(Error::interrupted());
        }
        std::thread::sleep(POLL);
    }
    worker.join().unwrap_or_else(|_| Err(Error::new(Blame::Internal, "Getting the base died")))
}

struct Getter {
    image: Image,
    place: Place,
    report: Arc<dyn Report>,
    cancel: Cancel,
}

impl Getter {
    fn get(&self) -> Result<Source, Error> {
        match &self.image.source.value {
            BaseSource::File(path) => self.get_file(path),
            BaseSource::Urls(urls) => self.get_urls(urls),
        }
    }

    fn get_file(&self, path: &Path) -> Result<Source, Error> {
        let name = file_name(path);
        let expected = self.expected(&Client::default(), std::slice::from_ref(&name))?;
        // What is at fault with the file, opening it as an image tells better.
        if !matches!(kvmbake_convert::packing(path), Ok(Some(_))) {
            let path = path.to_path_buf();
            return Ok(Source { path, name, url: None, expected, checksum: None, _base: None });
        }
        let cache = Cache::open_default()?;
        let flag = self.cancel.flag();
        let unreadable = |error: &CacheError| match error {
            CacheError::Cancelled => Error::interrupted(),
            error => Error::input(format!("Cannot read {}", path.display())).because(error),
        };
        let of = |algorithm| {
            cache.file_checksum(path, algorithm, flag).map_err(|error| unreadable(&error))
        };
        if let Some(expected) = &expected {
            let found = of(expected.algorithm)?;
            if found != *expected {
                return Err(self.another(&path.display().to_string(), &found));
            }
        }
        let sha256 = of(Algorithm::Sha256)?;
        if let Some(base) = cache.find_base(&sha256, flag)? {
            return Ok(source(base, name));
        }
        let _incoming = cache.begin_base(&sha256.to_string(), &mut self.waiting(&name), flag)?;
        if let Some(base) = cache.find_base(&sha256, flag)? {
            return Ok(source(base, name));
        }
        let origin = Origin { name: name.clone(), ..Origin::default() };
        let mut unpack = |target: &Path| self.unpack(path, target);
        let base = self.timed(&format!("unpacking {}", path.display()), || {
            cache.publish_base(path, origin, &[sha256], Some(&mut unpack), flag)
        })?;
        Ok(source(base, name))
    }

    fn get_urls(&self, urls: &[Url]) -> Result<Source, Error> {
        let names: Vec<String> = urls.iter().map(Url::file_name).collect();
        let name = names.first().cloned().unwrap_or_default();
        let client = Client::default();
        let expected = self.expected(&client, &names)?;
        let cache = Cache::open_default()?;
        let key = match (&expected, urls.first()) {
            (Some(checksum), _) => checksum.to_string(),
            (None, url) => url.map_or_else(String::new, ToString::to_string),
        };
        if let Some(base) = self.stored(&cache, &client, urls, expected.as_ref())? {
            return Ok(source(base, name));
        }
        let flag = self.cancel.flag();
        let incoming = cache.begin_base(&key, &mut self.waiting(&name), flag)?;
        if let Some(base) = self.stored(&cache, &client, urls, expected.as_ref())? {
            return Ok(source(base, name));
        }
        let about = format!("downloading {}", self.image.source.value);
        let base = self.timed(&about, || {
            let (arrived, sums) =
                self.download(&client, urls, &incoming.part, expected.as_ref())?;
            // It may have come before, from elsewhere.
            if let Some(sha256) = sums.iter().find(|sum| sum.algorithm == Algorithm::Sha256)
                && let Some(base) = cache.find_base(sha256, flag)?
            {
                let _ = fs::remove_file(&incoming.part);
                return Ok(base);
            }
            let url = Some(arrived.url.to_string());
            let origin =
                Origin { name: arrived.url.file_name(), url, validator: arrived.validator };
            let part = incoming.part.as_path();
            let mut unpack = |target: &Path| self.unpack(part, target);
            let packed = kvmbake_convert::packing(part)
                .map_err(|error| Error::input("Cannot read what came").because(&error))?;
            let unpack: Option<Unpack<'_, Error>> =
                if packed.is_some() { Some(&mut unpack) } else { None };
            let base = cache.publish_base(part, origin, &sums, unpack, flag)?;
            let _ = fs::remove_file(part);
            Ok::<Base, Error>(base)
        })?;
        Ok(source(base, name))
    }

    /// Looks for the base in the cache. Without a checksum the server is asked whether it has changed.
    fn stored(
        &self,
        cache: &Cache,
        client: &Client,
        urls: &[Url],
        expected: Option<&Checksum>,
    ) -> Result<Option<Base>, Error> {
        let flag = self.cancel.flag();
        if let Some(checksum) = expected {
            return Ok(cache.find_base(checksum, flag)?);
        }
        for url in urls {
            let Some(base) = cache.find_base_of(&url.to_string(), flag)? else { continue };
            let Some(validator) = base.validator() else { continue };
            match client.get(url, Condition::Changed(validator), true) {
                Ok(response) if response.status == 304 => return Ok(Some(base)),
                Ok(_) => {}
                Err(error) => self.note(&format!("{error}; whether it has changed is not known")),
            }
        }
        Ok(None)
    }

    fn download(
        &self,
        client: &Client,
        urls: &[Url],
        part: &Path,
        expected: Option<&Checksum>,
    ) -> Result<(Arrived, Vec<Checksum>), Error> {
        let mut sums = Vec::new();
        let mut check = |path: &Path| {
            let all = checksum::all_of_file(path, self.cancel.flag())?;
            sums = all.ok_or_else(|| io::Error::from(io::ErrorKind::Interrupted))?;
            let Some(expected) = expected else { return Ok(Checked::Right) };
            let found = sums.iter().find(|sum| sum.algorithm == expected.algorithm);
            Ok(match found {
                Some(found) if found == expected => Checked::Right,
                found => {
                    let found = found.map_or_else(String::new, ToString::to_string);
                    Checked::Wrong(format!("its checksum is {found}, not {expected}"))
                }
            })
        };
        let mut next = Instant::now();
        let mut told = |news: Told<'_>| match news {
            Told::Note(text) => self.note(text),
            Told::Progress(done, total) => {
                if done == total || Instant::now() >= next {
                    next = Instant::now() + TELL;
                    self.progress("downloading", done, total);
                }
            }
        };
        let download = Download {
            urls,
            part,
            checked: expected.is_some(),
            check: &mut check,
            told: &mut told,
            cancel: self.cancel.flag(),
        };
        match download.run(client) {
            Ok(arrived) => Ok((arrived, sums)),
            Err(failures) => Err(self.failed("The base image cannot be downloaded", &failures)),
        }
    }

    /// Unpacks the file at `path` to `target`, and returns how it was packed.
    fn unpack(&self, path: &Path, target: &Path) -> Result<String, Error> {
        let failed = |error: &dyn std::error::Error| {
            let mut failed = Error::input(format!("Cannot unpack {}", self.image.source.value));
            failed.causes.push(error.to_string());
            failed
        };
        let packing = kvmbake_convert::packing(path).map_err(|error| failed(&error))?;
        let total = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let mut next = Instant::now();
        let mut goes_on = |read: u64| {
            if Instant::now() >= next {
                next = Instant::now() + TELL;
                self.progress("unpacking", read, total);
            }
            !self.cancel.is_set()
        };
        match kvmbake_convert::unpack(path, target, &mut goes_on) {
            Ok(true) => Ok(packing.map_or_else(String::new, |packing| packing.to_string())),
            Ok(false) => Err(Error::interrupted()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Returns what the checksum of the file called one of `names` must be.
    fn expected(&self, client: &Client, names: &[String]) -> Result<Option<Checksum>, Error> {
        let Some(expected) = &self.image.checksum else { return Ok(None) };
        let (list, bytes) = match &expected.value {
            Expected::Unchecked => return Ok(None),
            Expected::Checksum(checksum) => return Ok(Some(checksum.clone())),
            Expected::ListFile(path) => {
                let shown = path.display().to_string();
                let bytes = super::plan::read_limited(path, LIST).map_err(|error| {
                    self.fault(&expected.place, format!("Cannot read {shown}: {error}"), None)
                })?;
                (shown, bytes)
            }
            Expected::ListUrl(url) => {
                let bytes = client.read(url, LIST).map_err(|error| {
                    self.failed("The list of checksums cannot be downloaded", &[error])
                })?;
                (url.to_string(), bytes)
            }
        };
        match find_sum(&String::from_utf8_lossy(&bytes), names) {
            Ok(checksum) => Ok(Some(checksum)),
            Err(error) => {
                let message = format!("The list of checksums {list} cannot be used: {error}");
                Err(self.fault(&expected.place, message, None))
            }
        }
    }

    fn another(&self, file: &str, found: &Checksum) -> Error {
        let place = self.image.checksum.as_ref().map_or(&self.place, |expected| &expected.place);
        let message = format!("{file} is not the image that the checksum is of");
        self.fault(place, message, Some(format!("The file's checksum is {found}")))
    }

    fn fault(&self, place: &Place, message: String, hint: Option<String>) -> Error {
        Error::profile(vec![Fault { message, place: place.clone(), hint }])
    }

    /// An error with what each mirror answered.
    fn failed(&self, message: &str, failures: &[FetchError]) -> Error {
        if failures.iter().any(|error| matches!(error, FetchError::Cancelled))
            || self.cancel.is_set()
        {
            return Error::interrupted();
        }
        let mut failed = Error::input(message);
        failed.causes = failures.iter().map(|failure| with_causes(failure)).collect();
        let wrong = failures.iter().any(|error| matches!(error, FetchError::Wrong { .. }));
        if wrong {
            let hint =
                "Was a new version put in its place? Its publisher's list has the new checksum";
            return failed.hint(hint);
        }
        failed
    }

    /// Tells that `work` begins and that it ended.
    fn timed<T>(&self, about: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let begun = Instant::now();
        let (stage, step) = (Stage::Base, None);
        self.report.event(Event::Started { stage, step, detail: about });
        let done = work()?;
        self.report.event(Event::Finished { stage, step, detail: about, took: begun.elapsed() });
        Ok(done)
    }

    fn waiting(&self, name: &str) -> impl FnMut(Option<u32>) {
        let (report, name) = (Arc::clone(&self.report), name.to_string());
        move |pid| {
            let who = pid.map_or_else(
                || "another build".into(),
                |pid| format!("the build with process ID {pid}"),
            );
            let text = format!("waiting for {who}, which is getting {name}");
            report.event(Event::Note { stage: Stage::Base, text: &text });
        }
    }

    fn progress(&self, phase: &str, done: u64, total: u64) {
        self.report.event(Event::Progress { stage: Stage::Base, phase, done, total });
    }

    fn note(&self, text: &str) {
        self.report.event(Event::Note { stage: Stage::Base, text });
    }
}

fn source(base: Base, name: String) -> Source {
    Source {
        path: base.image(),
        name,
        url: base.url().map(str::to_string),
        expected: None,
        checksum: base.checksum(Algorithm::Sha256),
        _base: Some(base),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
