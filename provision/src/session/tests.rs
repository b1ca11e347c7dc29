//! Sessions against OpenSSH's own server, and against streams that are no server.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::sshd::Sshd;
use super::*;
use crate::command::{Command, ExitStatus};

const SHORT: Duration = Duration::from_millis(300);

async fn refused(stream: UnixStream) -> ConnectError {
    let key = BuildKey::generate("x").expect("key");
    Session::connect(stream, "root", &key, SHORT).await.expect_err("no session")
}

#[tokio::test]
async fn a_session_stands_and_runs_commands() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    assert!(session.server().starts_with("SSH-2.0-OpenSSH"));
    assert!(session.host_key().to_string().starts_with("SHA256:"));
    let seen =
        session.capture(&Command::shell("echo out; echo err >&2; exit 3")).await.expect("status");
    assert_eq!(
        (seen.status, seen.stdout.as_str(), seen.stderr.as_str()),
        (ExitStatus::Code(3), "out\n", "err\n")
    );
    let log = std::fs::read_to_string(sshd.path("log")).expect("log");
    assert!(!log.contains("disconnect"), "{log}");
    session.close().await;
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_session_is_told_apart() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    drop(theirs);
    assert!(matches!(refused(ours).await, ConnectError::ClosedBeforeBanner));

    let (ours, theirs) = UnixStream::pair().expect("pair");
    assert!(matches!(refused(ours).await, ConnectError::NoBanner { waited } if waited >= SHORT));
    drop(theirs);

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("write");
    let error = refused(ours).await;
    assert!(
        matches!(&error, ConnectError::NotSsh { received } if received == "HTTP/1.1 400 Bad Request"),
        "{error:?}"
    );

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs.write_all(b"Exceeded MaxStartups\r\n").await.expect("write");
    drop(theirs);
    assert!(matches!(refused(ours).await, ConnectError::NotSsh { .. }));

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs.write_all(b"SSH-2.0-Dead\r\n").await.expect("write");
    assert!(matches!(
        refused(ours).await,
        ConnectError::TimedOut { phase: Phase::KeyExchange, .. }
    ));
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.expect("our side is closed after a time-out");

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs.write_all(b"SSH-2.0-Gone\r\n").await.expect("write");
    drop(theirs);
    let error = refused(ours).await;
    assert!(matches!(error, ConnectError::Lost { phase: Phase::KeyExchange, .. }), "{error:?}");

    let (ours, mut theirs) = UnixStream::pair().expect("pair");
    theirs
        .write_all(b"SSH-2.0-Odd\r\n\xff\xff\xff\xff rubbish that is no packet")
        .await
        .expect("write");
    let error = refused(ours).await;
    assert!(matches!(error, ConnectError::KeyExchange { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_without_a_common_algorithm_is_told_by_what_it_offers() {
    let sshd = Sshd::with("Ciphers aes256-cbc");
    let (stream, _server) = sshd.serve();
    let error = Session::log_in(stream, &sshd.login()).await.expect_err("no session");
    assert_eq!(error.to_string(), "No cipher algorithm in common; the guest offers aes256-cbc");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_refused_key_says_what_the_server_would_take() {
    let sshd = Sshd::with("KbdInteractiveAuthentication yes\nPasswordAuthentication yes");
    let (stream, _server) = sshd.serve();
    let login = Login { key: BuildKey::generate("other").expect("key"), ..sshd.login() };
    let error = Session::log_in(stream, &login).await.expect_err("refused");
    assert!(
        matches!(&error, ConnectError::KeyRefused { offered, .. } if offered.iter().any(|m| m == "password"))
    );
    assert!(
        error.to_string().starts_with(&format!("The guest refused the key of user {}", sshd.user)),
        "{error}"
    );
}

#[tokio::test]
async fn the_host_key_can_be_pinned() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let line = std::fs::read_to_string(sshd.path("host.pub")).expect("public key");
    let shown = session.host_key().openssh();
    assert!(line.starts_with(&format!("{shown} ")), "{line:?} begins not with {shown:?}");
    let pinned = HostKey::from_openssh(shown).expect("a key");
    assert_eq!(pinned, *session.host_key());
    assert!(HostKey::from_openssh("ssh-ed25519 AAAA").is_none());
    let (stream, _again) = sshd.serve();
    let login = Login { host_key: Some(pinned.clone()), ..sshd.login() };
    Session::log_in(stream, &login).await.expect("the same key is let in");
    let other = Sshd::new();
    let (stream, _other) = other.serve();
    let login = Login { host_key: Some(pinned), ..other.login() };
    let error = Session::log_in(stream, &login).await.expect_err("another key");
    assert!(matches!(error, ConnectError::HostKeyChanged { .. }), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_stops_answering_is_noticed() {
    // A relay that goes silent: the stream stays open, as with a guest that hangs.
    let sshd = Sshd::new();
    let (mut server_side, _server) = sshd.serve();
    let (ours, mut relay) = UnixStream::pair().expect("pair");
    let (silence, silenced) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let relaying = tokio::io::copy_bidirectional(&mut relay, &mut server_side);
        tokio::select! { _ = relaying => {} _ = silenced => {} }
        std::future::pending::<()>().await;
        drop((relay, server_side));
    });
    let login = Login { keepalive: Duration::from_millis(100), keepalive_limit: 3, ..sshd.login() };
    let session = Session::log_in(ours, &login).await.expect("session");
    silence.send(()).expect("relay");
    let error = session.capture(&Command::shell("true")).await.expect_err("lost");
    assert!(error.to_string().contains("keep-alive"), "{error}");
}

#[tokio::test]
async fn attempts_go_on_until_the_guest_lets_us_in() {
    let sshd = Sshd::new();
    let mut calls = 0;
    let mut causes = Vec::new();
    let mut servers = Vec::new();
    let mut silent = Vec::new();
    let login = Login { timeout: Duration::from_secs(20), ..sshd.login() };
    let dial = || {
        calls += 1;
        let result = match calls {
            1 | 2 => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
            3 => {
                let (ours, theirs) = UnixStream::pair().expect("pair");
                drop(theirs);
                Ok(ours)
            }
            4 => {
                let (ours, theirs) = UnixStream::pair().expect("pair");
                silent.push(theirs);
                silent.clear();
                Ok(ours)
            }
            _ => {
                let (stream, server) = sshd.serve();
                servers.push(server);
                Ok(stream)
            }
        };
        std::future::ready(result)
    };
    let session = connect_until(dial, &login, Duration::from_secs(60), |attempts| {
        causes = attempts.causes().iter().map(|cause| cause.error.to_string()).collect();
        ControlFlow::Continue(())
    });
    let session = session.await.expect("session");
    assert!(session.capture(&Command::shell("true")).await.expect("status").status.success());
    assert_eq!(causes.len(), 2, "{causes:?}");
    assert!(
        causes[0].contains("was not reached") && causes[1].contains("before an SSH banner"),
        "{causes:?}"
    );
}

#[tokio::test]
async fn giving_up_tells_the_last_cause_and_how_often_it_came() {
    let key = BuildKey::generate("x").expect("key");
    let dial =
        || std::future::ready(Err::<UnixStream, _>(std::io::Error::other("no DHCP lease yet")));
    let gave_up =
        connect_until(dial, &Login::new("root", &key), Duration::from_millis(700), |_| {
            ControlFlow::Continue(())
        })
        .await
        .expect_err("no");
    let last = gave_up.attempts.last().expect("cause");
    assert!(last.count >= 2 && gave_up.attempts.causes().len() == 1);
    assert!(gave_up.to_string().contains("no DHCP lease yet"), "{gave_up}");
    // One who knows better need not wait.
    let hour = Duration::from_secs(3600);
    let enough = |attempts: &Attempts| match attempts.last().is_some_and(|last| last.count == 2) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let gave_up = connect_until(dial, &Login::new("root", &key), hour, enough).await;
    assert_eq!(gave_up.expect_err("no").attempts.causes()[0].count, 2);
}
