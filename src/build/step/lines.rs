//! What a step prints, as events of the report: cut into lines, secrets hidden.

use std::sync::Arc;

use kvmbake_provision::output::LineBuffer;
use kvmbake_provision::step::Log;
use kvmbake_provision::{Output, Stream};

use crate::report::{Event, Report, Stage};
use crate::secret::{self, Secrets};

/// A step's output, as lines for the report.
pub struct Lines {
    step: usize,
    report: Arc<dyn Report>,
    /// Before lines are made of it: a secret may have several.
    secrets: [secret::Stream; 2],
    buffers: [LineBuffer; 2],
}

impl Lines {
    /// Of step `step`.
    pub fn new(step: usize, report: Arc<dyn Report>, secrets: &Secrets) -> Lines {
        let secrets = [secrets.stream(), secrets.stream()];
        Lines { step, report, secrets, buffers: Default::default() }
    }

    /// Reports what is left, the end of a line or not.
    pub fn finish(&mut self) {
        let streams = self.secrets.iter_mut().zip(self.buffers.iter_mut()).zip([false, true]);
        for ((secrets, buffer), stderr) in streams {
            let (step, report) = (self.step, &self.report);
            secrets.finish(&mut |bytes| {
                buffer.push(bytes, |line| report.event(Event::Output { step, stderr, line }));
            });
            buffer.finish(|line| report.event(Event::Output { step, stderr, line }));
        }
    }
}

impl Output for Lines {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let stderr = stream == Stream::Stderr;
        let (step, report) = (self.step, &self.report);
        let buffer = &mut self.buffers[usize::from(stderr)];
        self.secrets[usize::from(stderr)].push(bytes, &mut |bytes| {
            buffer.push(bytes, |line| report.event(Event::Output { step, stderr, line }));
        });
    }
}

impl Log for Lines {
    fn command(&mut self, number: usize, total: usize, text: &str) {
        if total > 1 {
            let line = text.trim().lines().next().unwrap_or_default();
            self.note(&format!("{number}/{total} {line}"));
        }
    }

    fn note(&mut self, text: &str) {
        self.report.event(Event::Note { stage: Stage::Step, text });
    }
}
