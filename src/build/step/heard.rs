//! A step's log that a test reads.

use kvmbake_provision::step::Log;
use kvmbake_provision::{Output, Stream};

/// What was printed, commands and notes left out.
#[derive(Default)]
pub struct Heard(pub String);

impl Output for Heard {
    fn write(&mut self, _: Stream, bytes: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(bytes));
    }
}

impl Log for Heard {
    fn command(&mut self, _: usize, _: usize, _: &str) {}
    fn note(&mut self, _: &str) {}
}
