//! The `host` action: commands on the host, which are told how to log in to the guest.

use std::path::Path;

use kvmbake_provision::step::{CheckContext, CheckError, Guest, Log, Step, StepFuture, tree};
use tokio::process::Command;

use super::process;
use crate::control::Login;
use crate::profile::HostCommand;

/// A `host` step.
pub struct HostStep {
    host: HostCommand,
    login: Option<Login>,
}

/// Returns the step; `login` is known once the guest runs.
pub fn step(host: &HostCommand, login: Option<Login>) -> HostStep {
    HostStep { host: host.clone(), login }
}

/// Returns what programs of the host are told in their environment of how to log in.
pub fn environment(login: &Login) -> Vec<(&'static str, std::ffi::OsString)> {
    let folder = login.config.parent().unwrap_or(Path::new("/"));
    vec![
        ("KVMBAKE_SSH_HOST", crate::control::openssh::HOST.into()),
        ("KVMBAKE_SSH_USER", login.user.clone().into()),
        ("KVMBAKE_SSH_KEY", login.key.clone().into()),
        ("KVMBAKE_SSH_HOST_KEY", login.host_key.clone().into()),
        ("KVMBAKE_SSH_KNOWN_HOSTS", folder.join("known_hosts").into()),
        ("KVMBAKE_SSH_CONFIG", login.config.clone().into()),
        ("KVMBAKE_CONTROL", folder.join("control").into()),
    ]
}

impl Step for HostStep {
    fn title(&self) -> String {
        "host".into()
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        if let Some((name, _)) = self.host.env.iter().find(|(_, value)| value.contains('\0')) {
            return Err(CheckError::ZeroByte { what: format!("The value of {name}") });
        }
        if self.host.commands.iter().any(|command| command.contains('\0')) {
            return Err(CheckError::ZeroByte { what: "A command".into() });
        }
        if !self.host.workdir.is_dir() {
            return Err(CheckError::NoFolder { path: self.host.workdir.clone() });
        }
        for input in &self.host.inputs {
            tree::entries(Path::new("/"), &input.value.to_string_lossy(), "/")?;
        }
        Ok(())
    }

    fn run<'a>(&'a self, _: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            let mut command = Command::new("/bin/sh");
            // Commands may hold secrets, and what stands in arguments everybody on the host can read.
            command.args(["-ec", "c=$KVMBAKE_COMMANDS; unset KVMBAKE_COMMANDS; eval \"$c\""]);
            command.env("KVMBAKE_COMMANDS", self.host.commands.join("\n"));
            command.current_dir(&self.host.workdir);
            if let Some(login) = &self.login {
                command.envs(environment(login));
            }
            command.envs(self.host.env.iter().map(|(name, value)| (name, value)));
            process::run(command, "The command on the host", self.host.timeout, log).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_folders_that_are_not_there_are_found_before_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = HostCommand {
            commands: vec!["true".into()],
            env: Vec::new(),
            workdir: folder.path().to_path_buf(),
            timeout: None,
            inputs: Vec::new(),
        };
        let check = |host: &HostCommand| step(host, None).check(&CheckContext::default());
        check(&host).unwrap();
        host.workdir = folder.path().join("none");
        assert!(matches!(check(&host), Err(CheckError::NoFolder { .. })));
    }
}
