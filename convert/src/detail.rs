//! What a format tells of an image besides sizes, as names with typed values.
//!
//! Texts are the image's own: whoever shows them on a terminal makes them safe first.

use std::fmt;

/// Names and values in the order in which they are shown.
pub(crate) type Details = Vec<(&'static str, Detail)>;

/// The value of a detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// A count, or a number of bytes.
    Number(u64),
    /// Whether something is so.
    Flag(bool),
    /// Anything else.
    Text(String),
    /// Several texts.
    List(Vec<String>),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detail::Number(number) => number.fmt(f),
            Detail::Flag(flag) => flag.fmt(f),
            Detail::Text(text) => text.fmt(f),
            Detail::List(texts) => texts.join(", ").fmt(f),
        }
    }
}

impl From<u64> for Detail {
    fn from(number: u64) -> Detail {
        Detail::Number(number)
    }
}

impl From<u32> for Detail {
    fn from(number: u32) -> Detail {
        Detail::Number(number.into())
    }
}

impl From<bool> for Detail {
    fn from(flag: bool) -> Detail {
        Detail::Flag(flag)
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Detail {
        Detail::Text(text)
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Detail {
        Detail::Text(text.to_owned())
    }
}
