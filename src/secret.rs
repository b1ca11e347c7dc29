//! Secrets, and keeping them out of everything that is shown or written.
//!
//! A secret is hidden wherever it stands as it is, JSON-escaped or percent-encoded, and each line of
//! one that has several. What a guest makes of a secret otherwise cannot be known.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use zeroize::Zeroizing;

/// What stands in a secret's place.
const MASK: &str = "***";
/// What stands where a long text was cut.
const CUT: &str = "…";
/// Shorter ones would hide all kinds of other things.
pub const SHORTEST: usize = 4;

/// The secrets of a command. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Secrets(Arc<RwLock<Vec<Zeroizing<String>>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.list().len())
    }
}

impl Secrets {
    /// Hides `secret` from here on. One of fewer than [`SHORTEST`] bytes is not taken.
    pub fn add(&self, secret: &str) {
        let json = serde_json::to_string(secret).unwrap_or_default();
        let json = json.trim_matches('"').to_string();
        let lines = secret.lines().map(|line| line.trim_end().to_string());
        let forms = [secret.to_string(), json, percent_encoded(secret)].into_iter().chain(lines);
        let mut list = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for form in forms {
            if form.len() >= SHORTEST && !list.iter().any(|known| **known == form) {
                list.push(Zeroizing::new(form));
            }
        }
        // Of two that begin alike the longer one is found first.
        list.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Returns whether `text` holds a secret.
    pub fn within(&self, text: &str) -> bool {
        self.list().iter().any(|secret| text.contains(&***secret))
    }

    /// Returns `text` with its secrets hidden.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let list = self.list();
        let mut shown = Cow::Borrowed(text);
        for secret in list.iter() {
            if shown.contains(&***secret) {
                shown = Cow::Owned(shown.replace(&**secret, MASK));
            }
        }
        match shown.contains(CUT) {
            true => Cow::Owned(self.redact_cut(&shown, &list)),
            false => shown,
        }
    }

    /// Hides what is left of a secret where a text was cut.
    fn redact_cut(&self, text: &str, list: &[Zeroizing<String>]) -> String {
        let mut parts = text.split(CUT).map(str::to_string).collect::<Vec<_>>();
        let last = parts.len() - 1;
        for part in &mut parts[..last] {
            let lengths = |secret: &str| {
                let cuts = secret.char_indices().map(|(at, _)| at);
                cuts.filter(|at| *at >= SHORTEST && part.ends_with(&secret[..*at])).max()
            };
            if let Some(length) = list.iter().filter_map(|secret| lengths(secret)).max() {
                part.truncate(part.len() - length);
                part.push_str(MASK);
            }
        }
        parts.join(CUT)
    }

    /// Hides the secrets in all strings of `value`.
    pub fn redact_json(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => {
                if let Cow::Owned(shown) = self.redact(text) {
                    *text = shown;
                }
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(|i| self.redact_json(i)),
            serde_json::Value::Object(map) => map.values_mut().for_each(|v| self.redact_json(v)),
            _ => {}
        }
    }

    /// Returns a filter for bytes that come in pieces.
    pub fn stream(&self) -> Stream {
        Stream { secrets: self.clone(), held: Vec::new() }
    }

    fn list(&self) -> RwLockReadGuard<'_, Vec<Zeroizing<String>>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Hides secrets in bytes that come in pieces. What may be the beginning of a secret is held back
/// until it is known.
#[derive(Debug)]
pub struct Stream {
    secrets: Secrets,
    held: Vec<u8>,
}

impl Stream {
    /// Takes the next bytes and passes on what is known to be none of a secret's.
    pub fn push(&mut self, bytes: &[u8], pass: &mut dyn FnMut(&[u8])) {
        self.filter(bytes, false, pass);
    }

    /// Passes on what is held back, as nothing follows.
    pub fn finish(&mut self, pass: &mut dyn FnMut(&[u8])) {
        self.filter(&[], true, pass);
    }

    fn filter(&mut self, bytes: &[u8], last: bool, pass: &mut dyn FnMut(&[u8])) {
        let list = self.secrets.list();
        if list.is_empty() {
            return pass(bytes);
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let (mut begin, mut at) = (0, 0);
        while at < all.len() {
            let rest = &all[at..];
            let begins = |secret: &&Zeroizing<String>| {
                secret.len() > rest.len() && secret.as_bytes().starts_with(rest)
            };
            if !last && list.iter().any(|secret| begins(&secret)) {
                break;
            }
            match list.iter().find(|secret| rest.starts_with(secret.as_bytes())) {
                Some(secret) => {
                    pass(&all[begin..at]);
                    pass(MASK.as_bytes());
                    at += secret.len();
                    begin = at;
                }
                None => at += 1,
            }
        }
        pass(&all[begin..at]);
        self.held = all.split_off(at);
    }
}

/// RFC 3986 section 2.1, all but the unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => encoded.push(b as char),
            b => encoded.push_str(&format!("%{b:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(list: &[&str]) -> Secrets {
        let secrets = Secrets::default();
        list.iter().for_each(|secret| secrets.add(secret));
        secrets
    }

    #[test]
    fn a_secret_is_hidden_in_all_its_forms() {
        let secrets = secrets(&["hunter2", "p\"ss word", "-----KEY-----\nabcdef\n"]);
        for text in ["x hunter2!", r#"{"a":"p\"ss word"}"#, "https://h/?p=p%22ss%20word", "abcdef"]
        {
            let shown = secrets.redact(text);
            assert!(shown.contains(MASK) && secrets.within(text), "{shown}");
            assert!(!secrets.within(&shown), "{shown}");
        }
        assert_eq!(secrets.redact("hunter1"), "hunter1");
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }

    #[test]
    fn of_two_that_begin_alike_nothing_of_the_longer_one_stays() {
        let secrets = secrets(&["abcd", "abcdefgh"]);
        assert_eq!(secrets.redact("abcdefgh abcd"), "*** ***");
    }

    #[test]
    fn what_is_left_of_a_secret_where_a_text_was_cut_is_hidden_too() {
        let secrets = secrets(&["hunter2-hunter2"]);
        assert_eq!(secrets.redact("login hunter2…, hun… x"), "login ***…, hun… x");
        assert_eq!(secrets.redact("plain…"), "plain…");
    }

    #[test]
    fn pieces_are_filtered_as_the_whole_wherever_they_end() {
        let secrets = secrets(&["abcd", "abcdefgh", "line one\nline two"]);
        let text = "ab abcd abcdefgx abcdefgh aabcd line one\nline two\nab";
        for size in 1..text.len() {
            let mut stream = secrets.stream();
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                stream.push(piece, &mut |bytes| seen.extend_from_slice(bytes));
            }
            stream.finish(&mut |bytes| seen.extend_from_slice(bytes));
            let seen = String::from_utf8(seen).unwrap();
            assert_eq!(seen, "ab *** ***efgx *** a*** ***\nab", "pieces of {size}");
        }
    }
}
