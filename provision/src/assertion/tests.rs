//! The questions, asked of this very system and of an agent in a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::session::sshd::Sshd;

fn file(path: &std::path::Path, mode: Option<u32>, contains: Option<&str>) -> Assertion {
    let path = path.to_str().expect("text").to_owned();
    Assertion::File { path, mode, contains: contains.map(str::to_owned) }
}

fn shell(command: &str, expect: &[i32], contains: Option<&str>) -> Assertion {
    let contains = contains.map(str::to_owned);
    Assertion::Shell { command: command.into(), expect: expect.to_vec(), contains }
}

#[tokio::test]
async fn what_holds_holds_and_what_does_not_has_a_reason() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let here = sshd.path("it's here");
    fs::write(&here, "some 'text'\n").expect("write");
    fs::set_permissions(&here, fs::Permissions::from_mode(0o640)).expect("mode");
    let (gone, text) = (sshd.path("gone"), here.display().to_string());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    for (assertion, expected) in [
        (file(&here, Some(0o640), Some("'text'")), None),
        (file(&here, Some(0o600), None), Some("its mode is 640")),
        (file(&here, None, Some("other")), Some("the text is not in it")),
        (file(&gone, None, None), Some("it does not exist")),
        (Assertion::Absent(gone.display().to_string()), None),
        (Assertion::Absent(text), Some("it exists")),
        (Assertion::Port(port), None),
        (shell("echo a; exit 3", &[0, 3], Some("a")), None),
        (shell("echo why >&2; exit 4", &[0], None), Some("exit code 4: why")),
        (shell("echo b", &[0], Some("a")), Some("its output has no \"a\": b")),
    ] {
        let answer =
            assertion.ask(&session, false, Duration::ZERO.max(SHORT)).await.expect("asked");
        assert_eq!(answer.as_deref(), expected, "{assertion:?}");
    }
    drop(listener);
    let answer = Assertion::Port(port).ask(&session, false, Duration::ZERO).await.expect("asked");
    assert_eq!(answer.as_deref(), Some("nothing listens at it"));
    let hangs = shell("sleep 100", &[0], None);
    let answer = hangs.ask(&session, false, Duration::from_secs(1)).await.expect("asked");
    assert_eq!(answer.as_deref(), Some("it took longer than 1 s"));
}

/// What the questions that fail are asked for.
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn the_contract_of_vm_bootstrap_is_judged_by_what_the_script_counts() {
    // An agent that keeps it, and others that do not: what each does when its folder says to go on.
    let runs = "bash ./served";
    let keeps = format!("[ -e start-bootstrap ] || exit 0; if {runs}; then rm start-bootstrap; fi");
    for (agent, maximum, expected) in [
        (keeps.as_str(), "10", ""),
        (keeps.as_str(), "3", "it runs a script 3 times only"),
        (
            &format!("[ -e start-bootstrap ] && {runs}; rm start-bootstrap"),
            "10",
            "the script ran 1 times, not 4",
        ),
        (
            &format!("{runs} && rm -f start-bootstrap"),
            "10",
            "it ran the script again after a success",
        ),
        (runs, "10", "it goes on after a success"),
        ("exit 0", "10", "it does not run the script"),
    ] {
        for shell in ["/bin/dash", "/bin/busybox sh"] {
            let root = tempfile::tempdir().expect("folder");
            let folder = root.path().join("bootstrap");
            fs::create_dir(&folder).expect("folder");
            let place =
                |text: &str| text.replace("/root/bootstrap", folder.to_str().expect("text"));
            let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("write");
            write("vm-bootstrap", &format!("#!/bin/sh\ncd {}\n{agent}\n", folder.display()));
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(folder.join("vm-bootstrap"), mode).expect("mode");
            write("served", &place(&bootstrap_script(3)));
            write("bootstrap-max-retry", maximum);
            write("start-bootstrap", "");
            let cron = root.path().join("cron.d");
            fs::create_dir(&cron).expect("folder");
            fs::write(cron.join("a"), folder.join("vm-bootstrap").to_str().expect("text"))
                .expect("write");
            let script = Assertion::Bootstrap { fails: 3 }.script(SHORT);
            let script = place(&script)
                .replace("/etc/cron.d", cron.to_str().expect("text"))
                .replace("/run/systemd/system", "/nowhere")
                .replace("/var/log/", &format!("{}/", root.path().display()))
                .replace("sleep 1", ":");
            let words: Vec<&str> = shell.split(' ').collect();
            let output = std::process::Command::new(words[0])
                .args(&words[1..])
                .args(["-c", &script])
                .output()
                .expect("shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{agent}");
            assert_eq!(output.status.success(), expected.is_empty(), "{output:?}");
        }
    }
}
