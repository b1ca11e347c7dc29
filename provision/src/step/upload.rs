//! The upload step: files and trees of the host, put into the guest.
//!
//! Each file is written beside its place under a name that nobody looks for, gets its owner and permissions there, and
//! is then renamed, so that no program in the guest ever sees half of one. Requests go ahead of their answers, so that
//! thousands of small files take about as long as one large one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::tree::{self, Entry, EntryKind};
use super::{CheckContext, CheckError, Guest, Log, Step, StepError, StepFuture, StepResult};
use crate::command::Privilege;
use crate::seed::nocloud::is_user_name;
use crate::session::{Session, mark_number};
use crate::sftp::{self, AHEAD, Attributes, PIECE, Sftp, SftpError, Ticket};

/// The largest template, in bytes.
pub const MAX_TEMPLATE: u64 = 4 << 20;
/// How many files are under way at once.
const BATCH: usize = 64;
/// How long the guest may take to look up a user.
const LOOKUP: Duration = Duration::from_secs(30);

/// Puts values into the text of a template; the error is a sentence.
pub type Render = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// One source and where it goes.
#[derive(Clone)]
pub struct Upload {
    /// The folder on the host that `source` starts from.
    pub folder: PathBuf,
    /// A path or pattern; see [`tree::entries`].
    pub source: String,
    /// Where it goes, absolute or from the login's home.
    pub to: String,
    /// Permissions of files; none keeps the host's.
    pub mode: Option<u32>,
    /// The owner, `user` or `user:group`, by name or number; needs root's rights.
    pub owner: Option<String>,
    /// Whose rights it is done with.
    pub privilege: Privilege,
    /// What is done to the text of each file; none takes files as they are.
    pub render: Option<Render>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({} to {})", self.source, self.to)
    }
}

impl Upload {
    /// Lists what goes to the guest.
    ///
    /// # Errors
    /// See [`tree::entries`].
    pub fn entries(&self) -> Result<Vec<Entry>, CheckError> {
        tree::entries(&self.folder, &self.source, &self.to)
    }

    /// Returns the text that the template at `path` becomes.
    ///
    /// # Errors
    /// It cannot be read, is too large, is no text, or is at fault.
    pub fn rendered(&self, path: &Path, render: &Render) -> Result<String, CheckError> {
        let unreadable = |source| CheckError::NotRead { path: path.into(), source };
        let faulty = |message: String| CheckError::Template { path: path.into(), message };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_TEMPLATE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_TEMPLATE {
            return Err(faulty(format!("it is larger than {} MiB", MAX_TEMPLATE >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|_| faulty("it is no UTF-8 text".into()))?;
        render(&text).map_err(faulty)
    }

    fn check(&self) -> Result<(), CheckError> {
        for (what, text) in [("`source`", &self.source), ("`to`", &self.to)] {
            if text.contains('\0') {
                return Err(CheckError::ZeroByte { what: what.into() });
            }
        }
        if let Some(owner) = &self.owner {
            let (user, group) = owner_names(owner);
            for name in [Some(user), group].into_iter().flatten() {
                if !is_user_name(name) && name.parse::<u32>().is_err() {
                    return Err(CheckError::UserName { name: name.into() });
                }
            }
        }
        for entry in self.entries()? {
            let EntryKind::File { from, .. } = &entry.kind else { continue };
            match &self.render {
                Some(render) => drop(self.rendered(from, render)?),
                None => drop(
                    File::open(from)
                        .map_err(|source| CheckError::NotRead { path: from.clone(), source })?,
                ),
            }
        }
        Ok(())
    }
}

fn owner_names(owner: &str) -> (&str, Option<&str>) {
    owner.split_once(':').map_or((owner, None), |(user, group)| (user, Some(group)))
}

/// Puts files and trees into the guest.
#[derive(Debug, Clone)]
pub struct UploadStep {
    /// What goes where, in order.
    pub uploads: Vec<Upload>,
}

impl Step for UploadStep {
    fn title(&self) -> String {
        let names: Vec<&str> = self.uploads.iter().map(|upload| upload.source.as_str()).collect();
        format!("upload: {}", names.join(", "))
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        match self.uploads.is_empty() {
            true => Err(CheckError::Empty),
            false => self.uploads.iter().try_for_each(Upload::check),
        }
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            for (index, upload) in self.uploads.iter().enumerate() {
                let what = format!("Upload of {} to {}", upload.source, upload.to);
                log.command(index + 1, self.uploads.len(), &what);
                let entries = upload.entries()?;
                let done = Transfer::run(&guest.session, upload, &entries).await;
                let (files, bytes) = done.map_err(|source| StepError::transfer(what, source))?;
                let plural = if files == 1 { "file" } else { "files" };
                log.note(&format!("{files} {plural} to {}, {bytes} bytes", upload.to));
            }
            Ok(StepResult::done())
        })
    }
}

/// One upload under way.
struct Transfer<'u, 's> {
    upload: &'u Upload,
    sftp: Sftp<'s>,
    owner: Option<(u32, u32)>,
    /// Begins the names of unfinished files.
    mark: String,
    /// Counts them.
    number: u64,
    /// Unfinished files.
    unfinished: Vec<Vec<u8>>,
    bytes: u64,
}

/// A file or link on its way.
struct Placing<'e> {
    entry: &'e Entry,
    unfinished: Vec<u8>,
}

impl Transfer<'_, '_> {
    /// Does it all; the number of files and links, and of bytes.
    async fn run(
        session: &Session,
        upload: &Upload,
        entries: &[Entry],
    ) -> Result<(usize, u64), SftpError> {
        let owner = match &upload.owner {
            Some(owner) => Some(numbers(session, owner).await?),
            None => None,
        };
        let sftp = Sftp::start(session, &upload.privilege).await?;
        let mark = format!(".kvmbake-{:016x}", mark_number());
        let (number, unfinished, bytes) = (0, Vec::new(), 0);
        let mut transfer = Transfer { upload, sftp, owner, mark, number, unfinished, bytes };
        let done = transfer.all(entries).await;
        if done.is_err() {
            transfer.clean().await;
        }
        let bytes = transfer.bytes;
        transfer.sftp.close().await;
        done.map(|files| (files, bytes))
    }

    async fn all(&mut self, entries: &[Entry]) -> Result<usize, SftpError> {
        let made = self.folders(entries).await?;
        let is_folder = |entry: &&Entry| matches!(entry.kind, EntryKind::Folder { .. });
        let placed: Vec<&Entry> = entries.iter().filter(|entry| !is_folder(entry)).collect();
        for batch in placed.chunks(BATCH) {
            self.batch(batch).await?;
        }
        self.dress(&made).await?;
        Ok(placed.len())
    }

    /// Makes the folders that are missing; those of the upload itself with their permissions.
    async fn folders(&mut self, entries: &[Entry]) -> Result<Vec<(Vec<u8>, u32)>, SftpError> {
        let mut wanted: BTreeMap<&[u8], Option<u32>> = BTreeMap::new();
        for entry in entries {
            let mut above = parent(&entry.to);
            while let Some(folder) = above.filter(|folder| !wanted.contains_key(folder)) {
                wanted.insert(folder, None);
                above = parent(folder);
            }
            if let EntryKind::Folder { mode } = entry.kind {
                wanted.insert(&entry.to, Some(mode));
            }
        }
        let wanted: Vec<(&[u8], Option<u32>)> = wanted.into_iter().collect();
        let mut missing = Vec::new();
        for batch in wanted.chunks(AHEAD) {
            let mut asked = Vec::with_capacity(batch.len());
            for (path, _) in batch {
                asked.push(self.sftp.stat(path).await?);
            }
            for ((path, mode), ticket) in batch.iter().zip(asked) {
                match self.sftp.found(ticket, path).await? {
                    Some(found) if found.is_folder() => {}
                    Some(_) => {
                        return Err(sftp::refusal("make a folder at", path, "a file is there"));
                    }
                    None => missing.push((*path, *mode)),
                }
            }
        }
        // Parents come before children; a server works in the order of what is asked.
        for batch in missing.chunks(AHEAD) {
            let mut asked = Vec::with_capacity(batch.len());
            for (path, _) in batch {
                asked.push(self.sftp.make_folder(path).await?);
            }
            for ((path, _), ticket) in batch.iter().zip(asked) {
                self.sftp.done(ticket, "make the folder", path).await?;
            }
        }
        let own = missing.into_iter().filter_map(|(path, mode)| Some((path.to_vec(), mode?)));
        Ok(own.collect())
    }

    /// Gives new folders their owner and permissions: last, as these may let nobody write.
    async fn dress(&mut self, made: &[(Vec<u8>, u32)]) -> Result<(), SftpError> {
        let mut asked = VecDeque::new();
        for (path, mode) in made.iter().rev() {
            for change in self.changes(*mode) {
                asked.push_back((self.sftp.set(path, &change).await?, path));
                if asked.len() >= AHEAD
                    && let Some((ticket, path)) = asked.pop_front()
                {
                    self.sftp.done(ticket, "change the folder", path).await?;
                }
            }
        }
        for (ticket, path) in asked {
            self.sftp.done(ticket, "change the folder", path).await?;
        }
        Ok(())
    }

    /// The owner first: to change it takes set-user-ID bits away.
    fn changes(&self, mode: u32) -> Vec<Attributes> {
        let none = Attributes::default();
        let owner = self.owner.map(|owner| Attributes { owner: Some(owner), ..none });
        owner.into_iter().chain([Attributes { mode: Some(mode), ..none }]).collect()
    }

    /// Writes a batch of files and links beside their places, and renames them.
    async fn batch(&mut self, entries: &[&Entry]) -> Result<(), SftpError> {
        let mut placing = Vec::with_capacity(entries.len());
        for &entry in entries {
            self.number += 1;
            let name = format!("{}-{}", self.mark, self.number);
            let unfinished = match parent(&entry.to) {
                Some(b"/") => [b"/", name.as_bytes()].concat(),
                Some(folder) => [folder, b"/", name.as_bytes()].concat(),
                None => name.into_bytes(),
            };
            self.unfinished.push(unfinished.clone());
            placing.push(Placing { entry, unfinished });
        }
        let mut created = Vec::with_capacity(placing.len());
        for Placing { entry, unfinished } in &placing {
            created.push(match &entry.kind {
                EntryKind::Link { target } => self.sftp.link(unfinished, target).await?,
                _ => self.sftp.create(unfinished).await?,
            });
        }
        let mut handles = Vec::with_capacity(placing.len());
        for (Placing { entry, .. }, ticket) in placing.iter().zip(created) {
            let handle = match &entry.kind {
                EntryKind::Link { .. } => {
                    self.sftp.done(ticket, "make the link", &entry.to).await?;
                    Vec::new()
                }
                _ => self.sftp.handle(ticket, "create", &entry.to).await?,
            };
            handles.push(handle);
        }
        self.write(&placing, &handles).await?;
        self.rename(&placing).await
    }

    async fn write(
        &mut self,
        placing: &[Placing<'_>],
        handles: &[Vec<u8>],
    ) -> Result<(), SftpError> {
        let mut asked: VecDeque<(Ticket, &Entry)> = VecDeque::new();
        for (Placing { entry, .. }, handle) in placing.iter().zip(handles) {
            let EntryKind::File { from, mode } = &entry.kind else { continue };
            let failed = |source| SftpError::Host { action: "read", path: from.clone(), source };
            let mut content: Box<dyn Read + Send> = match &self.upload.render {
                Some(render) => {
                    let text = self.upload.rendered(from, render);
                    let text = text.map_err(|error| failed(std::io::Error::other(error)))?;
                    Box::new(Cursor::new(text.into_bytes()))
                }
                None => Box::new(File::open(from).map_err(failed)?),
            };
            let mut offset = 0;
            let mut piece = Vec::with_capacity(PIECE);
            loop {
                piece.clear();
                let read = content.by_ref().take(PIECE as u64).read_to_end(&mut piece);
                let read = read.map_err(failed)? as u64;
                if read == 0 {
                    break;
                }
                asked.push_back((self.sftp.write(handle, offset, &piece).await?, entry));
                offset += read;
                self.catch_up(&mut asked, AHEAD).await?;
            }
            self.bytes += offset;
            for change in self.changes(self.upload.mode.unwrap_or(*mode)) {
                asked.push_back((self.sftp.set_open(handle, &change).await?, entry));
            }
            asked.push_back((self.sftp.close_handle(handle).await?, entry));
            self.catch_up(&mut asked, AHEAD).await?;
        }
        self.catch_up(&mut asked, 1).await
    }

    /// Waits until fewer than `limit` requests are unanswered.
    async fn catch_up(
        &mut self,
        asked: &mut VecDeque<(Ticket, &Entry)>,
        limit: usize,
    ) -> Result<(), SftpError> {
        while asked.len() >= limit {
            let Some((ticket, entry)) = asked.pop_front() else { break };
            self.sftp.done(ticket, "write", &entry.to).await?;
        }
        Ok(())
    }

    async fn rename(&mut self, placing: &[Placing<'_>]) -> Result<(), SftpError> {
        let mut asked = Vec::with_capacity(placing.len());
        for Placing { entry, unfinished } in placing {
            asked.push(self.sftp.replace(unfinished, &entry.to).await?);
        }
        for (Placing { entry, .. }, ticket) in placing.iter().zip(asked) {
            if let Err(error) = self.sftp.done(ticket, "write", &entry.to).await {
                let looked = self.sftp.lstat(&entry.to).await?;
                let found = self.sftp.found(looked, &entry.to).await?;
                return Err(match found {
                    Some(found) if found.is_folder() => sftp::refusal(
                        "write",
                        &entry.to,
                        "it is a folder; a slash at the end of `to` puts the file into it",
                    ),
                    _ => error,
                });
            }
        }
        self.unfinished.clear();
        Ok(())
    }

    /// Removes unfinished files, as far as the guest still lets us.
    async fn clean(&mut self) {
        for path in std::mem::take(&mut self.unfinished) {
            let Ok(ticket) = self.sftp.remove(&path).await else { return };
            if self.sftp.answer(ticket).await.is_err() {
                return;
            }
        }
    }
}

/// The folder that a path lies in; none of a name alone, and of the root.
fn parent(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|&byte| byte != b'/')?;
    let slash = path[..=end].iter().rposition(|&byte| byte == b'/')?;
    let last = path[..slash].iter().rposition(|&byte| byte != b'/');
    Some(last.map_or(b"/".as_slice(), |last| &path[..=last]))
}

/// Asks the guest for the numbers of an owner. Without a group it is the user's own.
async fn numbers(session: &Session, owner: &str) -> Result<(u32, u32), SftpError> {
    let (user, group) = owner_names(owner);
    let line = || {
        let group = match group {
            Some(group) => format!(
                "{{ getent group {group} || grep '^{group}:' /etc/group; }} 2>/dev/null | cut -d: -f3"
            ),
            None => format!("id -g {user} 2>/dev/null"),
        };
        format!("echo \"u=$(id -u {user} 2>/dev/null)\"; echo \"g=$({group})\"")
    };
    let told = session.ask(&Privilege::Login, LOOKUP, line).await?;
    let number = |sign: &str, name: Option<&str>| {
        let told = told.stdout.lines().find_map(|line| line.strip_prefix(sign));
        let told = told.and_then(|told| told.trim().parse().ok());
        told.or_else(|| name.and_then(|name| name.parse().ok()))
    };
    let unknown = |what: &str, name: &str| SftpError::Owner { name: format!("{what} {name}") };
    let user_number = number("u=", Some(user)).ok_or_else(|| unknown("user", user))?;
    let group_number =
        number("g=", group).ok_or_else(|| unknown("group", group.unwrap_or(user)))?;
    Ok((user_number, group_number))
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
