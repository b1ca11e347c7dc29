//! Why files cannot be moved, and how answers of the server become such errors.

use std::io;
use std::path::PathBuf;

use super::{Reply, SILENCE};
use crate::session::SessionError;

/// Why files could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum SftpError {
    /// There is no server for files in the guest.
    #[error(
        "The guest has no sftp-server; it comes with OpenSSH's server (Debian: openssh-sftp-server)"
    )]
    NoServer,
    /// The server, or sudo before it, did not start.
    #[error("The guest's sftp-server did not start: {message}")]
    NotStarted {
        /// What was printed.
        message: String,
    },
    /// The server did not do it.
    #[error("Cannot {action} {path} in the guest: {message}")]
    Refused {
        /// What was asked, e.g. `create`.
        action: &'static str,
        /// Of which path.
        path: String,
        /// What the server said.
        message: String,
    },
    /// The server does not keep to the protocol.
    #[error("The guest's sftp-server does not keep to its protocol: {detail}")]
    Protocol {
        /// What came.
        detail: String,
    },
    /// The server says nothing.
    #[error("The guest's sftp-server did not answer within {} s", SILENCE.as_secs())]
    Silent,
    /// The guest does not know an owner.
    #[error("The guest has no {name}")]
    Owner {
        /// The user or group.
        name: String,
    },
    /// More would come than may.
    #[error("{path} in the guest is more than {limit}; `limit` raises it")]
    TooMuch {
        /// What was asked for.
        path: String,
        /// What may come.
        limit: String,
    },
    /// The host's file system failed.
    #[error("Cannot {action} {}", path.display())]
    Host {
        /// What was to be done.
        action: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl SftpError {
    pub(super) fn protocol(detail: impl Into<String>) -> SftpError {
        SftpError::Protocol { detail: detail.into() }
    }

    /// Whether the guest is gone.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, SftpError::Session(error) if error.is_disconnect())
    }
}

/// Turns an answer that was not hoped for into an error.
pub(crate) fn refused(reply: Reply, action: &'static str, path: &[u8]) -> SftpError {
    match reply {
        Reply::Status { message, code } => {
            let message = if message.is_empty() { format!("status {code}") } else { message };
            refusal(action, path, message)
        }
        _ => SftpError::protocol(format!("another answer than a request to {action} has")),
    }
}

/// Makes an error of a path.
pub(crate) fn refusal(action: &'static str, path: &[u8], message: impl Into<String>) -> SftpError {
    let path = String::from_utf8_lossy(path).escape_debug().to_string();
    SftpError::Refused { action, path, message: message.into() }
}
