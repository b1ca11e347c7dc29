//! Steps: what is done in the guest between its boot and its sealing.
//!
//! A step is checked before anything boots, so that a missing script costs a second and not ten minutes, and then run
//! on a [`Guest`]. It tells its [`Log`] what it does and hands over all output as it comes. A step that may reboot the
//! guest ends in [`Outcome::Disconnected`]; the caller, who knows the machine, connects again before the next step.

pub mod bootstrap;
mod download;
mod pack;
mod script;
mod shell;
pub mod sysprep;
mod trace;
pub mod tree;
pub mod trim;
mod upload;
pub mod wait;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::command::ExitStatus;
use crate::output::{Line, Output};
use crate::session::{Session, SessionError};
use crate::sftp::SftpError;

pub use download::{Download, DownloadStep};
pub use pack::{Place, deliver};
pub use script::ScriptStep;
pub use shell::{MAX_SCRIPT, ShellSource, ShellStep};
pub use upload::{MAX_TEMPLATE, Render, Upload, UploadStep};

/// The guest that steps run on.
#[derive(Debug)]
pub struct Guest {
    /// The session; replaced by the caller after a reboot.
    pub session: Session,
    /// Variables that every command of a step gets; a step's own of the same name come later and win.
    pub environment: Vec<(String, String)>,
    /// The folder on the host that relative paths of steps start from.
    pub directory: PathBuf,
}

/// What a step is checked against before the boot.
#[derive(Debug, Clone, Default)]
pub struct CheckContext {
    /// The folder on the host that relative paths of steps start from.
    pub directory: PathBuf,
}

/// Hears what a step does.
pub trait Log: Output {
    /// A command or script of the step begins, the `number`th of `total`, counted from 1.
    fn command(&mut self, number: usize, total: usize, text: &str);
    /// Something that people should know of and that is no failure.
    fn note(&mut self, text: &str);
}

impl Log for () {
    fn command(&mut self, _: usize, _: usize, _: &str) {}
    fn note(&mut self, _: &str) {}
}

/// How a step that did not fail ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this status, which is one that was expected.
    Finished(ExitStatus),
    /// The guest left, as the step said that it may: it reboots.
    Disconnected {
        /// What is known of the reason.
        detail: String,
    },
}

/// What a step gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepResult {
    /// How it ended.
    pub outcome: Outcome,
}

impl StepResult {
    /// Returns what a step gives back that did it all and has no exit code of its own.
    pub fn done() -> StepResult {
        StepResult { outcome: Outcome::Finished(ExitStatus::Code(0)) }
    }
}

/// A future of a step's run.
pub type StepFuture<'a> = Pin<Box<dyn Future<Output = Result<StepResult, StepError>> + Send + 'a>>;

/// One thing to do in the guest.
pub trait Step: Send + Sync {
    /// Returns one line that names the step for people.
    fn title(&self) -> String;

    /// Finds what can be found wrong without a guest.
    ///
    /// # Errors
    /// The first thing found.
    fn check(&self, context: &CheckContext) -> Result<(), CheckError>;

    /// Does it.
    ///
    /// # Errors
    /// When something failed in the guest, or the guest left without leave.
    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a>;
}

/// What is wrong with a step before it is run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is nothing to do.
    #[error("The step has no command and no script")]
    Empty,
    /// A script cannot be read.
    #[error("Script {} cannot be read", path.display())]
    Unreadable {
        /// The script.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A script is no file.
    #[error("Script {} is not a regular file", path.display())]
    NotAFile {
        /// The script.
        path: PathBuf,
    },
    /// A script is larger than is sensible to hold in memory.
    #[error("Script {} has {size} bytes, more than the {limit} a script may have", path.display())]
    TooLarge {
        /// The script.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A script from Windows: the guest would look for an interpreter whose name ends in a carriage return.
    #[error("Script {} has a carriage return in its '#!' line, so the guest would not find {interpreter:?}; convert it with dos2unix", path.display())]
    CarriageReturn {
        /// The script.
        path: PathBuf,
        /// The interpreter as the guest would read it.
        interpreter: String,
    },
    /// A file or folder to upload cannot be read.
    #[error("{} cannot be read", path.display())]
    NotRead {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pattern stands for nothing.
    #[error("No file matches {pattern}")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// Neither a file nor a folder nor a link.
    #[error("{} is a device, a pipe or a socket, and cannot be uploaded", path.display())]
    Special {
        /// What it is about.
        path: PathBuf,
    },
    /// A slash at the end where there is no folder.
    #[error("{} is no folder", path.display())]
    NoFolder {
        /// What it is about.
        path: PathBuf,
    },
    /// A folder that has no name to go by.
    #[error("{} has no name to go by; a slash at its end uploads what is in it", path.display())]
    NoName {
        /// The folder.
        path: PathBuf,
    },
    /// A pattern may stand for several files, which cannot all have one name.
    #[error("A pattern may stand for several files: end `to` with a slash ({to}/)")]
    ManyToOne {
        /// Where they should go.
        to: String,
    },
    /// More than is sensible.
    #[error("{} goes beyond the {limit} files or folders that may be uploaded", path.display())]
    TooMany {
        /// Where the limit was met.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A template is at fault.
    #[error("Template {}: {message}", path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// A sentence.
        message: String,
    },
    /// A program that the host would run is not there.
    #[error("`{name}` is not on this host: {hint}")]
    Program {
        /// Its name.
        name: String,
        /// Where it comes from.
        hint: String,
    },
    /// A name that no shell takes for a variable.
    #[error("{name:?} is not a name of an environment variable")]
    VariableName {
        /// The name.
        name: String,
    },
    /// A name that no system takes for a user.
    #[error("{name:?} is not a name of a user")]
    UserName {
        /// The name.
        name: String,
    },
    /// A text that no process can be given.
    #[error("{what} holds a zero byte")]
    ZeroByte {
        /// Which text.
        what: String,
    },
    /// An exit code that no process has.
    #[error("{code} is not an exit code; they go from 0 to 255")]
    ExitCode {
        /// The code.
        code: i32,
    },
}

/// Why a step failed. `what` names the command or script, `tail` is the last that it printed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It ended with a status that was not expected.
    #[error("{what} failed: {status}{}", expectation(expected))]
    Failed {
        /// The command or script.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The exit codes that would have been right.
        expected: Vec<i32>,
        /// The last lines of its output.
        tail: Vec<Line>,
    },
    /// It took longer than it may.
    #[error("{what} ran longer than {:.1} s{}", limit.as_secs_f64(), if *ended { " and was killed" } else { ", and could not be killed" })]
    TimedOut {
        /// The command or script.
        what: String,
        /// The limit.
        limit: Duration,
        /// Whether all its processes were seen to end.
        ended: bool,
        /// The last lines of its output.
        tail: Vec<Line>,
    },
    /// The guest left in the middle: it panicked, rebooted, or stopped its sshd.
    #[error("{what} did not end: the connection to the guest was lost ({detail})")]
    Disconnected {
        /// The command or script.
        what: String,
        /// What is known of the reason.
        detail: String,
        /// Whether the command had begun; one that had not may be run again on a new session.
        started: bool,
        /// The last lines of its output.
        tail: Vec<Line>,
    },
    /// It could not be run.
    #[error("{what} could not be run")]
    Session {
        /// The command or script.
        what: String,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// Files could not be moved.
    #[error("{what} failed")]
    Transfer {
        /// Which files.
        what: String,
        /// Why.
        #[source]
        source: SftpError,
    },
    /// A program of the host could not be run.
    #[error("{what} could not be run on the host")]
    Host {
        /// What was to be done.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something that the check had found in order is so no longer.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl StepError {
    /// Of a transfer that failed.
    fn transfer(what: String, source: SftpError) -> StepError {
        match source {
            SftpError::Session(SessionError::ConnectionLost { started, detail }) => {
                StepError::Disconnected { what, detail, started, tail: Vec::new() }
            }
            source => StepError::Transfer { what, source },
        }
    }

    /// Returns the last lines that the guest printed.
    pub fn tail(&self) -> &[Line] {
        match self {
            StepError::Failed { tail, .. }
            | StepError::TimedOut { tail, .. }
            | StepError::Disconnected { tail, .. } => tail,
            StepError::Session { .. }
            | StepError::Transfer { .. }
            | StepError::Host { .. }
            | StepError::Check(_) => &[],
        }
    }

    /// Returns the exit code, if there was one.
    pub fn exit_code(&self) -> Option<i32> {
        if let StepError::Failed { status, .. } = self { Some(status.code()) } else { None }
    }

    /// Whether the guest is gone: the machine's own end tells why.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, StepError::Disconnected { .. })
    }
}

fn expectation(expected: &[i32]) -> String {
    match expected {
        [] | [0] => String::new(),
        codes => {
            let codes: Vec<String> = codes.iter().map(i32::to_string).collect();
            format!(", expected {}", codes.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests {
    /// An error with all its causes, as a person is shown it.
    pub(super) fn chain(error: &dyn std::error::Error) -> String {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}
