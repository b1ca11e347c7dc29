//! Stages as the report sees them: a start, an end, the time between.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::report::{Event, Report, Stage};

/// Tells a report of stages.
#[derive(Clone, Copy)]
pub struct Stages<'r> {
    report: &'r dyn Report,
}

impl<'r> Stages<'r> {
    /// Tells `report`.
    pub fn new(report: &'r dyn Report) -> Stages<'r> {
        Stages { report }
    }

    /// Runs `work`, which gives its value and a word on what came of it, as a stage.
    ///
    /// # Errors
    /// That of `work`.
    pub async fn run<T>(
        &self,
        stage: Stage,
        detail: &str,
        work: impl Future<Output = Result<(T, String), Error>>,
    ) -> Result<T, Error> {
        self.report.event(Event::Started { stage, step: None, detail });
        let begun = Instant::now();
        let (value, detail) = work.await?;
        self.report.event(Event::Finished {
            stage,
            step: None,
            detail: &detail,
            took: begun.elapsed(),
        });
        Ok(value)
    }

    /// Tells that step `number` begins.
    pub fn step_started(&self, number: usize, title: &str) {
        self.report.event(Event::Started { stage: Stage::Step, step: Some(number), detail: title });
    }

    /// Tells that step `number` ended well.
    pub fn step_finished(&self, number: usize, title: &str, took: Duration) {
        self.report.event(Event::Finished {
            stage: Stage::Step,
            step: Some(number),
            detail: title,
            took,
        });
    }
}

/// Seconds to the millisecond.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}
