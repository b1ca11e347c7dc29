//! The shell step: commands written in the profile, or scripts from the host.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::trace::{Trace, is_posix_shell, script};
use super::{
    CheckContext, CheckError, Guest, Log, Outcome, Step, StepError, StepFuture, StepResult,
};
use crate::command::{Command, ExitStatus, Privilege, Program};
use crate::seed::nocloud::is_user_name;
use crate::session::{SessionError, is_variable_name};

/// The largest script, in bytes.
pub const MAX_SCRIPT: u64 = 16 << 20;

/// How many lines of output a failure shows.
const TAIL: usize = 30;

/// How long a guest that was told to reboot may take to leave.
const LEAVING: Duration = Duration::from_secs(90);

/// Where a step's commands come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellSource {
    /// Commands, in order, in one shell: `cd` and variables last. The first that fails ends the step.
    Inline(Vec<String>),
    /// Scripts on the host, in order, each under the interpreter that its `#!` line names.
    Scripts(Vec<PathBuf>),
}

/// Runs commands or scripts in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellStep {
    /// What to run.
    pub source: ShellSource,
    /// Variables for it.
    pub env: Vec<(String, String)>,
    /// Whose rights it has.
    pub privilege: Privilege,
    /// The folder in the guest that it runs in; none is the home folder.
    pub workdir: Option<String>,
    /// The interpreter and its arguments; none is `/bin/sh`, or what a script's first line names.
    pub shell: Option<Vec<String>>,
    /// The exit codes that count as success.
    pub expect: Vec<i32>,
    /// How long the step may take, all its scripts together.
    pub timeout: Option<Duration>,
    /// How often it is run again when it fails or takes too long.
    pub retries: u32,
    /// How long to wait before it is run again.
    pub retry_delay: Duration,
    /// Whether the guest may leave during the step, because it reboots. A last inline command that says `reboot` in
    /// one of the usual ways implies it.
    pub may_reboot: bool,
}

impl ShellStep {
    /// A step with nothing set but what it runs.
    pub fn new(source: ShellSource) -> ShellStep {
        ShellStep {
            source,
            env: Vec::new(),
            privilege: Privilege::Login,
            workdir: None,
            shell: None,
            expect: vec![0],
            timeout: None,
            retries: 0,
            retry_delay: Duration::ZERO,
            may_reboot: false,
        }
    }

    /// Whether the last inline command is one that reboots.
    fn ends_in_reboot(&self) -> bool {
        match &self.source {
            ShellSource::Inline(commands) => {
                commands.last().is_some_and(|command| is_reboot(command))
            }
            ShellSource::Scripts(_) => false,
        }
    }

    fn command(&self, guest: &Guest, program: Program, limit: Option<Duration>) -> Command {
        let env = guest.environment.iter().chain(&self.env).cloned().collect();
        let (privilege, workdir) = (self.privilege.clone(), self.workdir.clone());
        Command { program, env, privilege, workdir, stdin: None, timeout: limit }
    }

    async fn run_inline(
        &self,
        commands: &[String],
        guest: &Guest,
        log: &mut dyn Log,
    ) -> Result<StepResult, StepError> {
        let interpreter = self.shell.clone().unwrap_or_else(|| vec!["/bin/sh".into()]);
        let traced = is_posix_shell(&interpreter);
        let mark = format!("kvmbake-step-{:x}", std::process::id());
        let content =
            if traced { script(commands, &mark, &self.expect) } else { commands.join("\n") + "\n" };
        let program = Program::Script {
            name: "step".into(),
            content: content.into_bytes(),
            interpreter: Some(interpreter),
            arguments: Vec::new(),
        };
        let command = self.command(guest, program, self.timeout);
        let mut trace = Trace::new(log, TAIL);
        if traced {
            trace = trace.of_commands(commands, &mark);
        }
        let result = guest.session.run(&command, &mut trace).await;
        let what = |trace: &Trace<'_>| match trace.current {
            0 => "Inline commands".to_owned(),
            number => format!(
                "Command {number} of {} ({})",
                commands.len(),
                first_line(&commands[number - 1])
            ),
        };
        self.conclude(guest, result, trace, what).await
    }

    async fn run_scripts(
        &self,
        paths: &[PathBuf],
        guest: &Guest,
        log: &mut dyn Log,
    ) -> Result<StepResult, StepError> {
        let started = tokio::time::Instant::now();
        let mut last = StepResult { outcome: Outcome::Finished(ExitStatus::Code(0)) };
        for (index, path) in paths.iter().enumerate() {
            let content = read_script(&guest.directory.join(path))?;
            let shown = path.display().to_string();
            log.command(index + 1, paths.len(), &shown);
            let program = Program::Script {
                name: path
                    .file_name()
                    .map_or_else(|| "script".into(), |name| name.to_string_lossy().into_owned()),
                content,
                interpreter: self.shell.clone(),
                arguments: Vec::new(),
            };
            let limit = self.timeout.map(|limit| limit.saturating_sub(started.elapsed()));
            let command = self.command(guest, program, limit);
            let mut trace = Trace::new(log, TAIL);
            let result = guest.session.run(&command, &mut trace).await;
            last = self.conclude(guest, result, trace, |_| format!("Script {shown}")).await?;
            if let Outcome::Disconnected { .. } = last.outcome {
                let skipped = paths.len() - index - 1;
                if skipped > 0 {
                    log.note(&format!("The guest left during {shown}; {skipped} further scripts of the step are not run"));
                }
                break;
            }
        }
        Ok(last)
    }

    /// Judges how a command ended.
    async fn conclude(
        &self,
        guest: &Guest,
        result: Result<ExitStatus, SessionError>,
        mut trace: Trace<'_>,
        what: impl Fn(&Trace<'_>) -> String,
    ) -> Result<StepResult, StepError> {
        trace.finish();
        let what = what(&trace);
        let may_leave = self.may_reboot || self.ends_in_reboot();
        let tail = trace.tail.into_lines();
        let status = match result {
            Ok(status) => status,
            Err(SessionError::TimedOut { ended, .. }) => {
                let limit = self.timeout.unwrap_or_default();
                return Err(StepError::TimedOut { what, limit, ended, tail });
            }
            Err(SessionError::ConnectionLost { started: true, detail }) if may_leave => {
                return Ok(StepResult { outcome: Outcome::Disconnected { detail } });
            }
            Err(SessionError::ConnectionLost { started, detail }) => {
                return Err(StepError::Disconnected { what, detail, started, tail });
            }
            Err(source) => return Err(StepError::Session { what, source }),
        };
        // A shutdown may end the command by a signal first, and the connection a moment later.
        let killed = matches!(&status, ExitStatus::Signal { .. }) || status.code() == 143;
        let accepted = self.expect.contains(&status.code());
        if may_leave
            && ((accepted && self.ends_in_reboot()) || (killed && !accepted))
            && guest.session.closed(LEAVING).await
        {
            return Ok(StepResult {
                outcome: Outcome::Disconnected { detail: "the guest reboots".into() },
            });
        }
        if accepted {
            return Ok(StepResult { outcome: Outcome::Finished(status) });
        }
        Err(StepError::Failed { what, status, expected: self.expect.clone(), tail })
    }
}

impl Step for ShellStep {
    fn title(&self) -> String {
        match &self.source {
            ShellSource::Inline(commands) => match commands.as_slice() {
                [] => "shell".into(),
                [one] => format!("shell: {}", first_line(one)),
                [first, rest @ ..] => {
                    format!("shell: {} (and {} more)", first_line(first), rest.len())
                }
            },
            ShellSource::Scripts(paths) => {
                let names: Vec<String> =
                    paths.iter().map(|path| path.display().to_string()).collect();
                format!("shell: {}", names.join(", "))
            }
        }
    }

    fn check(&self, context: &CheckContext) -> Result<(), CheckError> {
        if let Some((name, _)) = self.env.iter().find(|(name, _)| !is_variable_name(name)) {
            return Err(CheckError::VariableName { name: name.clone() });
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return Err(CheckError::ZeroByte { what: format!("The value of {name}") });
        }
        if self.workdir.as_ref().is_some_and(|path| path.contains('\0')) {
            return Err(CheckError::ZeroByte { what: "The working directory".into() });
        }
        if let Privilege::User(name) = &self.privilege
            && !is_user_name(name)
        {
            return Err(CheckError::UserName { name: name.clone() });
        }
        if let Some(&code) = self.expect.iter().find(|code| !(0..=255).contains(*code)) {
            return Err(CheckError::ExitCode { code });
        }
        match &self.source {
            ShellSource::Inline(commands)
                if commands.iter().all(|command| command.trim().is_empty()) =>
            {
                Err(CheckError::Empty)
            }
            ShellSource::Inline(commands)
                if commands.iter().any(|command| command.contains('\0')) =>
            {
                Err(CheckError::ZeroByte { what: "A command".into() })
            }
            ShellSource::Inline(_) => Ok(()),
            ShellSource::Scripts(paths) if paths.is_empty() => Err(CheckError::Empty),
            ShellSource::Scripts(paths) => paths
                .iter()
                .try_for_each(|path| read_script(&context.directory.join(path)).map(|_| ())),
        }
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            let mut left = self.retries;
            loop {
                let result = match &self.source {
                    ShellSource::Inline(commands) => self.run_inline(commands, guest, log).await,
                    ShellSource::Scripts(paths) => self.run_scripts(paths, guest, log).await,
                };
                match result {
                    Err(error) if left > 0 && may_be_tried_again(&error) => {
                        let tries = if left == 1 { "once more" } else { "again" };
                        log.note(&format!("{error}; it is tried {tries}"));
                        left -= 1;
                        tokio::time::sleep(self.retry_delay).await;
                    }
                    result => return result,
                }
            }
        })
    }
}

/// Whether the guest is still there, with nothing of the step running in it.
fn may_be_tried_again(error: &StepError) -> bool {
    matches!(error, StepError::Failed { .. } | StepError::TimedOut { ended: true, .. })
}

/// Reads a script and finds what the guest would stumble over.
fn read_script(path: &Path) -> Result<Vec<u8>, CheckError> {
    let unreadable = |source| CheckError::Unreadable { path: path.to_owned(), source };
    // Before opening: a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(unreadable)?;
    if !kind.is_file() {
        return Err(CheckError::NotAFile { path: path.to_owned() });
    }
    if kind.len() > MAX_SCRIPT {
        return Err(CheckError::TooLarge {
            path: path.to_owned(),
            size: kind.len(),
            limit: MAX_SCRIPT,
        });
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SCRIPT).read_to_end(&mut content))
        .map_err(unreadable)?;
    let first = content.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if first.starts_with(b"#!") && first.ends_with(b"\r") {
        let interpreter = String::from_utf8_lossy(&first[2..]).trim_start().to_owned();
        return Err(CheckError::CarriageReturn { path: path.to_owned(), interpreter });
    }
    Ok(content)
}

/// The usual ways to say it, also behind `sudo`.
fn is_reboot(command: &str) -> bool {
    let mut words =
        command.split_ascii_whitespace().filter(|word| !matches!(*word, "sudo" | "exec" | "-n"));
    let program = words.next().map(|word| word.rsplit('/').next().unwrap_or(word));
    match program {
        Some("reboot") => true,
        Some("systemctl" | "init" | "telinit") => words.any(|word| word == "reboot" || word == "6"),
        Some("shutdown") => words.any(|word| word == "-r" || word == "--reboot"),
        _ => false,
    }
}

fn first_line(command: &str) -> String {
    let line = command.trim().lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(100).collect();
    if shown.len() < command.trim().len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
