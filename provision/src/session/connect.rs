//! From a stream to an authenticated session, and from a failure to its cause.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use russh::client::{self, AuthResult, Handle};
use russh::{MethodSet, Preferred, cipher, kex};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tap::{Opening, Tap};
use super::{ConnectError, Guard, Login, Phase, Seen, lock};

/// Why [`begin`] ended early.
pub(super) enum Failure {
    Library(russh::Error),
    Refused(MethodSet),
}

/// Brings a stream to an authenticated session; `phase` tells how far it is.
pub(super) async fn begin<S>(
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

/// Says what stood in the way, from what was seen.
pub(super) fn diagnose(
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
