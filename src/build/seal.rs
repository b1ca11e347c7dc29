//! The end of the guest's life: our key removed, its disk synced, and a power-off that the guest
//! itself carries out, so that its file systems are clean.

use std::time::Duration;

use kvmbake_provision::key::BuildKey;
use kvmbake_provision::seal::{power_off, remove_key};
use kvmbake_vmm::Exit;

use super::guest::Guest;
use super::life::Ended;
use crate::error::Error;

/// How long looking for the key may take in the guest.
const REMOVAL: Duration = Duration::from_secs(300);
/// How long a shutdown may take; systemd gives a stubborn service 90 s.
const SHUTDOWN: Duration = Duration::from_secs(180);
/// What the power button gets on top, when the guest did not listen at first.
const BUTTON: Duration = Duration::from_secs(60);

/// Removes `key`, when it is ours to remove, and shuts the guest down.
///
/// # Errors
/// The key is still there, or the guest did not switch itself off.
pub async fn seal(mut guest: Guest, key: Option<&BuildKey>) -> Result<((), String), Error> {
    guest.connect().await?;
    let session = &guest.provisioned()?.session;
    let work = async {
        if let Some(key) = key {
            remove_key(session, key, REMOVAL).await?;
        }
        power_off(session).await
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

fn switched_off(guest: &Guest, ended: &Ended) -> Result<((), String), Error> {
    match ended {
        Ended::Exit(exit) if matches!(**exit, Exit::Shutdown) => {
            Ok(((), "shut down cleanly".into()))
        }
        ended => Err(guest.explain(ended)),
    }
}
