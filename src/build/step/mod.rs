//! The profile's steps, run in the guest one after the other, with what a step may do to the
//! guest: reboot it, lose it, or end it.

pub mod ansible;
#[cfg(test)]
mod heard;
mod host;
mod last;
mod lines;
mod process;
mod shell;
pub mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmbake_provision::Command;
use kvmbake_provision::eth0;
use kvmbake_provision::session::SudoPassword;
use kvmbake_provision::step::trim::trim;
use kvmbake_provision::step::{Outcome, Step, StepError};
use kvmbake_provision::wait::{CloudInit, WaitError, cloud_init};
use kvmbake_vmm::Exit;

use super::guest::Guest;
use super::life::Ended;
use super::manifest;
use super::stage::{Stages, seconds};
use crate::control::Login;
use crate::error::{Blame, Error};
use crate::profile::{self, Action, OnError};
use crate::report::{Event, Report, Stage};
pub use last::Ending;
use lines::Lines;

/// How long a guest that said it would reboot may take until its machine is reset.
const REBOOT: Duration = Duration::from_secs(120);
/// How long the guest may take to make its initramfs anew.
const NAMES: Duration = Duration::from_secs(600);
/// How long the question whether the guest is going down may take.
const QUESTION: Duration = Duration::from_secs(20);
/// Says `stopping` where systemd carries out a reboot that a script asked for.
const IS_STOPPING: &str = "[ ! -d /run/systemd/system ] || systemctl is-system-running";

/// What a step has at hand besides the guest; nothing while it is only checked.
#[derive(Debug, Default)]
pub struct Means {
    /// A folder for files that others need not see.
    pub scratch: PathBuf,
    /// How programs of the host log in to the guest.
    pub login: Option<Login>,
    /// What sudo asks the login for.
    pub sudo_password: Option<SudoPassword>,
}

/// Returns the action as it is done with these means.
pub fn in_guest(action: &Action, means: &Means) -> Box<dyn Step> {
    match action {
        Action::Shell(shell) => Box::new(shell::step(shell)),
        Action::Upload(uploads) => Box::new(transfer::upload(uploads)),
        Action::Download(downloads) => Box::new(transfer::download(downloads, &means.scratch)),
        Action::Host(host) => Box::new(host::step(host, means.login.clone())),
        Action::Ansible(ansible) => Box::new(ansible::step(ansible, means)),
        Action::AnsibleLocal(ansible) => Box::new(ansible::local(ansible, means)),
        Action::Sysprep(sysprep) => Box::new(sysprep.step()),
        Action::Trim => Box::new(trim()),
        Action::Wait(wait) => Box::new(wait.step()),
        Action::Bootstrap(bootstrap) => Box::new(bootstrap.step()),
    }
}

/// Whether programs of the host are to log in to the guest.
fn logs_in(action: &Action) -> bool {
    matches!(action, Action::Host(_) | Action::Ansible(_))
}

/// Runs step `number`, and does what its `on_error` says when it fails. Files that are not for others lie
/// in `scratch`.
///
/// # Errors
/// The step failed, or the guest ended under it.
pub async fn run(
    guest: &mut Guest,
    stages: &Stages<'_>,
    number: usize,
    step: &profile::Step,
    report: Arc<dyn Report>,
    scratch: &Path,
) -> Result<manifest::Step, Error> {
    let begun = Instant::now();
    let mut left = match step.on_error {
        OnError::Retry(times) => times,
        _ => 0,
    };
    loop {
        let error = match run_once(guest, stages, number, step, Arc::clone(&report), scratch).await
        {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let tell = |text: String| report.event(Event::Note { stage: Stage::Step, text: &text });
        // A guest that is gone cannot be given another try, nor be gone on with.
        if error.blame != Blame::Guest || !guest.has_session() {
            return Err(error);
        }
        match step.on_error {
            OnError::Retry(_) if left > 0 => {
                left -= 1;
                tell(format!("{}; it is tried again, {left} more times", error.in_one_line()));
            }
            OnError::Ignore => {
                let ignored = error.in_one_line();
                tell(format!("{ignored}; its failure is ignored"));
                stages.step_finished(number, &step.title, begun.elapsed());
                return Ok(manifest::Step {
                    title: step.title.clone(),
                    seconds: seconds(begun.elapsed()),
                    exit_code: None,
                    rebooted: false,
                    cached: false,
                    ignored: Some(ignored),
                });
            }
            // Whoever is to see the guest gets it from the caller, who still has it.
            OnError::Abort | OnError::Retry(_) | OnError::Keep | OnError::Shell => {
                return Err(error);
            }
        }
    }
}

/// Runs step `number` once.
async fn run_once(
    guest: &mut Guest,
    stages: &Stages<'_>,
    number: usize,
    step: &profile::Step,
    report: Arc<dyn Report>,
    scratch: &Path,
) -> Result<manifest::Step, Error> {
    let begun = Instant::now();
    stages.step_started(number, &step.title);
    let mut log = Lines::new(number, report, &guest.setup.plan.profile.secrets);
    guest.connect().await?;
    let login = if logs_in(&step.action) { Some(guest.openssh()?) } else { None };
    let sudo_password = guest.setup.plan.profile.ssh.sudo_password.clone();
    let means = Means { scratch: scratch.to_path_buf(), login, sudo_password };
    let action = in_guest(&step.action, &means);
    let result = guest.watch(action.run(guest.provisioned()?, &mut log)).await;
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
    if !rebooted && matches!(&step.action, Action::Shell(shell) if shell.has_scripts()) {
        rebooted = is_going_down(guest).await?;
    }
    if rebooted {
        await_reboot(guest, number, step).await?;
    }
    stages.step_finished(number, &step.title, begun.elapsed());
    let seconds = seconds(begun.elapsed());
    let (title, ignored) = (step.title.clone(), None);
    Ok(manifest::Step { title, seconds, exit_code, rebooted, cached: false, ignored })
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
    let deadline = Instant::now() + limit;
    stages
        .run(Stage::CloudInit, "waiting for the first boot's configuration", async {
            loop {
                guest.connect().await?;
                match guest.watch(cloud_init(&guest.provisioned()?.session, limit)).await {
                    Ok(Ok(found)) => return Ok(((), said(found).to_string())),
                    // It may restart sshd, or be about to reboot the guest.
                    Ok(Err(WaitError::Session(error)))
                        if error.is_disconnect() && Instant::now() < deadline =>
                    {
                        let text = "the connection was lost; logging in again";
                        guest.setup.report.event(Event::Note { stage: Stage::CloudInit, text });
                    }
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
