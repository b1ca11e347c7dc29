//! The guest's wall clock, set from ours: a restored guest goes on with the time at which it was saved.
//!
//! One round trip: the time is taken when the channel stands and travels with the words that set it, so the guest's clock
//! ends up late by the time that its server takes to start a shell, some milliseconds. It may be stepped in either
//! direction. Only the wall clock is set: the monotonic clock is the machine's matter, and a time daemon that the guest
//! runs goes on by its own means.
//!
//! coreutils' `date` takes a fraction, busybox's takes whole seconds only; there the nearest second is set. busybox also
//! ends well when it was not allowed to set the clock, so what the clock shows afterwards decides.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::command::Privilege;
use crate::session::{Session, SessionError};

/// How long setting the clock may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What became of the guest's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockSet {
    /// It is set.
    Set {
        /// How many whole seconds it was stepped forward; negative is back.
        stepped: i64,
    },
    /// The guest does not let us: no root, no sudo without a password, or a sandbox. It goes on with its old time.
    NotAllowed {
        /// What the guest said.
        message: String,
    },
}

/// Sets the guest's clock to what `now` says when it is called. `privilege` is whose rights to use:
/// [`Privilege::Root`] is root's own, or `sudo -n`.
///
/// # Errors
/// When the guest cannot be asked. That it does not allow it is no error.
pub async fn set(
    session: &Session,
    privilege: &Privilege,
    now: impl FnOnce() -> SystemTime,
) -> Result<ClockSet, SessionError> {
    let mut sent = None;
    let line = || {
        let now = now();
        sent = Some((seconds(now), Instant::now()));
        words(now)
    };
    let captured = match session.ask(privilege, LIMIT, line).await {
        Ok(captured) => captured,
        Err(SessionError::SudoRefused { message, .. }) => {
            return Ok(ClockSet::NotAllowed { message });
        }
        Err(error) => return Err(error),
    };
    let (wanted, took) = sent.map_or((0, Duration::ZERO), |(at, since)| (at, since.elapsed()));
    let mut shown = captured.stdout.lines().map(|line| line.trim().parse::<i64>());
    // It was set to the second before or after, and went on.
    let right = wanted - 1..=wanted + 2 + took.as_secs().cast_signed();
    match (shown.next(), shown.next()) {
        (Some(Ok(before)), Some(Ok(after))) if right.contains(&after) => {
            Ok(ClockSet::Set { stepped: after.saturating_sub(before) })
        }
        _ => {
            let said = captured.stderr.lines().next_back().unwrap_or_default().trim();
            let message = match said {
                "" => format!("date ended with {}", captured.status),
                said => said.to_owned(),
            };
            Ok(ClockSet::NotAllowed { message })
        }
    }
}

fn seconds(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed()
}

/// The line that sets the clock and tells what it showed before and after.
fn words(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, fraction) = (since.as_secs(), since.subsec_micros());
    let nearest = seconds + u64::from(fraction >= 500_000);
    format!(
        "date -u +%s; {{ date -u -s @{seconds}.{fraction:06} || date -u -s @{nearest}; }} >/dev/null; \
         date -u +%s"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::{Sshd, scripts};
    use std::process::Command;

    /// A guest whose `date` (and `sudo`) is a script; the folder of the scripts.
    async fn with_tools(
        tools: &[(&str, &str)],
        privilege: &Privilege,
    ) -> (Result<ClockSet, SessionError>, String) {
        let folder = scripts(tools);
        let sshd = Sshd::with(&format!("SetEnv PATH={}:/usr/bin:/bin", folder.path().display()));
        let (session, _server) = sshd.session().await;
        let result = set(&session, privilege, at).await;
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        (result, log)
    }

    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(1_800_000_000_600_000)
    }

    /// A `date` with a clock in a file; `$accepts` is what it takes.
    const FAKE: &str = "cd \"${0%/*}\"; echo \"$*\" >>log; case $* in '-u +%s') cat clock 2>/dev/null || echo 1700000000;; \
                        '-u -s @'*.*) ACCEPTS || { echo \"date: invalid date '$3'\" >&2; exit 1; }; echo \"${3#@}\" | cut -d. -f1 >clock;; \
                        '-u -s @'*) echo \"${3#@}\" >clock;; esac";

    #[tokio::test]
    async fn a_clock_is_set_to_the_fraction_where_date_takes_one() {
        let date = FAKE.replace("ACCEPTS", "true");
        let (result, log) = with_tools(&[("date", &date)], &Privilege::Root).await;
        let stepped = 100_000_000;
        assert_eq!(result.expect("set"), ClockSet::Set { stepped });
        assert_eq!(log, "-u +%s\n-u -s @1800000000.600000\n-u +%s\n");
    }

    #[tokio::test]
    async fn a_clock_is_set_to_the_nearest_second_where_date_takes_no_fraction() {
        let date = FAKE.replace("ACCEPTS", "false");
        let (result, log) = with_tools(&[("date", &date)], &Privilege::Root).await;
        assert_eq!(result.expect("set"), ClockSet::Set { stepped: 100_000_001 });
        assert!(log.contains("-u -s @1800000001\n"), "{log}");
    }

    #[tokio::test]
    async fn a_date_that_ends_well_without_having_set_the_clock_is_found_out() {
        let date = "case $* in *-s*) echo \"date: can't set date\" >&2;; *) echo 1700000000;; esac";
        let (result, _) = with_tools(&[("date", date)], &Privilege::Root).await;
        let message = "date: can't set date".to_owned();
        assert_eq!(result.expect("told"), ClockSet::NotAllowed { message });
    }

    #[tokio::test]
    async fn a_guest_that_does_not_allow_it_says_why() {
        let date = "case $* in *-s*) echo 'date: cannot set date: Operation not permitted' >&2; exit 1;; \
                    *) echo 1700000000;; esac";
        let (result, _) = with_tools(&[("date", date)], &Privilege::Login).await;
        let message = "date: cannot set date: Operation not permitted".to_owned();
        assert_eq!(result.expect("told"), ClockSet::NotAllowed { message });
    }

    #[test]
    fn the_words_are_what_the_real_programs_take() {
        // Neither may set this system's clock: they run as a user who cannot, and say that and nothing else.
        for (program, package) in [("/bin/date", "coreutils"), ("/bin/busybox", "busybox")] {
            assert!(
                std::path::Path::new(program).exists(),
                "{program} is missing: install the Debian package {package}"
            );
        }
        let line = words(at());
        for date in ["/bin/date", "/bin/busybox date"] {
            let line = line.replace("date -u", &format!("{date} -u"));
            let output = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"])
                .args(["/bin/sh", "-c", &line])
                .output()
                .expect("setpriv is missing: install the Debian package util-linux");
            let error = String::from_utf8_lossy(&output.stderr);
            let last = error.lines().next_back().unwrap_or_default();
            assert!(last.contains("Operation not permitted"), "{date}: {error}");
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(
                shown.lines().filter(|line| line.parse::<i64>().is_ok()).count() == 2,
                "{shown}"
            );
            // busybox refuses the fraction first, for its form; coreutils takes both.
            assert_eq!(error.contains("invalid date"), date.contains("busybox"), "{error}");
        }
    }
}
