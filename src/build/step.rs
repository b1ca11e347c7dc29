//! The profile's steps, run in the guest one after the other, with what a step may do to the
//! guest: reboot it, lose it, or end it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmbake_provision::eth0;
use kvmbake_provision::output::LineBuffer;
use kvmbake_provision::step::{Log, Outcome, ShellSource, ShellStep, Step, StepError};
use kvmbake_provision::wait::{CloudInit, cloud_init};
use kvmbake_provision::{Command, Output, Privilege, Stream};
use kvmbake_vmm::Exit;

use super::guest::Guest;
use super::life::Ended;
use super::manifest;
use super::stage::{Stages, seconds};
use crate::error::Error;
use crate::profile::{self, Run};
use crate::report::{Event, Report, Stage};
use crate::secret::Secrets;

/// How long a guest that said it would reboot may take until its machine is reset.
const REBOOT: Duration = Duration::from_secs(120);
/// How long the guest may take to make its initramfs anew.
const NAMES: Duration = Duration::from_secs(600);
/// How long the question whether the guest is going down may take.
const QUESTION: Duration = Duration::from_secs(20);
/// Says `stopping` where systemd carries out a reboot that a script asked for.
const IS_STOPPING: &str = "[ ! -d /run/systemd/system ] || systemctl is-system-running";

/// Returns the step as `provision` runs it.
pub fn shell_step(step: &profile::Step) -> ShellStep {
    let shell = &step.shell;
    let source = match &shell.run {
        Run::Inline(commands) => ShellSource::Inline(commands.clone()),
        Run::Scripts(paths) => {
            ShellSource::Scripts(paths.iter().map(|path| path.value.clone()).collect())
        }
    };
    ShellStep {
        env: shell.env.clone(),
        privilege: if shell.sudo { Privilege::Root } else { Privilege::Login },
        workdir: shell.workdir.clone(),
        shell: shell
            .interpreter
            .as_ref()
            .map(|words| words.split_whitespace().map(str::to_string).collect()),
        expect: shell.expect.clone(),
        timeout: shell.timeout,
        retries: shell.retries,
        retry_delay: shell.retry_delay,
        // Any step may reboot the guest; whether it did, the machine tells.
        may_reboot: true,
        ..ShellStep::new(source)
    }
}

/// Runs step `number`.
///
/// # Errors
/// The step failed, or the guest ended under it.
pub async fn run(
    guest: &mut Guest,
    stages: &Stages<'_>,
    number: usize,
    step: &profile::Step,
    report: Arc<dyn Report>,
) -> Result<manifest::Step, Error> {
    let begun = Instant::now();
    stages.step_started(number, &step.title);
    let shell = shell_step(step);
    let mut log = Lines::new(number, report, &guest.setup.plan.profile.secrets);
    guest.connect().await?;
    let result = guest.watch(shell.run(guest.provisioned()?, &mut log)).await;
    log.finish();
    let (exit_code, mut rebooted) = match result {
        Ok(Ok(result)) => match result.outcome {
            Outcome::Finished(status) => (Some(status.code()), false),
            Outcome::Disconnected { .. } => (None, true),
        },
        Ok(Err(error)) => return Err(failed(guest, number, step, error).await),
        Err(Ended::Exit(exit)) if matches!(*exit, Exit::Reset) => (None, true),
        Err(ended) => return Err(under(guest.explain(&ended), number, step)),
    };
    if !rebooted && matches!(shell.source, ShellSource::Scripts(_)) {
        rebooted = is_going_down(guest).await?;
    }
    if rebooted {
        await_reboot(guest, number, step).await?;
    }
    stages.step_finished(number, &step.title, begun.elapsed());
    let seconds = seconds(begun.elapsed());
    Ok(manifest::Step { title: step.title.clone(), seconds, exit_code, rebooted, cached: false })
}

/// Waits until cloud-init has done its work, where there is cloud-init.
///
/// # Errors
/// It failed, or took longer than `limit`, or the guest ended.
pub async fn wait_for_cloud_init(
    guest: &mut Guest,
    stages: &Stages<'_>,
    limit: Duration,
) -> Result<(), Error> {
    stages
        .run(Stage::CloudInit, "waiting for the first boot's configuration", async {
            loop {
                guest.connect().await?;
                match guest.watch(cloud_init(&guest.provisioned()?.session, limit)).await {
                    Ok(Ok(found)) => return Ok(((), said(found).to_string())),
                    Ok(Err(error)) => {
                        return Err(guest.failed("cloud-init did not end well").because(&error));
                    }
                    // cloud-init's `power_state` module may reboot the guest.
                    Err(Ended::Exit(exit)) if matches!(*exit, Exit::Reset) => {
                        guest.boot_again().await?
                    }
                    Err(ended) => return Err(guest.explain(&ended)),
                }
            }
        })
        .await
}

/// Leaves the guest's network interfaces with the kernel's names from its next boot on.
///
/// # Errors
/// The guest did not let it, or ended.
pub async fn keep_eth0(guest: &mut Guest, stages: &Stages<'_>) -> Result<(), Error> {
    stages
        .run(Stage::Names, "network interfaces keep the kernel's names", async {
            guest.connect().await?;
            match guest.watch(eth0::keep_eth0(&guest.provisioned()?.session, NAMES)).await {
                Ok(Ok(())) => Ok(((), "done".to_string())),
                Ok(Err(error)) => {
                    Err(guest.failed("`eth0_names` could not be done").because(&error))
                }
                Err(ended) => Err(guest.explain(&ended)),
            }
        })
        .await
}

fn said(found: CloudInit) -> &'static str {
    match found {
        CloudInit::Absent => "the guest has none",
        CloudInit::Disabled => "disabled in the guest",
        CloudInit::Done => "done",
        CloudInit::Degraded(_) => "done, with recoverable errors",
    }
}

/// Waits until the guest has reset its machine, boots it again, and logs in.
async fn await_reboot(guest: &mut Guest, number: usize, step: &profile::Step) -> Result<(), Error> {
    match guest.watch(tokio::time::sleep(REBOOT)).await {
        Err(Ended::Exit(exit)) if matches!(*exit, Exit::Reset) => {
            guest.boot_again().await?;
            guest.connect().await?;
            Ok(())
        }
        Err(ended) => Err(under(guest.explain(&ended), number, step)),
        Ok(()) => Err(under(
            guest.failed("The connection to the guest was lost, and it did not reboot"),
            number,
            step,
        )),
    }
}

/// Whether a script that ended has set a reboot going.
async fn is_going_down(guest: &Guest) -> Result<bool, Error> {
    let question = Command::shell(IS_STOPPING).with_timeout(QUESTION);
    match guest.watch(guest.provisioned()?.session.capture(&question)).await {
        Ok(Ok(answer)) => Ok(answer.stdout.trim() == "stopping"),
        // The next step finds out what is wrong with the connection, if anything is.
        Ok(Err(error)) => Ok(error.is_disconnect()),
        Err(Ended::Exit(exit)) if matches!(*exit, Exit::Reset) => Ok(true),
        Err(ended) => Err(guest.explain(&ended)),
    }
}

async fn failed(guest: &Guest, number: usize, step: &profile::Step, error: StepError) -> Error {
    let lines = error.tail().iter().map(|line| line.text.clone()).collect();
    // A connection that broke has a reason, which the machine or the console tells soon.
    let ended = if error.is_disconnect() { guest.verdict().await } else { None };
    let explained = match &ended {
        Some(ended) => guest.explain(ended),
        None => guest.failed(""),
    };
    let mut explained = under(explained, number, step).because(&error);
    explained
        .excerpts
        .insert(0, crate::error::Excerpt { title: "last lines of the step".into(), lines });
    explained.excerpts.retain(|excerpt| !excerpt.lines.is_empty());
    explained
}

/// Names the step in an error of the guest.
fn under(mut error: Error, number: usize, step: &profile::Step) -> Error {
    if error.blame == crate::error::Blame::Interrupted {
        return error;
    }
    let cause = std::mem::take(&mut error.message);
    error.message = format!("Step {number} ({}) failed", step.title);
    if !cause.is_empty() {
        error.causes.insert(0, cause);
    }
    error
}

/// A step's output, as lines for the report.
struct Lines {
    step: usize,
    report: Arc<dyn Report>,
    /// Before lines are made of it: a secret may have several.
    secrets: [crate::secret::Stream; 2],
    buffers: [LineBuffer; 2],
}

impl Lines {
    fn new(step: usize, report: Arc<dyn Report>, secrets: &Secrets) -> Lines {
        let secrets = [secrets.stream(), secrets.stream()];
        Lines { step, report, secrets, buffers: Default::default() }
    }

    fn finish(&mut self) {
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
