//! What can go wrong with the rig. Tests print these and stop: nothing here is meant to be recovered from.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// A failure to build, start or use the rig.
#[derive(Debug)]
pub enum RigError {
    /// A file operation of the rig's own.
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program of the host could not be started.
    Program {
        /// The program's name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A recipe (a script that builds one artifact) failed.
    Recipe {
        /// The artifact it should have built.
        name: String,
        /// How the script ended.
        status: ExitStatus,
        /// The whole output of the script.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// L1 did not come up.
    Boot {
        /// What was waited for, or what happened instead.
        reason: String,
        /// QEMU's messages and the last console lines.
        tail: String,
    },
    /// A command inside L1 that the rig itself needs has failed.
    Guest {
        /// The command.
        command: String,
        /// What it wrote to standard error.
        stderr: String,
    },
}

impl std::fmt::Display for RigError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, .. } => write!(out, "Cannot use {}", path.display()),
            Self::Program { program, .. } => {
                write!(out, "Cannot start {program} (`make setup` installs what the rig needs)")
            }
            Self::Recipe { name, status, log, tail } => {
                write!(
                    out,
                    "Cannot build {name}: {status}; the whole log is {}\n{tail}",
                    log.display()
                )
            }
            Self::Boot { reason, tail } => write!(out, "L1 did not start: {reason}\n{tail}"),
            Self::Guest { command, stderr } => write!(out, "In L1, `{command}` failed: {stderr}"),
        }
    }
}

impl std::error::Error for RigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } | Self::Program { source, .. } => Some(source),
            Self::Recipe { .. } | Self::Boot { .. } | Self::Guest { .. } => None,
        }
    }
}

/// Turns an I/O error into one that names the file.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> RigError {
    let path = path.into();
    move |source| RigError::File { path, source }
}
