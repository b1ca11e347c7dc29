//! Files that clients add to: a POST with the form fields `path`, `content` and `clear` appends to a
//! file below the served folder, or replaces it when `clear` is set.
//!
//! Forms come as `application/x-www-form-urlencoded` (WHATWG URL, section 5) or
//! `multipart/form-data` (RFC 7578). Each part of the path is opened by itself and without following
//! symbolic links, so that nothing outside the folder can be reached, whatever changes meanwhile.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, fstat, ftruncate, mkdirat, open, openat};
use rustix::io::Errno;

/// Longest form, in bytes.
const MAX_FORM: u64 = 16 << 20;
/// Longest file that a form may make.
const MAX_FILE: u64 = 64 << 20;
/// All that the forms of one server may add.
const MAX_TOTAL: u64 = 1 << 30;
/// What a new file or folder takes in the account above, so that empty ones have a limit as well.
const ENTRY: u64 = 4096;
/// Longest path, and the most folders in it.
const MAX_PATH: usize = 1024;
const MAX_DEPTH: usize = 32;
/// The most fields that are looked at.
const MAX_FIELDS: usize = 16;

/// Bytes of all forms that are being read at a time; one more is asked to come again.
const MAX_HELD: u64 = 64 << 20;

/// What the forms of one server have added, and what of them is in memory.
#[derive(Debug, Default)]
pub(super) struct Account {
    added: AtomicU64,
    held: AtomicU64,
}

/// The memory of one form, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a AtomicU64, u64);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

impl Account {
    /// Takes the memory that a form of so many bytes needs.
    ///
    /// # Errors
    /// The status to answer with.
    pub(super) fn hold(&self, bytes: u64) -> Result<Held<'_>, u16> {
        if bytes > MAX_FORM {
            return Err(413);
        }
        let held = |held: u64| Some(held + bytes).filter(|held| *held <= MAX_HELD);
        let taken = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, held);
        taken.map(|_| Held(&self.held, bytes)).map_err(|_| 503)
    }

    fn spend(&self, bytes: u64) -> Result<(), u16> {
        let spent = |total: u64| total.checked_add(bytes).filter(|total| *total <= MAX_TOTAL);
        let added = self.added.fetch_update(Ordering::AcqRel, Ordering::Acquire, spent);
        added.map(drop).map_err(|_| 413)
    }
}

/// What a form asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Form {
    path: Option<Vec<u8>>,
    content: Option<Vec<u8>>,
    clear: bool,
}

impl Form {
    fn put(&mut self, name: &[u8], value: Vec<u8>) {
        match name {
            b"path" => self.path = Some(value),
            b"content" => self.content = Some(value),
            b"clear" => {
                let value = value.to_ascii_lowercase();
                self.clear = ![&b""[..], b"0", b"false", b"no", b"off"].contains(&&value[..]);
            }
            _ => {}
        }
    }
}

/// Does what a form asks for below `root`.
///
/// # Errors
/// The status to answer with.
pub(super) fn take(
    root: &Path,
    content_type: &str,
    body: &[u8],
    account: &Account,
) -> Result<(), u16> {
    let form = parse(content_type, body)?;
    let (Some(path), Some(content)) = (form.path, form.content) else {
        return Err(400);
    };
    write(root, &path, &content, form.clear, account)
}

fn parse(content_type: &str, body: &[u8]) -> Result<Form, u16> {
    let mut parts = content_type.split(';').map(str::trim);
    match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "application/x-www-form-urlencoded" => urlencoded(body),
        "multipart/form-data" => {
            let boundary = parts.find_map(|part| part.strip_prefix("boundary="));
            let boundary = boundary.map(|boundary| boundary.trim_matches('"'));
            // RFC 2046, section 5.1.1.
            let boundary = boundary.filter(|boundary| (1..=70).contains(&boundary.len()));
            multipart(boundary.ok_or(400u16)?, body)
        }
        _ => Err(415),
    }
}

fn urlencoded(body: &[u8]) -> Result<Form, u16> {
    let mut form = Form::default();
    for field in body.split(|byte| *byte == b'&').take(MAX_FIELDS) {
        let at = field.iter().position(|byte| *byte == b'=').unwrap_or(field.len());
        let value = field.get(at + 1..).unwrap_or_default();
        form.put(&decoded(&field[..at])?, decoded(value)?);
    }
    Ok(form)
}

fn decoded(text: &[u8]) -> Result<Vec<u8>, u16> {
    let mut bytes = text.iter();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let digit = bytes.next().and_then(|byte| char::from(*byte).to_digit(16));
                    digit.ok_or(400u16)
                };
                (digit()? * 16 + digit()?) as u8
            }
            byte => *byte,
        });
    }
    Ok(decoded)
}

fn multipart(boundary: &str, body: &[u8]) -> Result<Form, u16> {
    let delimiter = format!("\r\n--{boundary}");
    let opening = &delimiter.as_bytes()[2..];
    let mut rest = body.strip_prefix(opening).ok_or(400u16)?;
    let mut form = Form::default();
    for _ in 0..MAX_FIELDS {
        if rest.starts_with(b"--") {
            return Ok(form);
        }
        rest = rest.strip_prefix(b"\r\n").ok_or(400u16)?;
        let end = find(rest, delimiter.as_bytes()).ok_or(400u16)?;
        let part = &rest[..end];
        rest = &rest[end + delimiter.len()..];
        let head = find(part, b"\r\n\r\n").ok_or(400u16)?;
        let name = field_name(&part[..head]).ok_or(400u16)?;
        form.put(&name, part[head + 4..].to_vec());
    }
    Err(400)
}

/// Returns the name of a part by its header lines.
fn field_name(head: &[u8]) -> Option<Vec<u8>> {
    let head = String::from_utf8_lossy(head);
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let name = disposition.split(';').find_map(|item| item.trim().strip_prefix("name="))?;
    Some(name.trim_matches('"').as_bytes().to_vec())
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    // The first byte is a rare one in most content, so that the rest is seldom looked at.
    let mut from = 0;
    loop {
        let at = from + text.get(from..)?.iter().position(|byte| *byte == pattern[0])?;
        if text[at..].starts_with(pattern) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn write(
    root: &Path,
    path: &[u8],
    content: &[u8],
    clear: bool,
    account: &Account,
) -> Result<(), u16> {
    if path.starts_with(b"/") || path.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err(403);
    }
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) || path.ends_with(b"/") {
        return Err(400);
    }
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<&[u8]> = parts.collect();
    let Some((file, folders)) = parts.split_last().filter(|_| parts.len() <= MAX_DEPTH) else {
        return Err(400);
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = open(root, flags, Mode::empty()).map_err(status_of)?;
    for part in folders {
        folder = below(&folder, part, account)?;
    }
    // Opening a pipe must not wait for its reader.
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match openat(&folder, *file, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            account.spend(ENTRY)?;
            let mode = Mode::from_raw_mode(0o644);
            openat(&folder, *file, flags | OFlags::CREATE, mode)
        }
        opened => opened,
    };
    let opened = opened.map_err(status_of)?;
    let stat = fstat(&opened).map_err(status_of)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(403);
    }
    let before = if clear { 0 } else { u64::try_from(stat.st_size).unwrap_or(u64::MAX) };
    if before.saturating_add(content.len() as u64) > MAX_FILE {
        return Err(413);
    }
    account.spend(content.len() as u64)?;
    if clear {
        ftruncate(&opened, 0).map_err(status_of)?;
    }
    File::from(opened).write_all(content).map_err(|_| 507)
}

/// Opens a folder in a folder, which is made when it is missing.
fn below(folder: &OwnedFd, part: &[u8], account: &Account) -> Result<OwnedFd, u16> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, part, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            account.spend(ENTRY)?;
            match mkdirat(folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(status_of(error)),
            }
            openat(folder, part, flags, Mode::empty()).map_err(status_of)
        }
        opened => opened.map_err(status_of),
    }
}

fn status_of(error: Errno) -> u16 {
    match error {
        // A link, a file where a folder should be or the other way, a pipe or a device.
        Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::ACCESS | Errno::PERM => {
            403
        }
        Errno::NAMETOOLONG => 400,
        Errno::NOSPC | Errno::DQUOT => 507,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    const URLENCODED: &str = "application/x-www-form-urlencoded";

    fn post(root: &Path, form: &str) -> Result<(), u16> {
        take(root, URLENCODED, form.as_bytes(), &Account::default())
    }

    #[test]
    fn a_form_appends_and_with_clear_replaces_and_folders_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        post(root, "path=a/b/log.txt&content=one%0A").unwrap();
        post(root, "path=a/./b//log.txt&content=two+%2B+%c3%bc%0A&clear=0").unwrap();
        let text = || std::fs::read_to_string(root.join("a/b/log.txt")).unwrap();
        assert_eq!(text(), "one\ntwo + ü\n");
        post(root, "path=a/b/log.txt&content=new&clear=1").unwrap();
        assert_eq!(text(), "new");
        post(root, "path=a/b/log.txt&content=&clear=true").unwrap();
        assert_eq!(text(), "");
    }

    #[test]
    fn nothing_outside_the_folder_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("logs");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("link")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("sub", root.join("inside")).unwrap();
        symlink("../new", root.join("dangling")).unwrap();
        assert!(Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());
        for path in [
            "../secret",
            "sub/../../secret",
            "..",
            "/etc/motd",
            "%2Fetc%2Fmotd",
            "..%2Fsecret",
            "link",
            "up/secret",
            "up/new",
            "inside/file",
            "dangling",
            "pipe",
            "sub",
        ] {
            for clear in ["", "&clear=1"] {
                let answer = post(&root, &format!("path={path}&content=evil{clear}"));
                assert_eq!(answer, Err(403), "{path}");
            }
        }
        assert_eq!(std::fs::read_to_string(folder.path().join("secret")).unwrap(), "secret");
        assert!(!folder.path().join("new").exists());
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for form in ["", "path=a", "content=x", "path=&content=x", "path=a/&content=x"] {
            assert_eq!(post(folder.path(), form), Err(400), "{form}");
        }
        for form in ["path=%zz&content=x", "path=%0&content=x", "path=a%00b&content=x"] {
            assert_eq!(post(folder.path(), form), Err(400), "{form}");
        }
        let deep = format!("path={}f&content=x", "d/".repeat(40));
        assert_eq!(post(folder.path(), &deep), Err(400));
        let account = Account::default();
        assert_eq!(take(folder.path(), "text/plain", b"path=a", &account), Err(415));
        for body in ["", "--b", "--b\r\n", "--b\r\nx\r\n--b--", "--b\r\n\r\nx\r\n--b--"] {
            let answer =
                take(folder.path(), "multipart/form-data; boundary=b", body.as_bytes(), &account);
            assert_eq!(answer, Err(400), "{body}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_and_the_sum_of_all_have_their_limits() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let account = Account::default();
        File::create(root.join("big")).unwrap().set_len(MAX_FILE - 3).unwrap();
        assert_eq!(write(root, b"big", b"four", false, &account), Err(413));
        assert_eq!(write(root, b"big", b"abc", false, &account), Ok(()));
        assert_eq!(write(root, b"big", b"four", true, &account), Ok(()));
        let account = Account::default();
        account.spend(MAX_TOTAL - ENTRY - 3).unwrap();
        assert_eq!(write(root, b"new", b"four", false, &account), Err(413));
        assert_eq!(write(root, b"newer", b"", false, &account), Err(413));
        assert_eq!(write(root, b"new", b"abc", false, &account), Ok(()));
    }

    #[test]
    fn forms_that_are_read_at_once_take_bounded_memory() {
        let account = Account::default();
        assert_eq!(account.hold(MAX_FORM + 1).unwrap_err(), 413);
        let held: Vec<_> = (0..4).map(|_| account.hold(MAX_FORM).unwrap()).collect();
        assert_eq!(account.hold(1).unwrap_err(), 503);
        drop(held);
        assert!(account.hold(MAX_FORM).is_ok());
    }

    #[test]
    fn multipart_forms_keep_every_byte_of_their_content() {
        let content: Vec<u8> = (0..=255).chain(*b"\r\n-- \r\n--bound").collect();
        let mut body = b"--boundary\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\na.bin\
                         \r\n--boundary\r\ncontent-disposition: form-data; name=content; \
                         filename=\"x\"\r\nContent-Type: text/plain\r\n\r\n"
            .to_vec();
        body.extend(&content);
        body.extend(b"\r\n--boundary--\r\n");
        let form = multipart("boundary", &body).unwrap();
        let path = Some(b"a.bin".to_vec());
        assert_eq!(form, Form { path, content: Some(content), clear: false });
    }
}
