//! `on_error`: what follows when a step fails.

use crate::profile::reader::Reader;

/// The key.
const KEY: &str = "on_error";
const MAXIMUM_RETRIES: i64 = 100;

/// What follows when a step fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// The build ends.
    #[default]
    Abort,
    /// The build goes on, and the manifest says so.
    Ignore,
    /// The step is run again, so often at most, on the guest as it is then.
    Retry(u32),
    /// The build waits with the guest until a person is done with it.
    Keep,
    /// A person gets a terminal in the guest.
    Shell,
}

const WORDS: [(&str, OnError); 5] = [
    ("abort", OnError::Abort),
    ("ignore", OnError::Ignore),
    ("retry", OnError::Retry(1)),
    ("keep", OnError::Keep),
    ("shell", OnError::Shell),
];

impl OnError {
    /// Returns the words that a profile has for it.
    pub fn words() -> Vec<&'static str> {
        WORDS.map(|(word, _)| word).into()
    }
}

/// Reads a word, or the table `{ retry = 3 }`.
pub fn read(reader: &Reader<'_, '_>) -> OnError {
    let Some(value) = reader.value(KEY) else { return OnError::Abort };
    if let Some(table) = reader.table_of(KEY, value) {
        let retries = table.integer("retry", 1..=MAXIMUM_RETRIES);
        if table.value("retry").is_none() {
            table.fault(&table.span(), "`on_error` as a table needs `retry`, how often");
        }
        table.finish();
        let retries = retries.and_then(|at| u32::try_from(at.value).ok());
        return OnError::Retry(retries.unwrap_or(1));
    }
    let word = reader.parsed(KEY, |text| {
        let known = WORDS.iter().find(|(word, _)| *word == text).map(|(_, known)| *known);
        known.ok_or_else(|| format!("`{text}` is none of {}", OnError::words().join(", ")))
    });
    word.map_or(OnError::Abort, |at| at.value)
}
