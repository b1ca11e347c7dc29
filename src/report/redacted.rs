//! A report without secrets: whatever an event says passes through here first.

use std::sync::Arc;

use super::{Event, Report};
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
        let text = |text| self.secrets.redact(text);
        match event {
            Event::Planned { action, position, title, remark } => {
                let (title, remark) = (&text(title), &text(remark));
                self.inner.event(Event::Planned { action, position, title, remark });
            }
            Event::Started { stage, step, detail } => {
                self.inner.event(Event::Started { stage, step, detail: &text(detail) });
            }
            Event::Finished { stage, step, detail, took } => {
                self.inner.event(Event::Finished { stage, step, detail: &text(detail), took });
            }
            Event::Note { stage, text: note } => {
                self.inner.event(Event::Note { stage, text: &text(note) });
            }
            Event::Output { step, stderr, line } => {
                self.inner.event(Event::Output { step, stderr, line: &text(line) });
            }
            Event::Progress { .. } => self.inner.event(event),
            Event::Done { folder, artifacts, took } => {
                let artifacts: Vec<String> =
                    artifacts.iter().map(|line| text(line).into_owned()).collect();
                self.inner.event(Event::Done { folder, artifacts: &artifacts, took });
            }
            Event::Failed(error) if error.blame == Blame::Interrupted => self.inner.event(event),
            Event::Failed(error) => self.inner.event(Event::Failed(&self.error(error))),
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
            Event::Failed(&error),
        ];
        let count = events.len();
        events.into_iter().for_each(|event| report.event(event));
        let seen = seen.lock().unwrap();
        assert_eq!(seen.lines().count(), count);
        assert!(!seen.contains("hunter2"), "{seen}");
        assert!(seen.lines().all(|line| line.contains("***")), "{seen}");
    }
}
