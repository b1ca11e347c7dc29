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
mod error;
mod exec;
mod remote;
mod tap;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, DisconnectReason, Handle};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{Disconnect, MethodSet, Preferred, cipher, kex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::key::BuildKey;

pub use attempts::{Attempt, AttemptError, Attempts, GaveUp, connect_until};
pub use error::{ConnectError, Phase, SessionError};
pub use exec::Captured;
pub(crate) use remote::is_variable_name;
use tap::{Opening, Tap};

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
        }
    }
}

/// The guest's host key, to be compared and shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    fingerprint: String,
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
        let fingerprint = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                key.fingerprint(HashAlg::Sha256).to_string()
            }
            PublicKeyOrCertificate::Certificate(certificate) => {
                certificate.public_key().fingerprint(HashAlg::Sha256).to_string()
            }
        };
        let found = HostKey { fingerprint };
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
                let host_key = host_key.unwrap_or_else(|| HostKey { fingerprint: String::new() });
                let banner = if let Opening::Banner(banner) = tap.opening() {
                    banner
                } else {
                    String::new()
                };
                Ok(Session { handle, tap, seen, user: login.user.clone(), host_key, banner })
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
        // The library has no future for this that does not take the session, so it is looked at ten times a second.
        let deadline = Instant::now() + limit;
        while !self.is_closed() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
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

/// Why [`begin`] ended early.
enum Failure {
    Library(russh::Error),
    Refused(MethodSet),
}

async fn begin<S>(
    stream: S,
    login: &Login,
    seen: &Arc<Mutex<Seen>>,
    phase: &mut Phase,
) -> Result<Handle<Guard>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let guard = Guard { expected: login.host_key.clone(), seen: seen.clone() };
    let connecting = client::connect_stream(Arc::new(configuration(login)), stream, guard);
    let mut handle = connecting.await.map_err(Failure::Library)?;
    *phase = Phase::Authentication;
    match handle
        .authenticate_publickey(&login.user, login.key.signer())
        .await
        .map_err(Failure::Library)?
    {
        AuthResult::Success => Ok(handle),
        AuthResult::Failure { .. } if handle.is_closed() => {
            Err(Failure::Library(russh::Error::Disconnect))
        }
        AuthResult::Failure { remaining_methods, .. } => Err(Failure::Refused(remaining_methods)),
    }
}

fn diagnose(
    failure: Failure,
    phase: Phase,
    tap: &Tap,
    seen: &Mutex<Seen>,
    login: &Login,
) -> ConnectError {
    let seen = lock(seen);
    let end = seen.end.clone().unwrap_or_default();
    let error = match failure {
        Failure::Refused(methods) => {
            let offered = methods.iter().map(|method| <&str>::from(method).to_owned()).collect();
            let message = seen.auth_banner.clone();
            return ConnectError::KeyRefused { user: login.user.clone(), offered, message };
        }
        Failure::Library(error) => error,
    };
    if let (true, Some(found), Some(expected)) =
        (seen.refused_host_key, &seen.host_key, &login.host_key)
    {
        return ConnectError::HostKeyChanged { expected: expected.clone(), found: found.clone() };
    }
    match (tap.opening(), phase) {
        (Opening::Silence, _) => ConnectError::ClosedBeforeBanner,
        (Opening::Other(received), _) => ConnectError::NotSsh { received },
        (Opening::Banner(_), Phase::Authentication) => {
            let detail = if end.is_empty() { error.to_string() } else { end };
            ConnectError::Lost { phase: Phase::Authentication, detail }
        }
        (Opening::Banner(server), _) => match error {
            russh::Error::NoCommonAlgo { kind, ours, theirs } => ConnectError::NoCommonAlgorithm {
                kind: format!("{kind:?}").to_lowercase(),
                ours,
                theirs,
            },
            russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_) => {
                ConnectError::Lost { phase: Phase::KeyExchange, detail: "the stream ended".into() }
            }
            source => ConnectError::KeyExchange { server, source },
        },
    }
}

/// What we offer: the ciphers with hardware behind them first, and a window that keeps a fast guest busy.
fn configuration(login: &Login) -> client::Config {
    const KEX: &[kex::Name] = &[
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::MLKEM768X25519_SHA256,
        kex::ECDH_SHA2_NISTP256,
        kex::DH_GEX_SHA256,
        kex::DH_G16_SHA512,
        kex::DH_G14_SHA256,
        kex::EXTENSION_SUPPORT_AS_CLIENT,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    ];
    const CIPHERS: &[cipher::Name] = &[
        cipher::AES_256_GCM,
        cipher::AES_128_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    client::Config {
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            cipher: Cow::Borrowed(CIPHERS),
            ..Preferred::DEFAULT
        },
        window_size: 4 << 20,
        maximum_packet_size: 32 << 10,
        keepalive_interval: Some(login.keepalive),
        keepalive_max: login.keepalive_limit.max(1),
        inactivity_timeout: None,
        ..client::Config::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod sshd;
#[cfg(test)]
mod tests;
