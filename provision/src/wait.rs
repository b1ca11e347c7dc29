//! Waits until the guest's first boot is over.
//!
//! Where there is cloud-init, its stages go on for a while after sshd answers, and packages or users that steps rely on
//! come late. `cloud-init status --wait` says when it is done, at the price of a Python interpreter that starts and
//! polls beside it; so a shell waits for the file in which cloud-init keeps its result, and the program itself is asked
//! only when that file tells of errors, or when nothing has begun after half a minute.
//!
//! cloud-init, "CLI commands", section `status`: 0 done, 1 error, 2 done with recoverable errors (since 23.4).

use std::time::Duration;

use crate::command::Command;
use crate::session::{Captured, Session, SessionError};

/// How cloud-init ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudInit {
    /// The guest has none.
    Absent,
    /// It is there and turned off, or found no data source.
    Disabled,
    /// It is done.
    Done,
    /// It is done, and had to go on past errors: the text of its status.
    Degraded(String),
}

/// Why the wait failed.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// cloud-init failed: the text of its status.
    #[error("cloud-init failed in the guest: {}", shortened(details))]
    Failed {
        /// What `cloud-init status --long` printed.
        details: String,
    },
    /// cloud-init is not done in time.
    #[error("cloud-init was not done after {:.0} s: {}", limit.as_secs_f64(), shortened(details))]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What `cloud-init status --long` printed, if it answered.
        details: String,
    },
    /// The guest could not be asked.
    #[error("The guest could not be asked for cloud-init's state")]
    Session(#[from] SessionError),
}

/// Waits for cloud-init, if the guest has it, at most for `limit`.
///
/// # Errors
/// When it failed, is not done in time, or the guest cannot be asked. A guest that cloud-init reboots shows as
/// [`SessionError::ConnectionLost`].
pub async fn cloud_init(session: &Session, limit: Duration) -> Result<CloudInit, WaitError> {
    let waiting = Command::script("cloud-init-wait", include_str!("wait.sh")).with_timeout(limit);
    match session.capture(&waiting).await {
        Ok(captured) => judge(&captured),
        Err(SessionError::TimedOut { .. }) => {
            let asking = Command::shell("cloud-init status --long 2>&1")
                .with_timeout(Duration::from_secs(30));
            let details =
                session.capture(&asking).await.map(|captured| captured.stdout).unwrap_or_default();
            Err(WaitError::TimedOut { limit, details })
        }
        Err(error) => Err(error.into()),
    }
}

fn judge(captured: &Captured) -> Result<CloudInit, WaitError> {
    let (word, details) =
        captured.stdout.split_once('\n').unwrap_or((captured.stdout.as_str(), ""));
    let details = details.trim().to_owned();
    match word.trim() {
        "absent" => Ok(CloudInit::Absent),
        "disabled" => Ok(CloudInit::Disabled),
        "done" => Ok(CloudInit::Done),
        "status 0" if details.contains("status: disabled") => Ok(CloudInit::Disabled),
        "status 0" => Ok(CloudInit::Done),
        "status 2" => Ok(CloudInit::Degraded(details)),
        _ if details.is_empty() => {
            let said = format!("{} {}", captured.stdout.trim(), captured.stderr.trim());
            Err(WaitError::Failed { details: said.trim().to_owned() })
        }
        _ => Err(WaitError::Failed { details }),
    }
}

/// On one line, for a message; the whole text is in the error's field.
fn shortened(details: &str) -> String {
    let lines: Vec<&str> = details.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join("; ");
    if text.is_empty() { "it said nothing".into() } else { text.chars().take(400).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::{Server, Sshd, scripts};
    use std::fs;

    /// A guest whose cloud-init is a script, and whose `/run/cloud-init` is a folder of the test.
    async fn guest(body: Option<&str>) -> (Sshd, Session, Server) {
        let tools = body.map(|body| ("cloud-init", body));
        let tools = scripts(tools.as_slice()).keep();
        let run = tools.join("run");
        fs::create_dir(&run).expect("folder");
        let path = format!("{}:/usr/bin:/bin", tools.display());
        let sshd = Sshd::with(&format!("SetEnv PATH={path} KVMBAKE_TEST_RUN={}", run.display()));
        let (session, server) = sshd.session().await;
        (sshd, session, server)
    }

    async fn waited(
        body: Option<&str>,
        files: &[(&str, &str)],
        limit: u64,
    ) -> Result<CloudInit, WaitError> {
        let (_sshd, session, _server) = guest(body).await;
        let run =
            session.capture(&Command::shell("echo $KVMBAKE_TEST_RUN")).await.expect("run").stdout;
        for (name, content) in files {
            fs::write(format!("{}/{name}", run.trim()), content).expect("write");
        }
        // The script's own folder is fixed; the test's stands in for it.
        let script = include_str!("wait.sh")
            .replace("/run/cloud-init", run.trim())
            .replace(":/usr/local/bin", "");
        let script = if body.is_none() {
            script.replace("command -v cloud-init", "command -v no-cloud-init")
        } else {
            script
        };
        let command = Command::script("wait", script).with_timeout(Duration::from_secs(limit));
        match session.capture(&command).await {
            Ok(captured) => judge(&captured),
            Err(SessionError::TimedOut { limit, .. }) => {
                Err(WaitError::TimedOut { limit, details: String::new() })
            }
            Err(error) => Err(error.into()),
        }
    }

    const CLEAN: (&str, &str) =
        ("result.json", "{\n \"v1\": {\n  \"datasource\": \"NoCloud\",\n  \"errors\": []\n }\n}\n");

    #[tokio::test]
    async fn the_result_file_is_enough_when_all_went_well() {
        let never = Some("echo must not be asked; exit 1");
        assert_eq!(waited(never, &[CLEAN], 20).await.expect("done"), CloudInit::Done);
        assert_eq!(
            waited(never, &[("disabled", "")], 20).await.expect("disabled"),
            CloudInit::Disabled
        );
        assert_eq!(waited(None, &[], 20).await.expect("absent"), CloudInit::Absent);
    }

    #[tokio::test]
    async fn errors_are_told_in_cloud_inits_own_words() {
        let failed = ("result.json", "{\"v1\": {\"errors\": [\"no such module\"]}}");
        let body = Some(
            "[ \"$1 $2 $3\" = 'status --wait --long' ] || exit 9; printf 'status: error\\ndetail: no such module\\n'; exit 1",
        );
        let error = waited(body, &[failed], 20).await.expect_err("failed");
        assert_eq!(
            error.to_string(),
            "cloud-init failed in the guest: status: error; detail: no such module"
        );
        let warned = (
            "status.json",
            "{\"v1\": {\"init\": {\"errors\": [], \"recoverable_errors\": {\"WARNING\": [\"x\"]}}}}",
        );
        let body = Some("echo 'extended_status: degraded done'; exit 2");
        let degraded = waited(body, &[CLEAN, warned], 20).await.expect("degraded");
        assert_eq!(degraded, CloudInit::Degraded("extended_status: degraded done".into()));
        let unwarned =
            ("status.json", "{\"v1\": {\"init\": {\"errors\": [], \"recoverable_errors\": {}}}}");
        assert_eq!(waited(body, &[CLEAN, unwarned], 20).await.expect("done"), CloudInit::Done);
    }

    #[tokio::test]
    async fn a_cloud_init_that_never_ends_is_a_time_out() {
        let running = ("status.json", "{\"v1\": {\"stage\": \"init\"}}");
        let error = waited(Some("exit 0"), &[running], 1).await.expect_err("time-out");
        assert!(matches!(error, WaitError::TimedOut { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn the_state_of_a_real_system_is_understood() {
        // Whatever the state of this very system is: it is told, or it takes too long.
        let sshd = Sshd::new();
        let (session, _server) = sshd.session().await;
        let seen = cloud_init(&session, Duration::from_secs(1)).await;
        assert!(!matches!(seen, Err(WaitError::Session(_))), "{seen:?}");
    }
}
