//! Downloads over HTTP: resumed where they were cut, taken from the next mirror when one fails, and
//! used only when the caller has checked what came.
//!
//! This module knows nothing of profiles or of the cache. What a server says is not believed: sizes
//! are bounded, ranges are compared with what was asked for, redirects are counted.
//!
//! RFC 9110 (methods, ranges, conditions), RFC 3986 section 5 (relative references).

mod client;
mod download;
mod error;
mod proxy;
mod sums;
mod url;

pub use client::{Client, Condition};
pub use download::{Arrived, Checked, Download, Told};
pub use error::FetchError;
pub use sums::{SumsError, find as find_sum};
pub use url::Url;
