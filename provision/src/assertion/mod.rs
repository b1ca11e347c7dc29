//! What can be asked of a guest that a finished image was booted in. Each question is a script for the guest's shell:
//! it ends with 0 when the answer is yes, and else prints the reason on standard output.
//!
//! A guest that has just booted may need a while for its services, so a question is asked again until its time is up.

use std::time::Duration;

use crate::command::{Command, Privilege, shell_word};
use crate::session::{Captured, Session, SessionError};

/// What a question may take on top of its time before it is killed.
const GRACE: Duration = Duration::from_secs(30);
/// The longest reason that is told, in characters.
const REASON: usize = 200;

/// The state in which the test of `vm_bootstrap` counts runs.
const COUNT: &str = "/root/bootstrap/.test-runs";

/// Something that shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assertion {
    /// A piece of shell ends with one of these codes.
    Shell {
        /// The piece of shell.
        command: String,
        /// The codes.
        expect: Vec<i32>,
        /// A text that is in what it prints.
        contains: Option<String>,
    },
    /// A file is there.
    File {
        /// Its path.
        path: String,
        /// Its permissions.
        mode: Option<u32>,
        /// A text that is in it.
        contains: Option<String>,
    },
    /// There is nothing at this path.
    Absent(String),
    /// A program listens at this TCP port.
    Port(u16),
    /// A service runs.
    Service(String),
    /// The agent of `vm_bootstrap` keeps its contract with a script that fails this often, which
    /// [`bootstrap_script`] gives.
    Bootstrap {
        /// How often.
        fails: u32,
    },
}

impl Assertion {
    /// Returns it in a few words.
    pub fn name(&self) -> String {
        match self {
            Assertion::Shell { command, .. } => {
                let line = command.trim().lines().next().unwrap_or_default();
                line.chars().take(60).collect()
            }
            Assertion::File { path, .. } => path.clone(),
            Assertion::Absent(path) => format!("no {path}"),
            Assertion::Port(port) => format!("port {port}"),
            Assertion::Service(service) => format!("service {service}"),
            Assertion::Bootstrap { fails } => format!("vm_bootstrap after {fails} failures"),
        }
    }

    /// Asks the guest, at most for `limit`. Returns why it does not hold, when it does not. The question is root's with
    /// `sudo`; that of `vm_bootstrap` always.
    ///
    /// # Errors
    /// The guest cannot be asked.
    pub async fn ask(
        &self,
        session: &Session,
        sudo: bool,
        limit: Duration,
    ) -> Result<Option<String>, SessionError> {
        let root = sudo || matches!(self, Assertion::Bootstrap { .. });
        let command = Command::script("test", self.script(limit));
        let command = command.with_privilege(Privilege::with_sudo(root));
        let limit = match self {
            Assertion::Shell { .. } => limit,
            _ => limit + GRACE,
        };
        match session.capture(&command.with_timeout(limit)).await {
            Ok(answer) => Ok(self.judge(&answer)),
            Err(SessionError::TimedOut { .. }) => {
                Ok(Some(format!("it took longer than {} s", limit.as_secs())))
            }
            Err(error) => Err(error),
        }
    }

    fn judge(&self, answer: &Captured) -> Option<String> {
        let printed = [&answer.stdout, &answer.stderr].map(|text| text.trim());
        let last = printed.into_iter().rev().find_map(|text| text.lines().last());
        let Assertion::Shell { expect, contains, .. } = self else {
            let said = printed[0].lines().last().or(last).unwrap_or("it gave no reason");
            return (!answer.status.success()).then(|| shortened(said));
        };
        if !expect.contains(&answer.status.code()) {
            let said = last.map_or_else(String::new, |line| format!(": {line}"));
            return Some(shortened(&format!("{}{said}", answer.status)));
        }
        let text = contains.as_deref()?;
        let found = answer.stdout.contains(text);
        (!found).then(|| shortened(&format!("its output has no {text:?}: {}", printed[0])))
    }

    fn script(&self, limit: Duration) -> String {
        let question = match self {
            Assertion::Shell { command, .. } => return command.clone(),
            Assertion::File { path, mode, contains } => {
                let mut text = format!("path={}\n", shell_word(path));
                text.push_str("[ -e \"$path\" ] || [ -h \"$path\" ] || { echo 'it does not exist'; return 1; }\n");
                if let Some(mode) = mode {
                    text.push_str(&format!(
                        "mode=$(stat -L -c %a \"$path\")\n[ \"$mode\" = {mode:o} ] || {{ echo \"its mode is $mode\"; return 1; }}\n"
                    ));
                }
                if let Some(contains) = contains {
                    let contains = shell_word(contains);
                    text.push_str(&format!(
                        "grep -qF -e {contains} \"$path\" || {{ echo 'the text is not in it'; return 1; }}\n"
                    ));
                }
                text
            }
            Assertion::Absent(path) => format!(
                "path={}\nif [ -e \"$path\" ] || [ -h \"$path\" ]; then echo 'it exists'; return 1; fi\n",
                shell_word(path)
            ),
            Assertion::Port(port) => format!("port=$(printf %04X {port})\n{PORT}"),
            Assertion::Service(service) => {
                format!("service={}\n{}", shell_word(service), include_str!("service.sh"))
            }
            Assertion::Bootstrap { fails } => {
                return include_str!("bootstrap.sh")
                    .replace("@FAILS@", &fails.to_string())
                    .replace("@COUNT@", COUNT);
            }
        };
        include_str!("poll.sh")
            .replace("@LIMIT@", &limit.as_secs().to_string())
            .replace("@QUESTION@", &question)
    }
}

/// Local address, remote address, state: 0A is LISTEN (Linux, Documentation/networking/proc_net_tcp.rst).
const PORT: &str = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | \
     grep -qi \"^ *[0-9]*: [0-9A-F]*:$port [0-9A-F]*:0000 0A \" || { echo 'nothing listens at it'; return 1; }\n";

/// Returns the script to serve to a guest whose `vm_bootstrap` is tested: it fails so often, then succeeds.
pub fn bootstrap_script(fails: u32) -> String {
    format!("#!/bin/bash\necho run >>{COUNT}\n[ \"$(wc -l <{COUNT})\" -gt {fails} ]\n")
}

fn shortened(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    line.chars().take(REASON).collect()
}

#[cfg(test)]
mod tests;
