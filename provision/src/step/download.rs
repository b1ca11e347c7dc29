//! The download step: files and trees of the guest, for the host.
//!
//! What comes goes into one file, a pack, from which [`super::deliver`] puts it where it belongs. The guest is not to be
//! trusted: its names lead nowhere but down, devices, pipes and sockets are left out, links that lead out of what is
//! downloaded as well, and there is a limit to everything.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

use super::pack::{Kind, Packer, stays_within};
use super::{CheckContext, CheckError, Guest, Log, Step, StepError, StepFuture, StepResult};
use crate::command::Privilege;
use crate::glob;
use crate::session::Session;
use crate::sftp::{self, Attributes, EOF, PIECE, Reply, Sftp, SftpError, Ticket};

/// Most files and folders of a download.
const MAX_ENTRIES: usize = 100_000;
/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 64;
/// How many files are asked for at once.
const BATCH: usize = 32;
/// How many pieces of a file are asked for ahead.
const PIECES: usize = 32;

/// One source in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// A path or pattern, absolute or from the login's home; with a slash at its end, what is in the folder.
    pub source: String,
    /// Whose rights it is read with.
    pub privilege: Privilege,
    /// How many bytes may come.
    pub limit: u64,
}

/// Takes files and trees off the guest.
#[derive(Debug, Clone)]
pub struct DownloadStep {
    /// What to take, in order.
    pub downloads: Vec<Download>,
    /// The file on the host that it goes into.
    pub pack: PathBuf,
}

impl Step for DownloadStep {
    fn title(&self) -> String {
        let names: Vec<&str> = self.downloads.iter().map(|one| one.source.as_str()).collect();
        format!("download: {}", names.join(", "))
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        if self.downloads.is_empty() {
            return Err(CheckError::Empty);
        }
        for download in &self.downloads {
            if download.source.contains('\0') {
                return Err(CheckError::ZeroByte { what: "`source`".into() });
            }
        }
        Ok(())
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            let host =
                |source| SftpError::Host { action: "write", path: self.pack.clone(), source };
            let whole = || "The download".to_owned();
            // What is cut short is no pack.
            let unfinished = self.pack.with_extension("part");
            let packer = Packer::create(&unfinished);
            let mut packer = packer.map_err(|error| StepError::transfer(whole(), host(error)))?;
            for (index, download) in self.downloads.iter().enumerate() {
                let what = format!("Download of {}", download.source);
                log.command(index + 1, self.downloads.len(), &what);
                let number = u32::try_from(index).unwrap_or(u32::MAX);
                let fetched =
                    Fetching::run(&guest.session, download, number, &mut packer, &self.pack).await;
                let fetched = fetched.map_err(|source| StepError::transfer(what, source))?;
                log.note(&format!("{}: {fetched}", download.source));
            }
            let finished = packer.finish().and_then(|()| std::fs::rename(&unfinished, &self.pack));
            finished.map_err(|error| StepError::transfer(whole(), host(error)))?;
            Ok(StepResult::done())
        })
    }
}

/// What came and what did not.
#[derive(Debug, Default)]
struct Fetched {
    files: usize,
    bytes: u64,
    special: usize,
    links: usize,
}

impl fmt::Display for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files, {} bytes", self.files, self.bytes)?;
        if self.special > 0 {
            write!(f, "; {} devices, pipes and sockets left out", self.special)?;
        }
        if self.links > 0 {
            write!(f, "; {} links that lead elsewhere left out", self.links)?;
        }
        Ok(())
    }
}

/// A file or folder of the guest.
struct Found {
    /// Its path in the guest.
    path: Vec<u8>,
    /// Its path below the target.
    name: Vec<u8>,
    attributes: Attributes,
}

/// One download under way.
struct Fetching<'d, 's> {
    download: &'d Download,
    item: u32,
    sftp: Sftp<'s>,
    packer: &'d mut Packer,
    pack: &'d Path,
    fetched: Fetched,
    entries: usize,
}

impl Fetching<'_, '_> {
    async fn run(
        session: &Session,
        download: &Download,
        item: u32,
        packer: &mut Packer,
        pack: &Path,
    ) -> Result<Fetched, SftpError> {
        let sftp = Sftp::start(session, &download.privilege).await?;
        let fetched = Fetched::default();
        let mut fetching = Fetching { download, item, sftp, packer, pack, fetched, entries: 0 };
        let done = fetching.all().await;
        let Fetching { sftp, fetched, .. } = fetching;
        sftp.close().await;
        done.map(|()| fetched)
    }

    async fn all(&mut self) -> Result<(), SftpError> {
        let mut files = Vec::new();
        for found in self.sources().await? {
            self.tree(found, &mut files).await?;
        }
        for batch in files.chunks(BATCH) {
            self.files(batch).await?;
        }
        Ok(())
    }

    /// Finds what the source stands for. What is named is followed; what is found is taken as it is.
    async fn sources(&mut self) -> Result<Vec<Found>, SftpError> {
        let source = self.download.source.as_str();
        let contents = source.ends_with('/');
        let trimmed = source.trim_end_matches('/');
        if !glob::is_pattern(source) {
            let path = if trimmed.is_empty() { "/" } else { trimmed }.as_bytes();
            let ticket = self.sftp.stat(path).await?;
            let found = self.sftp.found(ticket, path).await?;
            let missing = || sftp::refusal("download", path, "there is no such file");
            let attributes = found.ok_or_else(missing)?;
            if contents && !attributes.is_folder() {
                return Err(sftp::refusal("download", path, "it is no folder"));
            }
            let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            let name = if contents { Vec::new() } else { last.to_vec() };
            if !contents && !super::pack::is_plain(&name) {
                let message = "it has no name to go by; a slash at its end downloads what is in it";
                return Err(sftp::refusal("download", path, message));
            }
            return Ok(vec![Found { path: path.to_vec(), name, attributes }]);
        }
        let root: &[u8] = if source.starts_with('/') { b"/" } else { b"." };
        let mut found = vec![Found {
            path: root.to_vec(),
            name: Vec::new(),
            attributes: Attributes::default(),
        }];
        for part in trimmed.split('/').filter(|part| !part.is_empty()) {
            let mut next = Vec::new();
            for folder in found {
                self.matches(&folder, part, &mut next).await?;
            }
            found = next;
        }
        if found.is_empty() {
            return Err(sftp::refusal("download", source.as_bytes(), "nothing matches it"));
        }
        if contents {
            found.retain(|found| found.attributes.is_folder());
            found.iter_mut().for_each(|found| found.name.clear());
        }
        Ok(found)
    }

    /// Adds what matches one part of a pattern in a folder.
    async fn matches(
        &mut self,
        folder: &Found,
        part: &str,
        next: &mut Vec<Found>,
    ) -> Result<(), SftpError> {
        if !glob::is_pattern(part) {
            let path = below(&folder.path, part.as_bytes());
            let ticket = self.sftp.stat(&path).await?;
            if let Reply::Attributes(attributes) = self.sftp.answer(ticket).await? {
                next.push(Found { path, name: part.into(), attributes });
            }
            return Ok(());
        }
        let ticket = self.sftp.stat(&folder.path).await?;
        match self.sftp.answer(ticket).await? {
            Reply::Attributes(attributes) if attributes.is_folder() => {}
            _ => return Ok(()),
        }
        for (name, attributes) in self.list(&folder.path).await? {
            if glob::matches(part.as_bytes(), &name) {
                next.push(Found { path: below(&folder.path, &name), name, attributes });
            }
        }
        Ok(())
    }

    async fn list(&mut self, path: &[u8]) -> Result<Vec<(Vec<u8>, Attributes)>, SftpError> {
        let mut names = self.sftp.list(path, MAX_ENTRIES - self.entries).await?;
        names.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(names)
    }

    /// Packs what is no file at once, and collects the files.
    async fn tree(&mut self, top: Found, files: &mut Vec<Found>) -> Result<(), SftpError> {
        let mut left = vec![(top, 0)];
        while let Some((found, depth)) = left.pop() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES || depth > MAX_DEPTH {
                let limit = format!("{MAX_ENTRIES} files in {MAX_DEPTH} levels");
                let message = format!("it is more than {limit}");
                return Err(sftp::refusal("download", self.download.source.as_bytes(), message));
            }
            let attributes = &found.attributes;
            if attributes.is_file() {
                files.push(found);
            } else if attributes.is_link() {
                self.link(&found).await?;
            } else if attributes.is_folder() {
                if !found.name.is_empty() {
                    self.add(Kind::Folder, &found, &[])?;
                }
                // The last one is taken first.
                for (name, attributes) in self.list(&found.path).await?.into_iter().rev() {
                    let path = below(&found.path, &name);
                    let name = if found.name.is_empty() { name } else { below(&found.name, &name) };
                    left.push((Found { path, name, attributes }, depth + 1));
                }
            } else {
                self.fetched.special += 1;
            }
        }
        Ok(())
    }

    async fn link(&mut self, found: &Found) -> Result<(), SftpError> {
        let ticket = self.sftp.link_target(&found.path).await?;
        let says = match self.sftp.answer(ticket).await? {
            Reply::Names(names) if names.len() == 1 => names.into_iter().next().map(|name| name.0),
            reply => return Err(sftp::refused(reply, "read the link", &found.path)),
        };
        let says = says.unwrap_or_default();
        if !stays_within(&found.name, &says) {
            self.fetched.links += 1;
            return Ok(());
        }
        self.fetched.files += 1;
        self.add(Kind::Link, found, &says)
    }

    fn add(&mut self, kind: Kind, found: &Found, content: &[u8]) -> Result<(), SftpError> {
        let mode = found.attributes.mode.unwrap_or(0o755) & 0o7777;
        let added = self.packer.add(kind, self.item, mode, &found.name, content);
        added.map_err(|error| self.host(error))
    }

    fn host(&self, source: std::io::Error) -> SftpError {
        SftpError::Host { action: "write", path: self.pack.into(), source }
    }

    /// Opens a batch of files, asks for the beginning of each, and reads them one after the other.
    async fn files(&mut self, batch: &[Found]) -> Result<(), SftpError> {
        let mut opened = Vec::with_capacity(batch.len());
        for found in batch {
            opened.push(self.sftp.open_file(&found.path).await?);
        }
        let mut begun = Vec::with_capacity(batch.len());
        for (found, ticket) in batch.iter().zip(opened) {
            let handle = self.sftp.handle(ticket, "read", &found.path).await?;
            let first = self.sftp.read(&handle, 0, PIECE as u32).await?;
            begun.push((handle, first));
        }
        let mut closed = Vec::with_capacity(batch.len());
        for (found, (handle, first)) in batch.iter().zip(begun) {
            self.file(found, &handle, first).await?;
            closed.push(self.sftp.close_handle(&handle).await?);
        }
        for ticket in closed {
            self.sftp.answer(ticket).await?;
        }
        Ok(())
    }

    async fn file(&mut self, found: &Found, handle: &[u8], first: Ticket) -> Result<(), SftpError> {
        let mode = found.attributes.mode.unwrap_or(0o644) & 0o7777;
        let begun = self.packer.begin(self.item, mode, &found.name);
        begun.map_err(|error| self.host(error))?;
        let expected = found.attributes.size.unwrap_or(0);
        let piece = PIECE as u64;
        let mut asked = VecDeque::from([(first, PIECE as u32)]);
        // What was read, and where the next question begins.
        let (mut size, mut next) = (0u64, piece);
        while let Some((ticket, length)) = asked.pop_front() {
            // The size is the guest's word: it says how far to ask ahead, no more.
            while next < expected && asked.len() < PIECES {
                asked.push_back((self.sftp.read(handle, next, PIECE as u32).await?, PIECE as u32));
                next += piece;
            }
            let data = match self.sftp.answer(ticket).await? {
                Reply::Data(data) if !data.is_empty() && data.len() <= length as usize => data,
                Reply::Status { code: EOF, .. } => break,
                reply => return Err(sftp::refused(reply, "read", &found.path)),
            };
            let pushed = self.packer.push(&data);
            pushed.map_err(|error| self.host(error))?;
            size += data.len() as u64;
            self.fetched.bytes += data.len() as u64;
            if self.fetched.bytes > self.download.limit {
                let path = self.download.source.clone();
                let limit = format!("{} bytes", self.download.limit);
                return Err(SftpError::TooMuch { path, limit });
            }
            let rest = length - u32::try_from(data.len()).unwrap_or(length);
            if rest > 0 && size == expected {
                break;
            }
            if rest > 0 {
                asked.push_front((self.sftp.read(handle, size, rest).await?, rest));
            } else if asked.is_empty() {
                asked.push_back((self.sftp.read(handle, size, PIECE as u32).await?, PIECE as u32));
                next = size + piece;
            }
        }
        for (ticket, _) in asked {
            self.sftp.answer(ticket).await?;
        }
        self.fetched.files += 1;
        self.packer.end(size).map_err(|error| self.host(error))
    }
}

fn below(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match folder {
        b"/" => [b"/", name].concat(),
        folder => [folder, b"/", name].concat(),
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
