//! What goes wrong before a session stands, and inside one.

use std::fmt;
use std::time::Duration;

use super::HostKey;

/// How far a connection had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waiting for the server's first line.
    Banner,
    /// Agreeing on algorithms and keys.
    KeyExchange,
    /// Showing our key.
    Authentication,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Banner => "waiting for the banner",
            Phase::KeyExchange => "exchanging keys",
            Phase::Authentication => "authenticating",
        })
    }
}

/// Why a stream did not become a session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Something accepted the connection and hung up: sshd has no host keys yet, or refuses for load.
    #[error("The connection was closed before an SSH banner came")]
    ClosedBeforeBanner,
    /// The connection stands and nobody speaks: sshd is stopped, starting, or the guest hangs.
    #[error("No SSH banner within {:.1} s", waited.as_secs_f64())]
    NoBanner {
        /// How long we waited.
        waited: Duration,
    },
    /// Somebody speaks, and it is not SSH.
    #[error("Not an SSH server: it answered {received:?}")]
    NotSsh {
        /// The first line, shortened.
        received: String,
    },
    /// The two sides share no algorithm of a kind.
    #[error("No {kind} algorithm in common; the guest offers {}", theirs.join(", "))]
    NoCommonAlgorithm {
        /// Which kind: `kex`, `key` (the host key), `cipher`, `mac`.
        kind: String,
        /// What we offered.
        ours: Vec<String>,
        /// What the guest offered.
        theirs: Vec<String>,
    },
    /// The key exchange failed otherwise.
    #[error("The key exchange with {server} failed")]
    KeyExchange {
        /// The server's banner.
        server: String,
        /// What the SSH library says.
        #[source]
        source: russh::Error,
    },
    /// The guest shows another host key than before.
    #[error("The guest's host key changed from {expected} to {found}")]
    HostKeyChanged {
        /// The key of the earlier session.
        expected: HostKey,
        /// The key shown now.
        found: HostKey,
    },
    /// The server does not let our key in: the account or its `authorized_keys` is not there, or not there yet.
    #[error("The guest refused the key of user {user}{}{}", offers(offered), message.as_ref().map(|m| format!(" ({})", m.trim())).unwrap_or_default())]
    KeyRefused {
        /// The user name.
        user: String,
        /// The authentication methods that the server would take.
        offered: Vec<String>,
        /// What the server sent for people to read.
        message: Option<String>,
    },
    /// The connection broke on the way.
    #[error("The connection was lost while {phase}: {detail}")]
    Lost {
        /// Where.
        phase: Phase,
        /// What is known of the reason.
        detail: String,
    },
    /// The time was over, past the banner.
    #[error("No session after {:.1} s: stuck while {phase}", after.as_secs_f64())]
    TimedOut {
        /// Where.
        phase: Phase,
        /// After how long.
        after: Duration,
    },
}

impl ConnectError {
    /// Whether another attempt can have another end: a guest that is still booting shows nearly all of these in turn.
    pub fn is_transient(&self) -> bool {
        !matches!(
            self,
            ConnectError::NoCommonAlgorithm { .. } | ConnectError::HostKeyChanged { .. }
        )
    }
}

fn offers(methods: &[String]) -> String {
    if methods.is_empty() { String::new() } else { format!("; it offers {}", methods.join(", ")) }
}

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection ended: the guest rebooted, panicked, or stopped its sshd.
    #[error("The connection to the guest was lost{}: {detail}", if *started { " while the command ran" } else { "" })]
    ConnectionLost {
        /// Whether the command had begun to run.
        started: bool,
        /// What is known of the reason.
        detail: String,
    },
    /// The server opened no channel for the command.
    #[error("The guest's SSH server opens no session: {detail}")]
    ChannelRefused {
        /// The reason given.
        detail: String,
    },
    /// The command did not begin: no temporary folder, no such working directory, a login without a shell.
    #[error("The command could not be started in the guest{}: {message}", code.map(|c| format!(" (exit code {c})")).unwrap_or_default())]
    NotStarted {
        /// The exit code of what was to start it.
        code: Option<u32>,
        /// What the guest printed.
        message: String,
    },
    /// sudo does not let the login become the user that the command is for.
    #[error(
        "sudo does not let {login} run commands as {user} with{}: {message}",
        if *with_password { " this password" } else { "out a password" }
    )]
    SudoRefused {
        /// The user of the session.
        login: String,
        /// The user that the command was for.
        user: String,
        /// Whether sudo was given a password.
        with_password: bool,
        /// What sudo printed.
        message: String,
    },
    /// The command ran longer than it may.
    #[error("The command ran longer than {:.1} s{}", limit.as_secs_f64(), if *ended { " and was killed" } else { ", and could not be killed" })]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// Whether all its processes were seen to end.
        ended: bool,
    },
    /// The channel was closed without an exit status.
    #[error("The command ended without an exit status")]
    NoExitStatus,
    /// The command cannot be put into words for a shell.
    #[error("{name:?} is not a name of an environment variable")]
    VariableName {
        /// The name.
        name: String,
    },
    /// A text for the guest holds a zero byte.
    #[error("{what} holds a zero byte")]
    ZeroByte {
        /// Which text.
        what: String,
    },
    /// A name of a user that no system takes.
    #[error("{name:?} is not a name of a user")]
    UserName {
        /// The name.
        name: String,
    },
}

impl SessionError {
    /// Whether the guest is gone from us: a reboot looks like this.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, SessionError::ConnectionLost { .. } | SessionError::NoExitStatus)
    }
}
