//! A command for the guest, and what became of it.

use std::fmt;
use std::time::Duration;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A program and its arguments, each given as it is.
    Arguments(Vec<String>),
    /// A script: its bytes are put into a file in the guest that is removed afterwards.
    Script {
        /// The file's name, as `$0` ends; only its last part is used.
        name: String,
        /// The script.
        content: Vec<u8>,
        /// The interpreter and its arguments; none honours the script's `#!` line, or takes `/bin/sh` without one.
        interpreter: Option<Vec<String>>,
        /// The script's arguments.
        arguments: Vec<String>,
    },
}

/// Whose rights the command has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Privilege {
    /// The login's own.
    #[default]
    Login,
    /// Root's: through `sudo -n`, unless the login is root.
    Root,
    /// Another user's: through `sudo -n -u`, or `su` where the login is root.
    User(String),
}

impl Privilege {
    /// Root's with `sudo`, the login's own without.
    pub fn with_sudo(sudo: bool) -> Privilege {
        if sudo { Privilege::Root } else { Privilege::Login }
    }
}

/// Returns `text` as one word of a shell, whatever is in it: in single quotes, with those inside it taken out. There is
/// no way to write a zero byte.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// One command. `stdin` is empty unless given; the environment goes through a file, never through an argument that
/// `ps`, sudo's log or an audit trail would show.
#[derive(Clone)]
pub struct Command {
    /// What runs.
    pub program: Program,
    /// Variables on top of what the guest sets at a login, in order.
    pub env: Vec<(String, String)>,
    /// Whose rights it has.
    pub privilege: Privilege,
    /// The folder it runs in; none is the home folder.
    pub workdir: Option<String>,
    /// What it reads on standard input.
    pub stdin: Option<Vec<u8>>,
    /// How long it may take, all its processes included.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A program with arguments.
    pub fn new<I, A>(arguments: I) -> Command
    where
        I: IntoIterator<Item = A>,
        A: Into<String>,
    {
        Command::of(Program::Arguments(arguments.into_iter().map(Into::into).collect()))
    }

    /// A piece of shell, for `/bin/sh`.
    pub fn shell(text: impl Into<String>) -> Command {
        Command::script("command", text.into())
    }

    /// A script, run by the interpreter that its first line names.
    pub fn script(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Command {
        Command::of(Program::Script {
            name: name.into(),
            content: content.into(),
            interpreter: None,
            arguments: Vec::new(),
        })
    }

    /// The same command with other rights.
    pub fn with_privilege(mut self, privilege: Privilege) -> Command {
        self.privilege = privilege;
        self
    }

    /// The same command with a limit on its time.
    pub fn with_timeout(mut self, limit: Duration) -> Command {
        self.timeout = Some(limit);
        self
    }

    fn of(program: Program) -> Command {
        Command {
            program,
            env: Vec::new(),
            privilege: Privilege::Login,
            workdir: None,
            stdin: None,
            timeout: None,
        }
    }
}

/// Values of variables may be secrets: only their names are shown.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("env", &names)
            .field("privilege", &self.privilege)
            .field("workdir", &self.workdir)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code. A script that was killed by signal *n* is usually seen as 128 + *n* here.
    Code(u32),
    /// The server reports that a signal ended it, by name without `SIG`.
    Signal {
        /// The signal.
        name: String,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// Whether the code is 0.
    pub fn success(&self) -> bool {
        *self == ExitStatus::Code(0)
    }

    /// The code, as a shell would see it: 128 + *n* for a signal.
    pub fn code(&self) -> i32 {
        match self {
            ExitStatus::Code(code) => i32::try_from(*code).unwrap_or(i32::MAX),
            ExitStatus::Signal { name, .. } => {
                128 + SIGNALS
                    .iter()
                    .find(|(_, known)| known == name)
                    .map_or(0, |(number, _)| *number)
            }
        }
    }
}

/// Linux's numbers of the signals that end programs.
const SIGNALS: [(i32, &str); 13] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (11, "SEGV"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (24, "XCPU"),
];

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => {
                write!(f, "exit code {code}")?;
                let signal = SIGNALS.iter().find(|(number, _)| *code == 128 + *number as u32);
                signal.map_or(Ok(()), |(_, name)| write!(f, " (killed by signal {name})"))
            }
            ExitStatus::Signal { name, core_dumped } => {
                write!(
                    f,
                    "killed by signal {name}{}",
                    if *core_dumped { ", core dumped" } else { "" }
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_in_words_and_as_a_shell_sees_them() {
        assert_eq!(ExitStatus::Code(3).to_string(), "exit code 3");
        assert_eq!(ExitStatus::Code(137).to_string(), "exit code 137 (killed by signal KILL)");
        let signal = ExitStatus::Signal { name: "TERM".into(), core_dumped: false };
        assert_eq!((signal.code(), signal.to_string().as_str()), (143, "killed by signal TERM"));
    }

    #[test]
    fn debug_does_not_show_the_values_of_variables() {
        let mut command = Command::shell("true");
        command.env.push(("TOKEN".into(), "hunter2".into()));
        let shown = format!("{command:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"));
    }
}
