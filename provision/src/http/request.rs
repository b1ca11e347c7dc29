//! The head of a request: read from a stream within bounds, and what of it matters here.

use std::io::{self, Read};

/// The longest head, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// The most header lines.
const MAX_HEADERS: usize = 64;

/// Why there is no request.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The stream failed.
    Stream(io::Error),
    /// It is answered with this status, and the connection closed.
    Refused(u16),
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) is_head: bool,
    pub(super) is_get: bool,
    pub(super) is_post: bool,
    /// The path as sent, without the query.
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) keep_alive: bool,
    /// Bytes of content that follow the head; `None` when that is not said beforehand.
    pub(super) content: Option<u64>,
    pub(super) content_type: Option<String>,
    /// Whether the client waits with its content until it is told to go on.
    pub(super) waits: bool,
}

impl Request {
    /// Reads the next request; none when the client has closed between two. `buffer` keeps what came too early.
    pub(super) fn read(
        stream: &mut impl Read,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Request>, HeadError> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Request::new(&mut headers);
            match head.parse(buffer) {
                Ok(httparse::Status::Complete(length)) => {
                    let request = Request::from_head(&head)?;
                    buffer.drain(..length);
                    return Ok(Some(request));
                }
                Ok(httparse::Status::Partial) if buffer.len() >= MAX_HEAD => {
                    return Err(HeadError::Refused(431));
                }
                Ok(httparse::Status::Partial) => {}
                Err(httparse::Error::TooManyHeaders) => return Err(HeadError::Refused(431)),
                Err(_) => return Err(HeadError::Refused(400)),
            }
            let mut piece = [0; 2048];
            match stream.read(&mut piece) {
                Ok(0) if buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(HeadError::Refused(400)),
                Ok(read) => buffer.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HeadError::Stream(error)),
            }
        }
    }

    /// Stands for what could not be read, in answers and logs.
    pub(super) fn unreadable() -> Request {
        let (method, path) = ("-".into(), "-".into());
        Request {
            method,
            is_head: false,
            is_get: false,
            is_post: false,
            path,
            range: None,
            keep_alive: false,
            content: Some(0),
            content_type: None,
            waits: false,
        }
    }

    /// The path for a log line.
    pub(super) fn shown_path(&self) -> String {
        self.path.chars().filter(|c| !c.is_control()).take(256).collect()
    }

    fn from_head(head: &httparse::Request<'_, '_>) -> Result<Request, HeadError> {
        let header = |name: &str| {
            let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
        };
        let method = head.method.unwrap_or_default();
        let target = head.path.unwrap_or_default();
        // The form that proxies are sent, `http://host/path`, must be understood too (RFC 9112, 3.2.2).
        let target = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => target,
        };
        let path = target.split(['?', '#']).next().unwrap_or_default();
        if !path.starts_with('/') {
            return Err(HeadError::Refused(400));
        }
        let connection = header("connection").unwrap_or_default().to_ascii_lowercase();
        let says = |word: &str| connection.split(',').any(|token| token.trim() == word);
        let content = match (header("transfer-encoding"), header("content-length")) {
            (Some(_), _) => None,
            (None, None) => Some(0),
            (None, Some(length)) => Some(length.parse().map_err(|_| HeadError::Refused(400))?),
        };
        // Content that we do not read would be taken for the next request.
        let keep_alive = content == Some(0)
            && if head.version == Some(1) { !says("close") } else { says("keep-alive") };
        Ok(Request {
            method: method.chars().take(16).collect(),
            is_head: method == "HEAD",
            is_get: method == "GET",
            is_post: method == "POST",
            path: path.to_owned(),
            range: header("range").map(str::to_owned),
            keep_alive,
            content,
            content_type: header("content-type").map(str::to_owned),
            waits: header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")),
        })
    }
}
