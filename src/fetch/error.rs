//! Why a download failed; each names the URL.

use std::io;
use std::path::PathBuf;

use super::url::Url;

/// A failed download from one URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server said no.
    #[error("{url} answers {status} {reason}")]
    Status {
        /// The URL, after redirects.
        url: Url,
        /// The status code.
        status: u16,
        /// What the code stands for.
        reason: &'static str,
    },
    /// No answer came.
    #[error("Cannot reach {url}")]
    Unreachable {
        /// The URL.
        url: Url,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// Redirects do not end.
    #[error("{url} leads through more than {limit} redirects, the last one to {last}")]
    Redirects {
        /// Where they began.
        url: Url,
        /// How many are followed.
        limit: usize,
        /// Where the last one leads.
        last: Url,
    },
    /// A redirect leads where no download goes.
    #[error("{url} leads to a place that cannot be used: {why}")]
    Redirect {
        /// Where it came from.
        url: Url,
        /// What is wrong.
        why: String,
    },
    /// The connection ended early.
    #[error("{url} stopped after {received} bytes{}", .total.map_or(String::new(), |t| format!(" of {t}")))]
    Cut {
        /// The URL.
        url: Url,
        /// Bytes received, earlier tries included.
        received: u64,
        /// What the server said there were.
        total: Option<u64>,
        /// What broke it, when it did not just end.
        source: Option<io::Error>,
    },
    /// The server answers a request for a range with another one.
    #[error("{url} sends another part than the one asked for")]
    Range {
        /// The URL.
        url: Url,
    },
    /// The server sends without end.
    #[error("{url} sends more than {limit} bytes")]
    TooLarge {
        /// The URL.
        url: Url,
        /// What is accepted.
        limit: u64,
    },
    /// What came is not what was wanted.
    #[error("{url} sends another file: {why}")]
    Wrong {
        /// The URL.
        url: Url,
        /// In which way.
        why: String,
    },
    /// A variable of the environment names no proxy.
    #[error("The variable {variable} names no proxy that can be used")]
    Proxy {
        /// The variable.
        variable: String,
    },
    /// The file system said no.
    #[error("Cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("Interrupted")]
    Cancelled,
}

impl FetchError {
    /// Returns whether the same request may succeed a moment later.
    pub fn is_temporary(&self) -> bool {
        match self {
            FetchError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            FetchError::Unreachable { source, .. } => {
                !matches!(**source, ureq::Error::BadUri(_) | ureq::Error::HostNotFound)
            }
            FetchError::Cut { .. } | FetchError::Range { .. } => true,
            _ => false,
        }
    }

    /// Returns whether no other mirror could do better.
    pub fn is_final(&self) -> bool {
        matches!(self, FetchError::Write { .. } | FetchError::Cancelled | FetchError::Proxy { .. })
    }
}
