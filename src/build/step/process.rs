//! A program of the host, run as part of a step: its output told as it comes, its process group ended with it.

use std::process::{ExitStatus as Status, Stdio};
use std::time::Duration;

use kvmbake_provision::output::Tail;
use kvmbake_provision::step::{Log, Outcome, StepError, StepResult};
use kvmbake_provision::{ExitStatus, Output, Stream};
use std::os::unix::process::ExitStatusExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout};

/// How many lines of output a failure shows.
const TAIL: usize = 30;
/// How long a program that was told to end may take.
const LEAVING: Duration = Duration::from_secs(5);
/// How long output is waited for that others hold open once the program has ended.
const GRACE: Duration = Duration::from_secs(2);
/// What is read at a time.
const CHUNK: usize = 16 << 10;

/// The process group of a program. All that is in it is killed when this is dropped, be it because the
/// program has ended or because the build has.
struct Group(i32);

impl Group {
    fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes two numbers and touches no memory. The group was made for the program;
        // its number is used at the latest when the program has just ended, long before the kernel comes
        // round to it again.
        unsafe { libc::kill(-self.0, signal) };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
    }
}

/// Runs `command`, called `what` in messages, to its end.
///
/// # Errors
/// It could not be started, failed, or took longer than `limit`.
pub async fn run(
    mut command: Command,
    what: &str,
    limit: Option<Duration>,
    log: &mut dyn Log,
) -> Result<StepResult, StepError> {
    let failed = |source| StepError::Host { what: what.to_owned(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(failed)?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let group = Group(id.ok_or_else(|| failed(std::io::Error::other("it has no number")))?);
    let mut tail = Tail::new(TAIL);
    let deadline = limit.map(|limit| Instant::now() + limit);
    let status = follow(&mut child, deadline, log, &mut tail).await.map_err(failed)?;
    let Some(status) = status else {
        group.signal(libc::SIGTERM);
        let _ = timeout(LEAVING, child.wait()).await;
        let (what, limit) = (what.to_owned(), limit.unwrap_or_default());
        return Err(StepError::TimedOut { what, limit, ended: true, tail: tail.into_lines() });
    };
    drop(group);
    let status = told(status);
    if status.success() {
        return Ok(StepResult { outcome: Outcome::Finished(status) });
    }
    let (what, tail) = (what.to_owned(), tail.into_lines());
    Err(StepError::Failed { what, status, expected: vec![0], tail })
}

/// Passes output on until the program has ended; none when the deadline came first.
async fn follow(
    child: &mut Child,
    deadline: Option<Instant>,
    log: &mut dyn Log,
    tail: &mut Tail,
) -> std::io::Result<Option<Status>> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
    let far = Instant::now() + Duration::from_secs(365 * 24 * 3600);
    let mut until = deadline.unwrap_or(far);
    let mut status = None;
    while status.is_none() || stdout.is_some() || stderr.is_some() {
        let (stream, read) = tokio::select! {
            read = next(&mut stdout, &mut out) => (Stream::Stdout, read?),
            read = next(&mut stderr, &mut err) => (Stream::Stderr, read?),
            ended = child.wait(), if status.is_none() => {
                status = Some(ended?);
                // A program left in the background may hold the output open.
                until = until.min(Instant::now() + GRACE);
                continue;
            }
            () = sleep_until(until) => break,
        };
        let bytes = if stream == Stream::Stdout { &out[..read] } else { &err[..read] };
        log.write(stream, bytes);
        tail.write(stream, bytes);
    }
    Ok(status)
}

/// Reads on; waits for ever at the end, which it forgets the stream at.
async fn next<S: AsyncRead + Unpin>(
    stream: &mut Option<S>,
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    let Some(open) = stream else { return std::future::pending().await };
    let read = open.read(buffer).await?;
    if read == 0 {
        *stream = None;
    }
    Ok(read)
}

fn told(status: Status) -> ExitStatus {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(u32::try_from(code).unwrap_or(u32::MAX)),
        // As a shell would tell it.
        (None, signal) => ExitStatus::Code(128 + signal.unwrap_or(0).unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::heard::Heard;
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_is_told_and_a_failure_has_its_last_lines() {
        let mut heard = Heard::default();
        run(shell("echo one; echo two >&2"), "It", None, &mut heard).await.unwrap();
        assert!(heard.0.contains("one\n") && heard.0.contains("two\n"));
        let error = run(shell("echo why; exit 7"), "It", None, &mut ()).await.unwrap_err();
        assert_eq!(error.to_string(), "It failed: exit code 7");
        assert_eq!(error.tail()[0].text, "why");
        let error = run(shell("kill -9 $$"), "It", None, &mut ()).await.unwrap_err();
        assert_eq!(error.exit_code(), Some(137));
        let error = run(Command::new("/does/not/exist"), "It", None, &mut ()).await.unwrap_err();
        assert!(matches!(error, StepError::Host { .. }), "{error}");
    }

    /// Waits until nobody holds the other end of a pipe open for writing.
    async fn ends(pipe: std::path::PathBuf) {
        let read = tokio::task::spawn_blocking(move || std::fs::read(pipe).unwrap());
        timeout(Duration::from_secs(60), read).await.expect("all processes ended").unwrap();
    }

    fn pipe(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[tokio::test]
    async fn after_its_time_the_whole_group_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(&folder);
        let script =
            format!("exec 3<>{0}; exec 4>{0}; exec 3<&-; sleep 600 & sleep 600", pipe.display());
        let limit = Some(Duration::from_millis(500));
        let ended = tokio::spawn(ends(pipe.clone()));
        let error = run(shell(&script), "It", limit, &mut ()).await.unwrap_err();
        assert!(error.to_string().contains("longer than 0.5 s and was killed"), "{error}");
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_stops_listening_ends_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(&folder);
        let script = format!("exec 4>{}; sleep 600 & sleep 600", pipe.display());
        let ended = tokio::spawn(ends(pipe.clone()));
        let mut log = ();
        let running = run(shell(&script), "It", None, &mut log);
        assert!(timeout(Duration::from_secs(1), running).await.is_err());
        ended.await.unwrap();
    }
}
