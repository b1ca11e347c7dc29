//! What a path of a request stands for: a file or a part of one, a listing, a redirection, an error.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::request::Request;
use super::{Answer, Root};

/// The most entries that a listing shows.
const MAX_LISTED: usize = 4096;

/// The content of an answer.
#[derive(Debug)]
pub(super) enum Body {
    Text(String),
    /// A file that stands at the first byte to send, and how many.
    File(File, u64),
    /// As many bytes of a fixed content from this one on.
    Fixed(Arc<[u8]>, usize, u64),
}

impl Body {
    pub(super) fn len(&self) -> u64 {
        match self {
            Body::Text(text) => text.len() as u64,
            Body::File(_, length) | Body::Fixed(_, _, length) => *length,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

/// An answer of one line, for errors.
pub(super) fn plain(status: u16) -> Reply {
    let headers = vec![("Content-Type", "text/plain; charset=utf-8".to_owned())];
    Reply { status, headers, body: Body::Text(format!("{status} {}\n", reason(status))) }
}

/// The standard's words for a status.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}

/// Finds the answer to a request without content.
pub(super) fn reply(root: &Root, request: &Request) -> Reply {
    if !request.is_get && !request.is_head {
        let mut refused = plain(405);
        let allowed = if root.is_writable() { "GET, HEAD, POST" } else { "GET, HEAD" };
        refused.headers.push(("Allow", allowed.into()));
        return refused;
    }
    match find(root, request) {
        Ok(reply) => reply,
        Err(status) => plain(status),
    }
}

fn find(root: &Root, request: &Request) -> Result<Reply, u16> {
    let root = match root {
        Root::Folder(root, _) => root,
        Root::Fixed(contents) => {
            let (name, content) = fixed(contents, &request.path).ok_or(404u16)?;
            return Ok(bytes(Path::new(name), content, request.range.as_deref()));
        }
    };
    match locate(root, &request.path)? {
        Located::File(path) => file(&path, request.range.as_deref()),
        Located::Index(path) => file(&path, None),
        Located::Folder(path, asked) => listing(&path, &asked),
        Located::Moved => {
            let mut moved = plain(301);
            moved.headers.push(("Location", format!("{}/", request.path)));
            Ok(moved)
        }
    }
}

/// What a path of a request leads to.
enum Located {
    File(PathBuf),
    /// The file that a folder shows instead of its listing.
    Index(PathBuf),
    /// A folder, and the decoded path that it was asked for by.
    Folder(PathBuf, Vec<u8>),
    /// A folder that was asked for without the slash at its end.
    Moved,
}

/// Finds what a request for `path` leads to. `root` is canonical.
fn locate(root: &Path, path: &str) -> Result<Located, u16> {
    let bytes = percent_decoded(path).ok_or(400u16)?;
    let mut path = root.to_path_buf();
    for part in bytes.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(403),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    let path = path.canonicalize().map_err(|error| status_of(&error))?;
    // Symbolic links are resolved now: what they lead to must be inside as well.
    if !path.starts_with(root) {
        return Err(403);
    }
    let kind = path.metadata().map_err(|error| status_of(&error))?;
    let as_folder = bytes.ends_with(b"/");
    if kind.is_dir() {
        if !as_folder {
            return Ok(Located::Moved);
        }
        let index = path.join("index.html");
        if index.symlink_metadata().is_ok_and(|kind| kind.is_file()) {
            return Ok(Located::Index(index));
        }
        return Ok(Located::Folder(path, bytes));
    }
    // Opening a pipe would wait for its writer; devices are no content either.
    if !kind.is_file() || as_folder {
        return Err(404);
    }
    Ok(Located::File(path))
}

/// See [`Server::answer_to`](super::Server::answer_to).
pub(super) fn answer_to(root: &Root, path: &str) -> Answer {
    let refused = |status| Answer::Other { status, text: String::new() };
    let root = match root {
        Root::Folder(root, _) => root,
        Root::Fixed(contents) => {
            return fixed(contents, path).map_or(refused(404), |(_, content)| Answer::Other {
                status: 200,
                text: String::from_utf8_lossy(content).into_owned(),
            });
        }
    };
    match locate(root, path) {
        Ok(Located::File(path) | Located::Index(path)) => Answer::File(path),
        Ok(Located::Moved) => refused(301),
        Ok(Located::Folder(path, asked)) => match listing(&path, &asked) {
            Ok(Reply { status, body: Body::Text(text), .. }) => Answer::Other { status, text },
            Ok(reply) => refused(reply.status),
            Err(status) => refused(status),
        },
        Err(status) => refused(status),
    }
}

/// Finds a fixed content: that of the path, or the one for all paths.
fn fixed<'c>(contents: &'c super::Contents, path: &'c str) -> Option<(&'c str, &'c Arc<[u8]>)> {
    let decoded = percent_decoded(path).and_then(|bytes| String::from_utf8(bytes).ok())?;
    let found = contents.get(&decoded).or_else(|| contents.get(""))?;
    Some((path, found))
}

fn bytes(name: &Path, content: &Arc<[u8]>, range: Option<&str>) -> Reply {
    let content = Arc::clone(content);
    let (part, size) = (ranged(name, range, content.len() as u64), content.len() as u64);
    match part {
        Ok((status, headers, first, length)) => {
            let first = usize::try_from(first.min(size)).unwrap_or(0);
            Reply { status, headers, body: Body::Fixed(content, first, length) }
        }
        Err(refused) => *refused,
    }
}

fn file(path: &Path, range: Option<&str>) -> Result<Reply, u16> {
    let mut file = File::open(path).map_err(|error| status_of(&error))?;
    let size = file.metadata().map_err(|error| status_of(&error))?.len();
    match ranged(path, range, size) {
        Ok((status, headers, first, length)) => {
            file.seek(SeekFrom::Start(first)).map_err(|error| status_of(&error))?;
            Ok(Reply { status, headers, body: Body::File(file, length) })
        }
        Err(refused) => Ok(*refused),
    }
}

/// Status, header lines, first byte and length of the part that is asked for.
type Part = (u16, Vec<(&'static str, String)>, u64, u64);

/// Finds the part of a content that a range asks for; else the answer that there is none.
fn ranged(path: &Path, range: Option<&str>, size: u64) -> Result<Part, Box<Reply>> {
    let mut headers = vec![
        ("Content-Type", content_type(path).to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
    ];
    let (status, first, length) = match range.map_or(Range::Whole, |range| parse_range(range, size))
    {
        Range::Whole => (200, 0, size),
        Range::Part { first, length } => {
            headers.push(("Content-Range", format!("bytes {first}-{}/{size}", first + length - 1)));
            (206, first, length)
        }
        Range::Outside => {
            let mut refused = plain(416);
            refused.headers.push(("Content-Range", format!("bytes */{size}")));
            return Err(Box::new(refused));
        }
    };
    Ok((status, headers, first, length))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { first: u64, length: u64 },
    Outside,
}

/// Reads a `Range` header (RFC 9110, 14.1.2). Several ranges, or none that makes sense, mean the whole file.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Range::Whole,
        (Ok(first), _)
            if first >= size && (last.trim().is_empty() || last.trim().parse::<u64>().is_ok()) =>
        {
            Range::Outside
        }
        (Ok(first), Ok(last)) => Range::Part { first, length: last.min(size - 1) - first + 1 },
        (Ok(first), Err(_)) if last.trim().is_empty() => {
            Range::Part { first, length: size - first }
        }
        (Err(_), Ok(0)) if first.trim().is_empty() => Range::Outside,
        (Err(_), Ok(_)) if first.trim().is_empty() && size == 0 => Range::Outside,
        (Err(_), Ok(count)) if first.trim().is_empty() => {
            let length = count.min(size);
            Range::Part { first: size - length, length }
        }
        _ => Range::Whole,
    }
}

fn listing(folder: &Path, path: &[u8]) -> Result<Reply, u16> {
    let entries = folder.read_dir().map_err(|error| status_of(&error))?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for entry in entries.flatten().take(MAX_LISTED) {
        let mut name = entry.file_name().as_bytes().to_vec();
        if entry.path().is_dir() {
            name.push(b'/');
        }
        names.push(name);
    }
    names.sort_unstable();
    let title = escaped(&String::from_utf8_lossy(path));
    let mut page = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1>\n<ul>\n"
    );
    for name in names {
        let shown = escaped(&String::from_utf8_lossy(&name));
        // With `./` before it, a name with a colon is no scheme.
        page.push_str(&format!("<li><a href=\"./{}\">{shown}</a></li>\n", percent_encoded(&name)));
    }
    page.push_str("</ul></body></html>\n");
    let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
    Ok(Reply { status: 200, headers, body: Body::Text(page) })
}

/// Linux's number for a path with too many symbolic links.
const ELOOP: i32 = 40;

fn status_of(error: &io::Error) -> u16 {
    if error.raw_os_error() == Some(ELOOP) {
        return 403;
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => 403,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
            404
        }
        _ => 500,
    }
}

fn content_type(path: &Path) -> &'static str {
    let extension =
        path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" | "sh" | "cfg" | "conf" | "ks" | "preseed" | "ini" | "md" | "log" | "py" => {
            "text/plain; charset=utf-8"
        }
        "yaml" | "yml" => "application/yaml",
        "json" | "ign" => "application/json",
        "xml" => "application/xml",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "gz" | "tgz" => "application/gzip",
        "xz" | "txz" => "application/x-xz",
        "zst" => "application/zstd",
        "bz2" => "application/x-bzip2",
        "tar" => "application/x-tar",
        "zip" => "application/zip",
        "deb" => "application/vnd.debian.binary-package",
        "rpm" => "application/x-rpm",
        "iso" => "application/x-iso9660-image",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "jpg" | "jpeg" => "image/jpeg",
        _ => "application/octet-stream",
    }
}

/// Undoes percent-encoding; none when it is malformed or stands for a zero byte.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            byte => byte,
        };
        if byte == 0 {
            return None;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte))
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |first, length| Range::Part { first, length };
        for (text, size, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=2-", 10, part(2, 8)),
            ("bytes=-3", 10, part(7, 3)),
            ("bytes=-30", 10, part(0, 10)),
            ("bytes=5-99", 10, part(5, 5)),
            ("bytes=10-", 10, Range::Outside),
            ("bytes=0-", 0, Range::Outside),
            ("bytes=0-4", 0, Range::Outside),
            ("bytes=-0", 10, Range::Outside),
            ("bytes=-5", 0, Range::Outside),
            ("bytes=5-2", 10, Range::Whole),
            ("bytes=0-1,4-5", 10, Range::Whole),
            ("bytes=x-", 10, Range::Whole),
            ("lines=1-2", 10, Range::Whole),
            ("bytes=0-18446744073709551615", 10, part(0, 10)),
        ] {
            assert_eq!(parse_range(text, size), expected, "{text} of {size}");
        }
    }

    #[test]
    fn percent_encoding_goes_both_ways_and_refuses_rubbish() {
        assert_eq!(percent_decoded("/a%20b%2Fc").as_deref(), Some(b"/a b/c".as_slice()));
        for bad in ["%", "%1", "%zz", "%00", "/a%"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
        let odd = b"a b\"<\xff:";
        assert_eq!(percent_decoded(&percent_encoded(odd)).as_deref(), Some(odd.as_slice()));
    }
}
