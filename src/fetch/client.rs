//! One HTTP request, with its redirects followed here: each hop may need another proxy, and an
//! `https` URL whose answer is to be trusted must not lead to `http`.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::error::FetchError;
use super::proxy;
use super::url::Url;

/// How many redirects are followed.
const REDIRECTS: usize = 10;
/// How long a connection and the head of a response may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a server may send nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// A client that trusts the certificates that the host trusts.
pub struct Client {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

/// Under which condition a request is to be answered.
#[derive(Debug, Clone, Copy)]
pub enum Condition<'a> {
    /// With everything.
    None,
    /// With everything from this byte on; if the validator is given and no longer holds, with all.
    From(u64, Option<&'a str>),
    /// Only if the validator no longer holds.
    Changed(&'a str),
}

/// The head of an answer, and the rest to be read.
pub struct Response {
    /// The URL that answered, after redirects.
    pub url: Url,
    /// The status code.
    pub status: u16,
    /// The length of what follows, when the server says it.
    pub length: Option<u64>,
    /// The first byte and the whole length of `Content-Range`, as far as they are known.
    pub range: (Option<u64>, Option<u64>),
    /// What tells this version of the file from another: a strong entity tag or a time.
    pub validator: Option<String>,
    /// What follows.
    pub body: Box<dyn Read + Send>,
}

impl Default for Client {
    fn default() -> Client {
        Client { provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }
}

impl Client {
    /// Asks for `url`. Every status is an answer.
    ///
    /// # Errors
    /// No answer came, or the redirects lead nowhere. `secure` refuses those from `https` to `http`.
    pub fn get(
        &self,
        url: &Url,
        condition: Condition<'_>,
        secure: bool,
    ) -> Result<Response, FetchError> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.get_once(&at, condition)?;
            let status = response.status().as_u16();
            let header = |name: &str| response.headers().get(name)?.to_str().ok();
            let Some(location) = header("location").filter(|_| is_redirect(status)) else {
                let (length, range) =
                    (length(header("content-length")), range(header("content-range")));
                let validator = validator(header("etag"), header("last-modified"));
                let body = Box::new(response.into_body().into_reader());
                return Ok(Response { url: at, status, length, range, validator, body });
            };
            let next = at.join(location);
            let next = next.map_err(|why| FetchError::Redirect { url: at.clone(), why })?;
            if secure && at.is_https() && !next.is_https() {
                let why = format!("from https to {next}");
                return Err(FetchError::Redirect { url: at, why });
            }
            at = next;
        }
        Err(FetchError::Redirects { url: url.clone(), limit: REDIRECTS, last: at })
    }

    /// Returns the short file at `url`, of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Client::get`]; any status but 200; the file is longer.
    pub fn read(&self, url: &Url, limit: u64) -> Result<Vec<u8>, FetchError> {
        let response = self.get(url, Condition::None, true)?;
        if response.status != 200 {
            return Err(refused(response.url, response.status));
        }
        let mut bytes = Vec::new();
        let (url, total) = (response.url, response.length);
        response.body.take(limit + 1).read_to_end(&mut bytes).map_err(|source| {
            FetchError::Cut { url: url.clone(), received: 0, total, source: Some(source) }
        })?;
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { url, limit });
        }
        Ok(bytes)
    }

    fn get_once(
        &self,
        url: &Url,
        condition: Condition<'_>,
    ) -> Result<ureq::http::Response<ureq::Body>, FetchError> {
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::clone(&self.provider))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy::for_url(url)?)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kvmbake/", env!("CARGO_PKG_VERSION")))
            // A checksum is one of the bytes as they lie on the server.
            .accept_encoding("identity")
            .timeout_connect(Some(ANSWER))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(SILENCE))
            .build();
        let mut request = ureq::Agent::new_with_config(config).get(url.with_password());
        match condition {
            Condition::None => {}
            Condition::From(at, validator) => {
                request = request.header("Range", format!("bytes={at}-"));
                if let Some(validator) = validator {
                    request = request.header("If-Range", validator);
                }
            }
            Condition::Changed(validator) if validator.starts_with('"') => {
                request = request.header("If-None-Match", validator);
            }
            Condition::Changed(date) => request = request.header("If-Modified-Since", date),
        }
        let unreachable =
            |error| FetchError::Unreachable { url: url.clone(), source: Box::new(error) };
        request.call().map_err(unreachable)
    }
}

/// The error that a status is.
pub fn refused(url: Url, status: u16) -> FetchError {
    let code = ureq::http::StatusCode::from_u16(status).ok();
    let reason = code.and_then(|code| code.canonical_reason()).unwrap_or_default();
    FetchError::Status { url, status, reason }
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

fn length(header: Option<&str>) -> Option<u64> {
    header?.trim().parse().ok()
}

/// Reads `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
fn range(header: Option<&str>) -> (Option<u64>, Option<u64>) {
    let read = || {
        let (range, total) = header?.trim().strip_prefix("bytes")?.trim().split_once('/')?;
        let first = range.split_once('-').and_then(|(first, _)| first.trim().parse().ok());
        Some((first, total.trim().parse().ok()))
    };
    read().unwrap_or((None, None))
}

/// A weak entity tag does not say that the bytes are the same.
fn validator(etag: Option<&str>, modified: Option<&str>) -> Option<String> {
    etag.filter(|tag| tag.starts_with('"')).or(modified).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_section_14_4_writes_them() {
        assert_eq!(range(Some("bytes 42-1233/1234")), (Some(42), Some(1234)));
        assert_eq!(range(Some("bytes 42-1233/*")), (Some(42), None));
        assert_eq!(range(Some("bytes */1234")), (None, Some(1234)));
        for text in ["", "lines 1-2/3", "bytes", "bytes 1-2"] {
            assert_eq!(range(Some(text)), (None, None), "{text}");
        }
    }

    #[test]
    fn a_weak_tag_is_no_validator() {
        assert_eq!(validator(Some("W/\"x\""), Some("then")).as_deref(), Some("then"));
        assert_eq!(validator(Some("\"x\""), Some("then")).as_deref(), Some("\"x\""));
        assert_eq!(validator(None, None), None);
    }
}
