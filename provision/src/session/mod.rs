//! An SSH session with the guest, over any byte stream.
//!
//! [`Session::connect`] takes a stream that somebody else has opened and brings it to an authenticated session, or to a
//! [`ConnectError`] that tells how far it got: "SSH did not come up" is the failure that people meet most, and each of
//! its causes has another cure. [`Session::run`] runs commands; see [`crate::command`].
//!
//! The guest is ours and the stream comes from our own network, so its first host key is accepted. A caller that hands
//! the key of the first session to the later ones ([`Login::host_key`]) has it pinned for the build.
//!
//! RFC 4251 to 4254; OpenSSH's `PROTOCOL` for keep-alives.

mod attempts;
mod connect;
mod error;
mod exec;
mod remote;
mod sudo;
mod tap;
mod terminal;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::Disconnect;
use russh::client::{self, DisconnectReason, Handle};
use russh::keys::{HashAlg, PublicKey, PublicKeyOrCertificate};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::key::BuildKey;

use connect::{begin, diagnose};

pub use attempts::{Attempt, AttemptError, Attempts, GaveUp, connect_until};
pub use error::{ConnectError, Phase, SessionError};
pub use exec::Captured;
pub(crate) use exec::mark_number;
use remote::Who;
pub(crate) use remote::is_variable_name;
pub(crate) use sudo::Sudo;
pub use sudo::SudoPassword;
use tap::{Opening, Tap};
pub use terminal::{TerminalError, TerminalRequest, TerminalSize};

/// Who logs in, and how long each thing may take.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The key that opens the account.
    pub key: BuildKey,
    /// How long connecting may take in all, from the first byte to the end of the authentication.
    pub timeout: Duration,
    /// After this long without a byte from the guest it is asked for a sign of life.
    pub keepalive: Duration,
    /// After this many unanswered questions the guest counts as dead.
    pub keepalive_limit: usize,
    /// The host key that the guest must show; none accepts any.
    pub host_key: Option<HostKey>,
    /// What sudo asks for; none where it asks for nothing.
    pub sudo_password: Option<SudoPassword>,
}

impl Login {
    /// Returns a login with the usual times: half a minute to connect, a dead guest noticed after two.
    pub fn new(user: impl Into<String>, key: &BuildKey) -> Login {
        Login {
            user: user.into(),
            key: key.clone(),
            timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
            keepalive_limit: 6,
            host_key: None,
            sudo_password: None,
        }
    }
}

/// The guest's host key, to be compared and shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    fingerprint: String,
    /// Type and key, without a comment.
    openssh: String,
}

impl HostKey {
    fn new(key: &PublicKey) -> HostKey {
        let line = key.to_openssh().unwrap_or_default();
        let fields: Vec<&str> = line.split_ascii_whitespace().take(2).collect();
        HostKey {
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
            openssh: fields.join(" "),
        }
    }

    /// Reads a key as [`HostKey::openssh`] gives it; none when the line is no key.
    pub fn from_openssh(line: &str) -> Option<HostKey> {
        Some(HostKey::new(&PublicKey::from_openssh(line).ok()?))
    }

    /// Returns the key as a `.pub` file has it, and a line of `known_hosts` behind its names: type and key.
    pub fn openssh(&self) -> &str {
        &self.openssh
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint)
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({self})")
    }
}

/// An authenticated session. Dropping it ends the connection.
pub struct Session {
    handle: Handle<Guard>,
    tap: Tap,
    seen: Arc<Mutex<Seen>>,
    user: String,
    sudo_password: Option<SudoPassword>,
    host_key: HostKey,
    banner: String,
}

/// What the server told outside of any channel.
#[derive(Debug, Default)]
struct Seen {
    host_key: Option<HostKey>,
    refused_host_key: bool,
    auth_banner: Option<String>,
    end: Option<String>,
}

struct Guard {
    expected: Option<HostKey>,
    seen: Arc<Mutex<Seen>>,
}

impl client::Handler for Guard {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let found = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => HostKey::new(key),
            PublicKeyOrCertificate::Certificate(certificate) => {
                HostKey::new(&PublicKey::from(certificate.public_key().clone()))
            }
        };
        let accepted = self.expected.as_ref().is_none_or(|expected| *expected == found);
        let mut seen = lock(&self.seen);
        seen.host_key = Some(found);
        seen.refused_host_key = !accepted;
        Ok(accepted)
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        lock(&self.seen).auth_banner = Some(banner.chars().take(1024).collect());
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let end = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                format!("the server said: {}", info.message)
            }
            DisconnectReason::Error(russh::Error::KeepaliveTimeout) => {
                "the guest answers no keep-alive".into()
            }
            DisconnectReason::Error(russh::Error::Disconnect | russh::Error::HUP) => {
                "the stream ended".into()
            }
            DisconnectReason::Error(error) => error.to_string(),
        };
        lock(&self.seen).end = Some(end);
        Ok(())
    }
}

impl Session {
    /// Logs in over `stream` with the usual times, `limit` for all of it.
    ///
    /// # Errors
    /// See [`ConnectError`]: each cause has its own variant.
    pub async fn connect<S>(
        stream: S,
        user: &str,
        key: &BuildKey,
        limit: Duration,
    ) -> Result<Session, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Session::log_in(stream, &Login { timeout: limit, ..Login::new(user, key) }).await
    }

    /// Logs in over `stream`. The stream is closed when this fails.
    ///
    /// # Errors
    /// See [`ConnectError`]: each cause has its own variant.
    pub async fn log_in<S>(stream: S, login: &Login) -> Result<Session, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tap = Tap::default();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let started = Instant::now();
        let mut phase = Phase::Banner;
        let attempt = begin(tap.on(stream), login, &seen, &mut phase);
        let result = match timeout(login.timeout, attempt).await {
            Ok(Ok(handle)) => Ok(handle),
            Ok(Err(failure)) => Err(diagnose(failure, phase, &tap, &seen, login)),
            Err(_) => Err(match tap.opening() {
                Opening::Silence => ConnectError::NoBanner { waited: started.elapsed() },
                Opening::Other(received) => ConnectError::NotSsh { received },
                Opening::Banner(_) => ConnectError::TimedOut {
                    phase: phase.max(Phase::KeyExchange),
                    after: started.elapsed(),
                },
            }),
        };
        match result {
            Ok(handle) => {
                let host_key = lock(&seen).host_key.clone();
                let host_key = host_key.unwrap_or_else(|| HostKey {
                    fingerprint: String::new(),
                    openssh: String::new(),
                });
                let banner = if let Opening::Banner(banner) = tap.opening() {
                    banner
                } else {
                    String::new()
                };
                let (user, sudo_password) = (login.user.clone(), login.sudo_password.clone());
                Ok(Session { handle, tap, seen, user, sudo_password, host_key, banner })
            }
            Err(error) => {
                tap.close();
                Err(error)
            }
        }
    }

    /// Returns the name that the session is logged in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns how a shell is started as root by sudo.
    pub(crate) fn sudo(&self) -> Sudo {
        Sudo::new(None, self.sudo_password.as_ref())
    }

    fn who(&self) -> Who<'_> {
        Who { login: &self.user, password: self.sudo_password.as_ref() }
    }

    /// Makes the session believe that it is another user's.
    #[cfg(test)]
    pub(crate) fn set_user(&mut self, user: &str) {
        self.user = user.into();
    }

    /// Gives the session a password for sudo.
    #[cfg(test)]
    pub(crate) fn set_sudo_password(&mut self, password: &str) {
        self.sudo_password = SudoPassword::new(password);
    }

    /// Returns the host key that the guest showed.
    pub fn host_key(&self) -> &HostKey {
        &self.host_key
    }

    /// Returns the server's banner, such as `SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3`.
    pub fn server(&self) -> &str {
        &self.banner
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Waits until the connection has ended, at most for `limit`; whether it did.
    pub async fn closed(&self, limit: Duration) -> bool {
        // The library has no future for this that does not take the session, so it is looked at: at once, as it mostly
        // is a matter of a moment, and then ever less often, down to ten times a second.
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        while !self.is_closed() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        true
    }

    /// Says goodbye and ends the connection.
    pub async fn close(self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        let _ = timeout(Duration::from_secs(1), goodbye).await;
        self.closed(Duration::from_secs(1)).await;
    }

    /// Why the connection ended, as far as it is known.
    fn end(&self) -> String {
        let end = lock(&self.seen).end.clone();
        end.unwrap_or_else(|| {
            if self.tap.hung_up() { "the stream ended".into() } else { "no reason given".into() }
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tap.close();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user)
            .field("server", &self.banner)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod sshd;
#[cfg(test)]
mod tests;
