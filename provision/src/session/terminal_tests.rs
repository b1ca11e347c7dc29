//! Terminals of OpenSSH's own server, over streams that the tests hold.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::super::sshd::Sshd;
use super::*;

fn request(command: Option<&str>) -> TerminalRequest {
    TerminalRequest { term: "vt100".into(), command: command.map(Into::into) }
}

/// Reads until what was shown holds `what`.
async fn expect(stream: &mut DuplexStream, shown: &mut String, what: &str) {
    let seen = timeout(Duration::from_secs(20), async {
        let mut chunk = [0; 1024];
        while !shown.contains(what) {
            let len = stream.read(&mut chunk).await.expect("read");
            assert!(len > 0, "the output ended after {shown:?}");
            shown.push_str(&String::from_utf8_lossy(&chunk[..len]));
        }
    });
    assert!(seen.await.is_ok(), "no {what:?} in {shown:?}");
}

#[tokio::test]
async fn a_login_shell_is_worked_with_until_it_exits() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let (theirs, mut keys) = duplex(4096);
    let (screen, mut shown_to_us) = duplex(4096);
    let (sizes, size) = watch::channel(TerminalSize { columns: 100, rows: 30 });
    let request = request(None);
    let joined = session.terminal(&request, size, theirs, screen);
    let working = async {
        let mut shown = String::new();
        keys.write_all(b"exec /bin/sh\rtty; stty size; echo $TERM\r").await.expect("type");
        expect(&mut shown_to_us, &mut shown, "30 100\r\nvt100\r\n").await;
        assert!(shown.contains("/dev/pts/"), "{shown}");
        sizes.send(TerminalSize { columns: 20, rows: 7 }).expect("size");
        let wait = "until [ \"$(stty size)\" = '7 20' ]; do sleep 0.05; done; echo resi''zed\r";
        keys.write_all(wait.as_bytes()).await.expect("type");
        expect(&mut shown_to_us, &mut shown, "resized").await;
        // Erasing takes a whole character, as the terminal reads UTF-8.
        keys.write_all("printf %s é\u{7f}x | od -An -c\r".as_bytes()).await.expect("type");
        expect(&mut shown_to_us, &mut shown, " x\r\n").await;
        keys.write_all(b"exit 9\r").await.expect("type");
    };
    let (status, ()) = tokio::join!(joined, working);
    assert_eq!(status.expect("status"), ExitStatus::Code(9));
}

#[tokio::test]
async fn one_command_gets_a_terminal_and_its_signal_is_told() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let (_sizes, size) = watch::channel(TerminalSize::default());
    let mut shown = Vec::new();
    let command = request(Some("test -t 0 && test -t 1 && stty size && exit 3"));
    // The end of the input is not the end of the command.
    let input = tokio::io::empty();
    let status = session.terminal(&command, size.clone(), input, &mut shown).await;
    assert_eq!(status.expect("status"), ExitStatus::Code(3));
    assert_eq!(String::from_utf8_lossy(&shown), "24 80\r\n");
    let command = request(Some("kill -KILL $$"));
    let status = session.terminal(&command, size, tokio::io::empty(), tokio::io::sink()).await;
    assert_eq!(status.expect("status").code(), 137);
}

#[tokio::test]
async fn much_output_passes_whole_while_nothing_is_typed() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let (_sizes, size) = watch::channel(TerminalSize::default());
    let (_keys, input) = duplex(16);
    let mut shown = Vec::new();
    let command = request(Some("head -c 3000000 /dev/zero | tr '\\0' x"));
    session.terminal(&command, size, input, &mut shown).await.expect("status");
    assert!(shown.len() == 3_000_000 && shown.iter().all(|&byte| byte == b'x'));
}

#[tokio::test]
async fn a_server_without_terminals_is_told_apart() {
    let sshd = Sshd::with("PermitTTY no");
    let (session, _server) = sshd.session().await;
    let (_sizes, size) = watch::channel(TerminalSize::default());
    let (_keys, input) = duplex(16);
    let command = request(Some("sleep 600"));
    let ended = session.terminal(&command, size, input, tokio::io::sink()).await;
    assert!(matches!(ended, Err(TerminalError::Refused)), "{ended:?}");
}

#[tokio::test]
async fn a_guest_that_goes_away_ends_its_terminal() {
    let sshd = Sshd::new();
    let (session, mut server) = sshd.session().await;
    let (_sizes, size) = watch::channel(TerminalSize::default());
    let (_keys, input) = duplex(16);
    let (screen, mut shown_to_us) = duplex(64);
    let command = request(Some("echo here; exec sleep 600"));
    let joined = session.terminal(&command, size, input, screen);
    let killing = async {
        expect(&mut shown_to_us, &mut String::new(), "here").await;
        server.kill();
    };
    let (ended, ()) = tokio::join!(joined, killing);
    let lost = matches!(
        &ended,
        Err(TerminalError::Session(SessionError::ConnectionLost { started: true, .. }))
    );
    assert!(lost, "{ended:?}");
}

#[tokio::test]
async fn a_screen_that_breaks_ends_the_terminal() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let (_sizes, size) = watch::channel(TerminalSize::default());
    let (_keys, input) = duplex(16);
    let (screen, gone) = duplex(16);
    drop(gone);
    let command = request(Some("yes"));
    let ended = session.terminal(&command, size, input, screen).await;
    assert!(matches!(ended, Err(TerminalError::Output(_))), "{ended:?}");
}
