//! `shell`: commands or scripts to run in the guest.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use kvmbake_provision::Privilege;
use kvmbake_provision::seed::nocloud::is_user_name;

use crate::profile::reader::{At, Reader};
use crate::profile::{Context, Named};
use crate::report::shortened;
use crate::secret::Secrets;

/// The key of this action.
pub const KEY: &str = "shell";
const MAXIMUM_RETRIES: i64 = 100;
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A shell step.
#[derive(Debug)]
pub struct Shell {
    /// The commands or scripts, in order.
    pub run: Run,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Whose rights it has.
    pub privilege: Privilege,
    /// The folder to run in.
    pub workdir: Option<String>,
    /// The interpreter of inline commands and of scripts without a `#!` line.
    pub interpreter: Option<String>,
    /// Exit codes that count as success.
    pub expect: Vec<i32>,
    /// How long the step may take, each try.
    pub timeout: Option<Duration>,
    /// How often the step is run again when it fails.
    pub retries: u32,
    /// How long to wait before that.
    pub retry_delay: Duration,
}

/// What a shell step runs.
#[derive(Debug)]
pub enum Run {
    /// Commands, one after the other.
    Inline(Vec<String>),
    /// Scripts on the host, one after the other.
    Scripts(Vec<Named<PathBuf>>),
}

impl Context<'_> {
    /// Reads `shell`: a command, a list of commands, or a table.
    pub(super) fn shell(&self, reader: &Reader<'_, '_>) -> Option<Shell> {
        let value = reader.value(KEY)?;
        match reader.table_of(KEY, value) {
            Some(table) => self.shell_table(table),
            None => reader
                .strings_of(KEY, value)
                .and_then(|commands| inline(reader, commands, &value.span()).map(Shell::of)),
        }
    }

    /// Reads the table of `shell`.
    fn shell_table(&self, reader: Reader<'_, '_>) -> Option<Shell> {
        let commands = reader.strings("inline");
        let script = reader.string("script").map(|at| vec![at]);
        let scripts = reader.strings("scripts");
        let given = [commands.is_some(), script.is_some(), scripts.is_some()];
        let run = match (commands, script.or(scripts)) {
            (Some(commands), None) => inline(&reader, commands, &reader.span()),
            (None, Some(paths)) if given.iter().filter(|is| **is).count() == 1 => {
                Some(Run::Scripts(paths.into_iter().map(|at| self.path(at)).collect()))
            }
            _ => {
                reader.fault(
                    &reader.span(),
                    "`shell` needs exactly one of `inline`, `script` and `scripts`",
                );
                None
            }
        };
        let shell = Shell {
            run: run.unwrap_or(Run::Inline(Vec::new())),
            env: self.env(&reader),
            privilege: privilege(&reader),
            workdir: reader.string("workdir").map(|at| at.value),
            interpreter: reader.string("shell").map(|at| at.value),
            expect: reader.integers("expect", 0..=255).map_or_else(
                || vec![0],
                |codes| codes.into_iter().map(|code| code as i32).collect(),
            ),
            timeout: reader.duration("timeout").map(|at| at.value),
            retries: reader
                .integer("retries", 0..=MAXIMUM_RETRIES)
                .and_then(|at| u32::try_from(at.value).ok())
                .unwrap_or(0),
            retry_delay: reader.duration("retry_delay").map_or(DEFAULT_RETRY_DELAY, |at| at.value),
        };
        reader.finish();
        Some(shell)
    }

    /// Reads `env`, a table of variables of the environment.
    pub(super) fn env(&self, reader: &Reader<'_, '_>) -> Vec<(String, String)> {
        let env = reader.string_map("env").into_iter();
        let env: Vec<(String, String)> = env.map(|(name, at)| (name, at.value)).collect();
        for (name, _) in &env {
            let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !name.starts_with(|c: char| c.is_ascii_digit());
            if name.is_empty() || !valid {
                reader.fault(&reader.span(), format!("`{name}` in `env` is no name of a variable"));
            }
        }
        env
    }
}

/// Reads `sudo` and `user`.
fn privilege(reader: &Reader<'_, '_>) -> Privilege {
    let sudo = reader.bool("sudo").unwrap_or(false);
    let Some(user) = reader.string("user") else { return Privilege::with_sudo(sudo) };
    if sudo {
        reader.fault(&user.span, "`sudo` is for root; a step has either that or a `user`");
    }
    if !is_user_name(&user.value) {
        reader.fault(&user.span, format!("`{}` is no name of a user", user.value));
    }
    Privilege::User(user.value)
}

fn inline(reader: &Reader<'_, '_>, commands: Vec<At<String>>, span: &Range<usize>) -> Option<Run> {
    if commands.iter().all(|command| command.value.trim().is_empty()) {
        reader.fault(span, "There is no command to run");
        return None;
    }
    Some(Run::Inline(commands.into_iter().map(|at| at.value).collect()))
}

impl Shell {
    /// Whether it runs scripts, and not commands of the profile.
    pub fn has_scripts(&self) -> bool {
        matches!(self.run, Run::Scripts(_))
    }

    /// A step of inline commands with every other setting at its default.
    fn of(run: Run) -> Shell {
        let expect = vec![0];
        Shell {
            run,
            env: Vec::new(),
            privilege: Privilege::Login,
            workdir: None,
            interpreter: None,
            expect,
            timeout: None,
            retries: 0,
            retry_delay: DEFAULT_RETRY_DELAY,
        }
    }

    /// What to call the step when it has no name.
    pub fn title(&self, secrets: &Secrets) -> String {
        match &self.run {
            Run::Inline(commands) => {
                let first = commands.iter().find(|command| !command.trim().is_empty());
                let first = first.map_or("", |command| command.trim().lines().next().unwrap_or(""));
                let more = if commands.len() > 1 {
                    format!(" (+{})", commands.len() - 1)
                } else {
                    String::new()
                };
                // Hidden before it is cut, so that no part of a secret stays.
                format!("{}{more}", shortened(&secrets.redact(first), 60))
            }
            Run::Scripts(paths) => {
                let name = |path: &Named<PathBuf>| {
                    path.value.file_name().unwrap_or_default().to_string_lossy().into_owned()
                };
                paths.iter().map(name).collect::<Vec<_>>().join(", ")
            }
        }
    }
}
