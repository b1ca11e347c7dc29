//! A report without secrets: whatever an event says passes through here first.

use std::sync::Arc;

use super::{CellResult, Event, Report};
use crate::error::{Blame, Error, Excerpt};
use crate::profile::{Fault, Place};
use crate::secret::Secrets;

/// Hides secrets from another report.
pub struct Redacted {
    inner: Box<dyn Report>,
    secrets: Secrets,
}

impl Redacted {
    /// Hides `secrets`, those added later too, from `inner`.
    pub fn new(inner: Box<dyn Report>, secrets: Secrets) -> Arc<Redacted> {
        Arc::new(Redacted { inner, secrets })
    }

    fn error(&self, error: &Error) -> Error {
        let text = |text: &str| self.secrets.redact(text).into_owned();
        let texts = |list: &[String]| list.iter().map(|line| text(line)).collect();
        let mut shown = Error::new(error.blame, text(&error.message));
        shown.causes = texts(&error.causes);
        shown.hint = error.hint.as_deref().map(text);
        let excerpt = |one: &Excerpt| Excerpt { title: text(&one.title), lines: texts(&one.lines) };
        shown.excerpts = error.excerpts.iter().map(excerpt).collect();
        let fault = |fault: &Fault| Fault {
            message: text(&fault.message),
            place: Place { text: text(&fault.place.text), ..fault.place.clone() },
            hint: fault.hint.as_deref().map(text),
        };
        shown.faults = error.faults.iter().map(fault).collect();
        shown
    }
}

impl Report for Redacted {
    fn event(&self, event: Event<'_>) {
        self.redacted(event, &|event| self.inner.event(event));
    }

    fn cell_event(&self, cell: &str, event: Event<'_>) {
        let cell = self.secrets.redact(cell);
        self.redacted(event, &|event| self.inner.cell_event(&cell, event));
    }
}

impl Redacted {
    /// Gives `event` without secrets to `show`.
    fn redacted(&self, event: Event<'_>, show: &dyn Fn(Event<'_>)) {
        let text = |text| self.secrets.redact(text);
        match event {
            Event::Planned { action, position, title, remark } => {
                let (title, remark) = (&text(title), &text(remark));
                show(Event::Planned { action, position, title, remark });
            }
            Event::Started { stage, step, detail } => {
                show(Event::Started { stage, step, detail: &text(detail) });
            }
            Event::Finished { stage, step, detail, took } => {
                show(Event::Finished { stage, step, detail: &text(detail), took });
            }
            Event::Note { stage, text: note } => {
                show(Event::Note { stage, text: &text(note) });
            }
            Event::Output { step, stderr, line } => {
                show(Event::Output { step, stderr, line: &text(line) });
            }
            Event::Progress { .. } => show(event),
            Event::Done { folder, artifacts, took } => {
                let artifacts: Vec<String> =
                    artifacts.iter().map(|line| text(line).into_owned()).collect();
                show(Event::Done { folder, artifacts: &artifacts, took });
            }
            Event::Failed(error) if error.blame == Blame::Interrupted => show(event),
            Event::Failed(error) => show(Event::Failed(&self.error(error))),
            Event::Cells(cells) => {
                let own = |text: &str| self.secrets.redact(text).into_owned();
                let shown = |one: &CellResult| CellResult {
                    cell: own(&one.cell),
                    folder: one.folder.as_deref().map(own),
                    ..one.clone()
                };
                show(Event::Cells(&cells.iter().map(shown).collect::<Vec<_>>()));
            }
            Event::Kept { error, help } => {
                let help: Vec<String> = help.iter().map(|line| text(line).into_owned()).collect();
                show(Event::Kept { error: &self.error(error), help: &help });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Source;
    use crate::report::Stage;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Arc<Mutex<String>>);

    impl Report for Seen {
        fn event(&self, event: Event<'_>) {
            self.0.lock().unwrap().push_str(&format!("{event:?}\n"));
        }

        fn cell_event(&self, cell: &str, event: Event<'_>) {
            self.0.lock().unwrap().push_str(&format!("{cell} {event:?}\n"));
        }
    }

    #[test]
    fn no_event_shows_a_secret() {
        let seen = Arc::new(Mutex::new(String::new()));
        let secrets = Secrets::default();
        let report = Redacted::new(Box::new(Seen(Arc::clone(&seen))), secrets.clone());
        secrets.add("hunter2");
        let (text, took) = ("with hunter2 in it", std::time::Duration::ZERO);
        let (stage, step) = (Stage::Step, Some(1));
        let mut error = Error::guest(text).hint(text).excerpt(text, vec![text.into()]);
        error.causes.push(text.into());
        let place = Source::new("p.toml", text).place(&(0..1));
        error.faults.push(Fault { message: text.into(), place, hint: Some(text.into()) });
        let lines = [text.to_string()];
        let events = [
            Event::Planned { action: "run", position: "1", title: text, remark: text },
            Event::Started { stage, step, detail: text },
            Event::Finished { stage, step, detail: text, took },
            Event::Note { stage, text },
            Event::Output { step: 1, stderr: false, line: text },
            Event::Done { folder: "out", artifacts: &lines, took },
            Event::Kept { error: &error, help: &lines },
            Event::Failed(&error),
        ];
        let cells = [CellResult { cell: text.into(), result: "done", took, folder: None }];
        let events = events.into_iter().chain([Event::Cells(&cells)]);
        let count = 2 * 9;
        for event in events {
            report.event(event);
            report.cell_event(text, event);
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen.lines().count(), count);
        assert!(!seen.contains("hunter2"), "{seen}");
        assert!(seen.lines().all(|line| line.contains("***")), "{seen}");
    }
}
