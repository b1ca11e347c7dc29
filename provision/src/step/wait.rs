//! The wait step: nothing goes on until something holds in the guest.

use std::time::Duration;

use super::ScriptStep;
use crate::command::{Privilege, shell_word};

/// What a command may take on top of the limit, before it is killed: it may hang.
const GRACE: Duration = Duration::from_secs(10);

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A program listens at this TCP port.
    Port(u16),
    /// This path exists.
    File(String),
    /// This piece of shell ends with 0.
    Command(String),
}

/// A condition, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What is waited for.
    pub condition: Condition,
    /// How long at most; whole seconds count.
    pub timeout: Duration,
    /// How long between two looks.
    pub interval: Duration,
    /// Whether root looks.
    pub sudo: bool,
}

impl Condition {
    /// Returns it in a few words.
    pub fn name(&self) -> String {
        match self {
            Condition::Port(port) => format!("port {port}"),
            Condition::File(path) => format!("the file {path}"),
            Condition::Command(command) => {
                let line = command.trim().lines().next().unwrap_or_default();
                let name: String = line.chars().take(60).collect();
                format!("`{name}`")
            }
        }
    }
}

impl Wait {
    /// Returns the step.
    pub fn step(&self) -> ScriptStep {
        let (kind, what) = match &self.condition {
            Condition::Port(port) => ("port", port.to_string()),
            Condition::File(path) => ("file", path.clone()),
            Condition::Command(command) => ("command", command.clone()),
        };
        let name = self.condition.name();
        let interval = self.interval.as_millis();
        // The user's words come last: they may hold anything.
        let script = include_str!("wait.sh")
            .replace("@KIND@", kind)
            .replace("@LIMIT@", &self.timeout.as_secs().to_string())
            .replace("@INTERVAL@", &format!("{}.{:03}", interval / 1000, interval % 1000))
            .replace(
                "what=@WHAT@",
                &format!("what={}\nname={}", shell_word(&what), shell_word(&name)),
            );
        ScriptStep {
            title: format!("wait for {name}"),
            script,
            privilege: Privilege::with_sudo(self.sudo),
            timeout: Some(self.timeout + GRACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(condition: Condition, timeout: u64) -> (bool, String) {
        let interval = Duration::from_millis(50);
        let wait = Wait { condition, timeout: Duration::from_secs(timeout), interval, sudo: false };
        let mut said = String::new();
        let mut held = true;
        for shell in ["/bin/dash", "/bin/bash", "/bin/busybox sh"] {
            let words: Vec<&str> = shell.split(' ').collect();
            let output = std::process::Command::new(words[0])
                .args(&words[1..])
                .args(["-c", &wait.step().script])
                .output()
                .expect("shell");
            held &= output.status.success();
            said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        (held, said)
    }

    #[test]
    fn a_port_that_is_listened_at_is_found_and_others_are_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let (held, said) = run(Condition::Port(port), 10);
        assert!(held && said.starts_with("waited ") && said.contains(&format!("port {port}")));
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connect");
        // A connection from a port is not a listener at it.
        let other = client.local_addr().expect("address").port();
        assert!(!run(Condition::Port(other), 0).0);
    }

    #[test]
    fn files_and_commands_are_waited_for_with_any_letters_in_their_names() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("it's a \"$file\"");
        let path = path.to_str().expect("text").to_owned();
        let (held, said) = run(Condition::File(path.clone()), 0);
        assert!(!held && said.contains("Waited 0 s for the file"), "{said}");
        let later = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(later, "").expect("write"));
        assert!(run(Condition::File(path), 20).0);
        writer.join().expect("thread");
        assert!(run(Condition::Command("x='a b'; [ \"$x\" = 'a b' ]".into()), 0).0);
        let (held, said) = run(Condition::Command("echo not yet; exit 3".into()), 0);
        assert!(!held && said.contains("not yet"), "{said}");
    }
}
