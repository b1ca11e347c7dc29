//! What the guest has fetched from the profile's folder since the last layer: such a layer is right
//! only as long as those files are what they were.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The paths that were asked for, as the guest wrote them.
#[derive(Debug, Default)]
pub struct Fetched(Mutex<BTreeSet<String>>);

impl Fetched {
    /// Notes that the guest asked for `path`.
    pub fn add(&self, path: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_string());
    }

    /// Returns what was noted since the last call.
    pub fn take(&self) -> Vec<String> {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *paths).into_iter().collect()
    }
}
