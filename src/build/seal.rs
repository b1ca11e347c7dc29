//! The end of the guest's life: our key removed, what steps left for the end done, its disk synced,
//! and a power-off that the guest itself carries out, so that its file systems are clean.

use std::time::Duration;

use kvmbake_provision::key::BuildKey;
use kvmbake_provision::output::LineBuffer;
use kvmbake_provision::seal::{power_off, remove_key, run_last};
use kvmbake_provision::{Output, Stream};
use kvmbake_vmm::Exit;

use super::guest::Guest;
use super::life::Ended;
use super::step::Ending;
use crate::error::Error;
use crate::report::{Event, Report, Stage};

/// How long looking for the key may take in the guest.
const REMOVAL: Duration = Duration::from_secs(300);
/// How long each of the steps' last scripts may take.
const LAST: Duration = Duration::from_secs(600);
/// How long a shutdown may take; systemd gives a stubborn service 90 s.
const SHUTDOWN: Duration = Duration::from_secs(180);
/// What the power button gets on top, when the guest did not listen at first.
const BUTTON: Duration = Duration::from_secs(60);

/// Removes `key`, when it is ours to remove, does what the steps left, and shuts the guest down.
///
/// # Errors
/// The key is still there, a script failed, or the guest did not switch itself off.
pub async fn seal(mut guest: Guest, key: Option<&BuildKey>) -> Result<((), String), Error> {
    guest.connect().await?;
    let session = &guest.provisioned()?.session;
    let ending = Ending::of(&guest.setup.plan.profile.steps);
    let work = async {
        if let Some(key) = key {
            remove_key(session, key, REMOVAL).await?;
        }
        for last in &ending.scripts {
            let mut notes = Notes::new(guest.setup.report.as_ref());
            run_last(session, last, LAST, &mut notes).await?;
        }
        power_off(session, ending.user.as_deref()).await
    };
    match guest.watch(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(guest.failed("The guest could not be sealed").because(&error));
        }
        Err(ended) => return switched_off(&guest, &ended),
    }
    for patience in [SHUTDOWN, BUTTON] {
        match guest.watch(tokio::time::sleep(patience)).await {
            Ok(()) => guest.press_power_button(),
            Err(ended) => return switched_off(&guest, &ended),
        }
    }
    Err(guest.failed("The guest did not switch itself off"))
}

/// Tells what a script prints as notes of the seal.
struct Notes<'r> {
    report: &'r dyn Report,
    buffer: LineBuffer,
}

impl<'r> Notes<'r> {
    fn new(report: &'r dyn Report) -> Notes<'r> {
        Notes { report, buffer: LineBuffer::default() }
    }
}

impl Output for Notes<'_> {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        // What goes wrong is told by the error.
        if stream == Stream::Stdout {
            let report = self.report;
            self.buffer.push(bytes, |text| report.event(Event::Note { stage: Stage::Seal, text }));
        }
    }
}

fn switched_off(guest: &Guest, ended: &Ended) -> Result<((), String), Error> {
    match ended {
        Ended::Exit(exit) if matches!(**exit, Exit::Shutdown) => {
            Ok(((), "shut down cleanly".into()))
        }
        ended => Err(guest.explain(ended)),
    }
}
