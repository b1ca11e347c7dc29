//! Everything written: the guest's dirty pages to its disk, before the disk is kept.

use std::time::Duration;

use crate::command::{ExitStatus, Privilege};
use crate::session::{Session, SessionError};

/// Why the guest did not write everything.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// `sync` failed: the guest's disk has errors, or there is no such program.
    #[error("Writing everything to disk (sync) failed in the guest with {status}: {message}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        message: String,
    },
    /// The guest could not be reached for it, or took too long.
    #[error("Writing everything to disk (sync) could not be done in the guest")]
    Session(#[from] SessionError),
}

/// Has the guest write everything to its disk (`sync`), at most for `limit`. Any user may ask for that.
///
/// # Errors
/// When it failed, took longer than `limit` ([`SessionError::TimedOut`]), or the guest could not be asked.
pub async fn sync(session: &Session, limit: Duration) -> Result<(), SyncError> {
    let asked = session.ask(&Privilege::Login, limit, || "exec sync".into()).await?;
    if asked.status.success() {
        return Ok(());
    }
    let message = asked.stderr.trim().to_owned();
    Err(SyncError::Failed { status: asked.status, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::{Sshd, scripts};

    /// A guest whose `sync` is a script.
    async fn synced(body: &str, limit: Duration) -> (Result<(), SyncError>, bool) {
        let tools = scripts(&[("sync", body)]);
        let sshd = Sshd::with(&format!("SetEnv PATH={}:/usr/bin:/bin", tools.path().display()));
        let (session, _server) = sshd.session().await;
        let result = sync(&session, limit).await;
        (result, tools.path().join("done").exists())
    }

    #[tokio::test]
    async fn a_guest_writes_everything_and_says_when_it_could_not() {
        let minute = Duration::from_secs(60);
        let (result, done) = synced("touch \"${0%/*}/done\"", minute).await;
        assert!(result.is_ok() && done, "{result:?}");
        let (result, _) = synced("echo 'sync: Input/output error' >&2; exit 1", minute).await;
        let text = result.expect_err("failed").to_string();
        assert!(text.ends_with("with exit code 1: sync: Input/output error"), "{text}");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_waited_for_no_longer_than_it_may() {
        let (result, _) = synced("sleep 600", Duration::from_millis(300)).await;
        assert!(
            matches!(result, Err(SyncError::Session(SessionError::TimedOut { .. }))),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_real_guest_writes_everything() {
        let sshd = Sshd::new();
        let (session, _server) = sshd.session().await;
        sync(&session, Duration::from_secs(60)).await.expect("synced");
    }
}
