//! A script of ours as a step: what the file beside a kind of step says, run by the guest's shell, its output handed on.

use std::time::Duration;

use super::trace::Trace;
use super::{CheckContext, CheckError, Guest, Log, Outcome, Step, StepError};
use super::{StepFuture, StepResult};
use crate::command::{Command, Privilege};
use crate::session::SessionError;

/// How many lines of output a failure shows.
const TAIL: usize = 30;

/// Runs one script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptStep {
    /// What it is called in titles and errors.
    pub title: String,
    /// The script, for the guest's `/bin/sh`.
    pub script: String,
    /// Whose rights it has.
    pub privilege: Privilege,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

impl ScriptStep {
    /// A script that runs as root.
    pub fn as_root(title: impl Into<String>, script: impl Into<String>) -> ScriptStep {
        ScriptStep {
            title: title.into(),
            script: script.into(),
            privilege: Privilege::Root,
            timeout: None,
        }
    }
}

impl Step for ScriptStep {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        match self.script.contains('\0') {
            true => Err(CheckError::ZeroByte { what: self.title.clone() }),
            false => Ok(()),
        }
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            let mut command =
                Command::script("step", self.script.clone()).with_privilege(self.privilege.clone());
            (command.env, command.timeout) = (guest.environment.clone(), self.timeout);
            let mut trace = Trace::new(log, TAIL);
            let result = guest.session.run(&command, &mut trace).await;
            trace.finish();
            let (what, tail) = (self.title.clone(), trace.tail.into_lines());
            match result {
                Ok(status) if status.success() => {
                    Ok(StepResult { outcome: Outcome::Finished(status) })
                }
                Ok(status) => Err(StepError::Failed { what, status, expected: vec![0], tail }),
                Err(SessionError::TimedOut { ended, .. }) => {
                    let limit = self.timeout.unwrap_or_default();
                    Err(StepError::TimedOut { what, limit, ended, tail })
                }
                Err(SessionError::ConnectionLost { started, detail }) => {
                    Err(StepError::Disconnected { what, detail, started, tail })
                }
                Err(source) => Err(StepError::Session { what, source }),
            }
        })
    }
}
