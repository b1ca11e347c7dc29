//! URLs as far as downloads need them: `http` and `https`, with what a redirect names resolved.

use std::fmt;
use std::str::FromStr;

/// An `http` or `https` URL without its fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    https: bool,
    /// Host and port, with the user and the password when there are any.
    authority: String,
    /// Path and query, beginning with `/`.
    path: String,
}

impl Url {
    /// Returns whether `text` is meant to be one, and not a path.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+'))
    }

    /// Returns whether it is an `https` URL.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns the host, without brackets or port.
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once('@').map_or(&*self.authority, |(_, host)| host);
        match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.split_once(':').map_or(host, |(host, _)| host),
        }
    }

    /// Returns the last part of the path, percent-decoded; empty when the path ends in `/`.
    pub fn file_name(&self) -> String {
        let path = self.path.split_once('?').map_or(&*self.path, |(path, _)| path);
        decoded(path.rsplit_once('/').map_or(path, |(_, name)| name))
    }

    /// Returns the password, as it is written.
    pub fn password(&self) -> Option<&str> {
        let (user, _) = self.authority.rsplit_once('@')?;
        user.split_once(':').map(|(_, password)| password)
    }

    /// Returns the whole text, the password included, as a client needs it.
    pub fn with_password(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.path)
    }

    /// Resolves `reference`, which a response of this URL names.
    ///
    /// # Errors
    /// A sentence, when it is no `http` or `https` URL.
    pub fn join(&self, reference: &str) -> Result<Url, String> {
        let reference = reference.split_once('#').map_or(reference, |(url, _)| url);
        let on_host = |path: &str| format!("{}://{}{path}", self.scheme(), self.authority);
        if Url::is_meant(reference) {
            return reference.parse();
        }
        if let Some(rest) = reference.strip_prefix("//") {
            return format!("{}://{rest}", self.scheme()).parse();
        }
        let path = self.path.split_once('?').map_or(&*self.path, |(path, _)| path);
        if reference.starts_with('/') {
            return on_host(reference).parse();
        }
        if reference.is_empty() || reference.starts_with('?') {
            return on_host(&format!("{path}{reference}")).parse();
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (tail, query) = match reference.split_once('?') {
            Some((tail, query)) => (tail, format!("?{query}")),
            None => (reference, String::new()),
        };
        let mut parts: Vec<&str> = folder.split('/').skip(1).collect();
        for part in tail.split('/') {
            match part {
                "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        on_host(&format!("/{}{query}", parts.join("/"))).parse()
    }

    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let text = text.split_once('#').map_or(text, |(url, _)| url);
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("`{text}` is no URL"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => {
                return Err(format!("`{other}` URLs are not supported; known are http and https"));
            }
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        let url = Url { https, authority: authority.to_string(), path };
        if url.host().is_empty() {
            return Err(format!("The URL `{url}` names no host"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("The URL `{url}` holds a character that must be percent-encoded"));
        }
        Ok(url)
    }
}

/// Without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme())?;
        match self.authority.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((name, _)) => write!(f, "{name}:***@{host}")?,
                None => write!(f, "{user}@{host}")?,
            },
            None => f.write_str(&self.authority)?,
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn references_resolve_as_rfc_3986_section_5_4_says() {
        let base = url("http://a/b/c/d;p?q");
        for (reference, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("g#s", "http://a/b/c/g"),
            ("", "http://a/b/c/d;p"),
            ("../g", "http://a/b/g"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("https://x/y", "https://x/y"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), expected, "{reference}");
        }
        assert!(base.join("ftp://x/y").is_err());
    }

    #[test]
    fn a_password_is_not_shown() {
        let url = url("https://me:hunter2@host:8443/a%20b.img?c=d#e");
        assert_eq!(url.to_string(), "https://me:***@host:8443/a%20b.img?c=d");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!((url.host(), url.file_name()), ("host", "a b.img".into()));
        assert!(url.with_password().contains("hunter2") && url.password() == Some("hunter2"));
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for text in
            ["ftp://host/x", "http://", "http:///x", "http://a b/", "http://h/\u{e9}", "host/x"]
        {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
        assert_eq!(url("http://[::1]:80").host(), "::1");
        assert!(Url::is_meant("nbd://x") && !Url::is_meant("images/a://b"));
    }
}
