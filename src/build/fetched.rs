//! What the guest has asked the profile's forwards for since the last layer: such a layer is right
//! only as long as it would get the same.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// What one layer may depend on, in names and bytes of names.
const MAX_NAMES: usize = 10_000;
const MAX_BYTES: usize = 4 << 20;

/// What was asked for, as the guest wrote it.
#[derive(Debug, Default)]
pub struct Fetched(Mutex<Asked>);

#[derive(Debug, Default)]
struct Asked {
    names: BTreeSet<String>,
    bytes: usize,
    is_too_much: bool,
}

impl Fetched {
    /// Notes that the guest asked for `name`.
    pub fn add(&self, name: &str) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.names.contains(name) {
            return;
        }
        if asked.names.len() >= MAX_NAMES || asked.bytes + name.len() > MAX_BYTES {
            asked.is_too_much = true;
            return;
        }
        asked.bytes += name.len();
        asked.names.insert(name.to_string());
    }

    /// Returns what was noted since the last call; `None` when it was too much to note.
    pub fn take(&self) -> Option<Vec<String>> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Asked { names, is_too_much, .. } = std::mem::take(&mut *asked);
        (!is_too_much).then(|| names.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_told_once_and_a_guest_that_asks_for_all_is_bounded() {
        let fetched = Fetched::default();
        for name in ["/b", "/a", "/b"] {
            fetched.add(name);
        }
        assert_eq!(fetched.take().unwrap(), ["/a", "/b"]);
        assert_eq!(fetched.take().unwrap(), [""; 0]);
        for number in 0..=MAX_NAMES {
            fetched.add(&format!("/{number}"));
        }
        assert_eq!(fetched.take(), None);
        assert_eq!(fetched.take().unwrap(), [""; 0]);
        fetched.add(&"x".repeat(MAX_BYTES + 1));
        assert_eq!(fetched.take(), None);
    }
}
