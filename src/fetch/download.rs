//! A file from one of several mirrors, gathered in a file that outlives the process: what was
//! received before a cut, a crash or Ctrl-C is not asked for again.
//!
//! Beside the file lies `<file>.state`, which says where its bytes are from. A server that still has
//! that version continues it (`Range` with `If-Range`). Without a validator, or from another mirror, the
//! rest is asked for only when the whole is checked afterwards, and should it be wrong then, all of it
//! is asked for once more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{Client, Condition, Response, refused};
use super::error::FetchError;
use super::url::Url;

/// The largest file, in bytes: more than any image that people share.
const LARGEST: u64 = 1 << 40;
/// How often one mirror is tried again in a row, as long as nothing new comes.
const TRIES: u32 = 4;
/// How often in all.
const ALL_TRIES: u32 = 100;
/// What counts as something new, in bytes.
const NEW: u64 = 1 << 20;
/// The pause before the second try; it doubles from try to try.
const PAUSE: Duration = Duration::from_millis(250);
const CHUNK: usize = 256 << 10;

/// News of a download.
#[derive(Debug)]
pub enum Told<'a> {
    /// So many bytes are there, of so many.
    Progress(u64, u64),
    /// Something that a person should know.
    Note(&'a str),
}

/// What the check of a complete file said.
pub enum Checked {
    /// It is the one that was wanted.
    Right,
    /// It is not: why.
    Wrong(String),
}

/// A download to be made.
pub struct Download<'a> {
    /// Where the file is, the first to be tried first.
    pub urls: &'a [Url],
    /// The file to gather it in.
    pub part: &'a Path,
    /// Whether [`Download::check`] tells a wrong file from the right one.
    pub checked: bool,
    /// Looks at the complete file.
    pub check: &'a mut dyn FnMut(&Path) -> io::Result<Checked>,
    /// Hears the news.
    pub told: &'a mut dyn FnMut(Told<'_>),
    /// Stops it.
    pub cancel: &'a AtomicBool,
}

/// Where the gathered bytes are from.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    url: String,
    validator: Option<String>,
}

/// A file that arrived.
#[derive(Debug)]
pub struct Arrived {
    /// The mirror that it came from.
    pub url: Url,
    /// What tells this version of it.
    pub validator: Option<String>,
}

impl Download<'_> {
    /// Makes the download. The file is left for the caller to move; its state is removed.
    ///
    /// # Errors
    /// One for each mirror. What was gathered stays, unless it was wrong.
    pub fn run(mut self, client: &Client) -> Result<Arrived, Vec<FetchError>> {
        let mut failures = Vec::new();
        for url in self.urls {
            match self.from(client, url) {
                Ok(arrived) => {
                    let _ = fs::remove_file(self.state_path());
                    return Ok(arrived);
                }
                Err(error) if error.is_final() => return Err(vec![error]),
                Err(error) => {
                    if self.urls.len() > failures.len() + 1 {
                        (self.told)(Told::Note(&format!("{error}; trying the next mirror")));
                    }
                    failures.push(error);
                }
            }
        }
        Err(failures)
    }

    /// Tries one mirror until it has given everything, or up.
    fn from(&mut self, client: &Client, url: &Url) -> Result<Arrived, FetchError> {
        let (mut tries, mut all) = (0, 0);
        let mut most = self.gathered();
        loop {
            let before = self.gathered();
            let error = match self.attempt(client, url) {
                Ok(arrived) => match self.judge(url)? {
                    None => return Ok(arrived),
                    // What was there before may have been the wrong part.
                    Some(wrong) if before == 0 => return Err(wrong),
                    Some(wrong) => wrong,
                },
                Err(error) if error.is_temporary() => error,
                Err(error) => return Err(error),
            };
            // What comes again after it was thrown away is nothing new.
            let gained = self.gathered().saturating_sub(most) >= NEW;
            most = most.max(self.gathered());
            tries = if gained { 0 } else { tries + 1 };
            all += 1;
            if tries >= TRIES || all >= ALL_TRIES {
                return Err(error);
            }
            (self.told)(Told::Note(&format!("{error}; trying again")));
            self.pause(PAUSE * (1 << tries.min(6)))?;
        }
    }

    /// Looks at the complete file; a wrong one is removed.
    fn judge(&mut self, url: &Url) -> Result<Option<FetchError>, FetchError> {
        match (self.check)(self.part).map_err(|error| self.unwritten(error))? {
            Checked::Right => Ok(None),
            Checked::Wrong(why) => {
                self.forget()?;
                Ok(Some(FetchError::Wrong { url: url.clone(), why }))
            }
        }
    }

    /// Makes one request, and adds what comes.
    fn attempt(&mut self, client: &Client, url: &Url) -> Result<Arrived, FetchError> {
        self.stop_if_cancelled()?;
        let state = self.state();
        let same = state.url == url.to_string();
        let validator = state.validator.as_deref().filter(|_| same);
        let mut have = self.gathered();
        if have > 0 && validator.is_none() && !self.checked {
            self.forget()?;
            have = 0;
        }
        let condition = if have > 0 { Condition::From(have, validator) } else { Condition::None };
        // What is checked may come over any road.
        let response = client.get(url, condition, !self.checked)?;
        let arrived = Arrived { url: url.clone(), validator: response.validator.clone() };
        match (response.status, response.range) {
            (200, _) => {
                self.forget()?;
                have = 0;
            }
            (206, (Some(first), _)) if have > 0 && first == have => {}
            // All of it is here already, or so it says; the check will tell.
            (416, (_, Some(total))) if have > 0 && total == have => return Ok(arrived),
            (206 | 416, _) => {
                self.forget()?;
                return Err(FetchError::Range { url: response.url });
            }
            (status, _) => return Err(refused(response.url, status)),
        }
        let state = State { url: url.to_string(), validator: response.validator.clone() };
        let text = serde_json::to_vec(&state).unwrap_or_default();
        fs::write(self.state_path(), text).map_err(|error| self.unwritten(error))?;
        self.gather(response, have)?;
        Ok(arrived)
    }

    fn gather(&mut self, mut response: Response, mut have: u64) -> Result<(), FetchError> {
        let total = response.length.and_then(|length| length.checked_add(have));
        let too_large = || FetchError::TooLarge { url: response.url.clone(), limit: LARGEST };
        if total.is_some_and(|total| total > LARGEST) {
            return Err(too_large());
        }
        let mut file = self.open()?;
        let mut chunk = vec![0; CHUNK];
        loop {
            self.stop_if_cancelled()?;
            let cut = |received, source| {
                Err(FetchError::Cut { url: response.url.clone(), received, total, source })
            };
            let read = match response.body.read(&mut chunk) {
                Ok(0) if total.is_some_and(|total| have < total) => return cut(have, None),
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return cut(have, Some(error)),
            };
            file.write_all(&chunk[..read]).map_err(|error| self.unwritten(error))?;
            have = have.saturating_add(read as u64);
            if have > LARGEST {
                return Err(too_large());
            }
            if let Some(total) = total {
                (self.told)(Told::Progress(have, total));
            }
        }
        file.sync_data().map_err(|error| self.unwritten(error))
    }

    fn open(&self) -> Result<File, FetchError> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(self.part);
        file.map_err(|error| self.unwritten(error))
    }

    fn gathered(&self) -> u64 {
        fs::metadata(self.part).map_or(0, |metadata| metadata.len())
    }

    fn state(&self) -> State {
        let text = fs::read(self.state_path()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn state_path(&self) -> PathBuf {
        let mut name = self.part.as_os_str().to_owned();
        name.push(".state");
        name.into()
    }

    fn forget(&self) -> Result<(), FetchError> {
        match fs::remove_file(self.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.unwritten(error)),
            _ => Ok(()),
        }
    }

    fn unwritten(&self, source: io::Error) -> FetchError {
        FetchError::Write { path: self.part.into(), source }
    }

    fn stop_if_cancelled(&self) -> Result<(), FetchError> {
        if self.cancel.load(Ordering::Relaxed) { Err(FetchError::Cancelled) } else { Ok(()) }
    }

    fn pause(&self, time: Duration) -> Result<(), FetchError> {
        std::thread::sleep(time);
        self.stop_if_cancelled()
    }
}
