//! A report for tests.

use std::sync::Mutex;

use super::{Event, Report};

/// Keeps what is noted, in order; all else goes nowhere.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Takes what has been noted.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Report for Notes {
    fn event(&self, event: Event<'_>) {
        if let Event::Note { text, .. } = event {
            self.0.lock().unwrap().push(text.to_string());
        }
    }
}
