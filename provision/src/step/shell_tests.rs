//! Shell steps on a real sshd.

use std::fs;

use super::*;
use crate::output::{Output, Stream};
use crate::session::sshd::{Server, Sshd};

#[derive(Default)]
struct Record {
    out: String,
    err: String,
    commands: Vec<String>,
    notes: Vec<String>,
}

impl Output for Record {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        match stream {
            Stream::Stdout => self.out.push_str(&text),
            Stream::Stderr => self.err.push_str(&text),
        }
    }
}

impl Log for Record {
    fn command(&mut self, number: usize, total: usize, text: &str) {
        self.commands.push(format!("{number}/{total} {text}"));
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

async fn guest(sshd: &Sshd) -> (Guest, Server) {
    let (session, server) = sshd.session().await;
    let environment = vec![("BUILD".into(), "b1".into()), ("ROLE".into(), "none".into())];
    (Guest { session, environment, directory: sshd.folder.path().to_owned() }, server)
}

fn inline(commands: &[&str]) -> ShellStep {
    ShellStep::new(ShellSource::Inline(
        commands.iter().map(|&command| command.to_owned()).collect(),
    ))
}

fn scripts(paths: &[&str]) -> ShellStep {
    ShellStep::new(ShellSource::Scripts(paths.iter().map(PathBuf::from).collect()))
}

#[tokio::test]
async fn inline_commands_share_a_shell_and_are_told_one_by_one() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let mut step = inline(&["cd /usr", "X=kept", "echo $BUILD $ROLE $X; pwd; echo warn >&2"]);
    step.env.push(("ROLE".into(), "web".into()));
    let mut log = Record::default();
    let result = step.run(&guest, &mut log).await.expect("done");
    assert_eq!(result.outcome, Outcome::Finished(ExitStatus::Code(0)));
    assert_eq!((log.out.as_str(), log.err.as_str()), ("b1 web kept\n/usr\n", "warn\n"));
    assert_eq!(log.commands[..2], ["1/3 cd /usr", "2/3 X=kept"]);
}

#[tokio::test]
async fn a_failing_command_is_named_with_its_code_and_its_last_lines() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let step = inline(&[
        "echo before",
        "for i in 1 2 3; do echo line $i; done; echo bad >&2; exit 9",
        "echo never",
    ]);
    let error = step.run(&guest, &mut ()).await.expect_err("failed");
    assert!(error.to_string().starts_with("Command 2 of 3 (for i in 1 2 3;"), "{error}");
    assert!(error.to_string().ends_with("failed: exit code 9"), "{error}");
    assert_eq!(error.exit_code(), Some(9));
    let mut lines: Vec<&str> = error.tail().iter().map(|line| line.text.as_str()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["bad", "line 1", "line 2", "line 3"]);
}

#[tokio::test]
async fn expected_codes_are_success_and_others_say_what_was_expected() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let mut step = inline(&["(exit 2)", "echo on; exit 2"]);
    step.expect = vec![0, 2];
    assert_eq!(
        step.run(&guest, &mut ()).await.expect("done").outcome,
        Outcome::Finished(ExitStatus::Code(2))
    );
    step.expect = vec![3];
    let error = step.run(&guest, &mut ()).await.expect_err("failed");
    assert!(error.to_string().ends_with("exit code 2, expected 3"), "{error}");
}

#[tokio::test]
async fn scripts_run_in_order_with_their_interpreters() {
    let sshd = Sshd::new();
    fs::write(sshd.path("one.sh"), "#!/bin/bash\necho one $ROLE ${BASH_VERSION:+bash}\n")
        .expect("write");
    fs::write(
        sshd.path("two.py"),
        "#!/usr/bin/env python3\nimport os; print('two', os.getcwd())\n",
    )
    .expect("write");
    fs::write(sshd.path("three"), "echo three; exit 1\n").expect("write");
    let (guest, _server) = guest(&sshd).await;
    let mut step = scripts(&["one.sh", "two.py", "three", "never"]);
    step.workdir = Some("/".into());
    let mut log = Record::default();
    let error = step.run(&guest, &mut log).await.expect_err("failed");
    assert_eq!(error.to_string(), "Script three failed: exit code 1");
    assert_eq!(log.out, "one none bash\ntwo /\nthree\n");
    assert_eq!(log.commands, ["1/4 one.sh", "2/4 two.py", "3/4 three"]);
}

#[tokio::test]
async fn another_shell_runs_inline_commands_as_one_program() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let mut step = inline(&["import sys", "print('python', sys.argv[0][-4:])", "sys.exit(6)"]);
    step.shell = Some(vec!["/usr/bin/python3".into(), "-u".into()]);
    let mut log = Record::default();
    let error = step.run(&guest, &mut log).await.expect_err("failed");
    assert_eq!(error.to_string(), "Inline commands failed: exit code 6");
    assert_eq!(log.out, "python step\n");
}

#[tokio::test]
async fn a_step_that_takes_too_long_is_ended() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let mut step = inline(&["echo begin", "sleep 1000"]);
    step.timeout = Some(Duration::from_secs(1));
    let error = step.run(&guest, &mut ()).await.expect_err("failed");
    assert_eq!(
        error.to_string(),
        "Command 2 of 2 (sleep 1000) ran longer than 1.0 s and was killed"
    );
}

/// Ends the server under itself, as a reboot does: the wrapper's parent is the server of this connection.
const LEAVE: &str = "kill -KILL $(ps -o ppid= -p $PPID)";

#[tokio::test]
async fn a_guest_that_leaves_is_a_reboot_only_where_the_step_says_so() {
    let sshd = Sshd::new();
    let (first, _server) = guest(&sshd).await;
    let mut step = inline(&["echo going; sleep 2", LEAVE, "sleep 100"]);
    let error = step.run(&first, &mut ()).await.expect_err("lost");
    assert!(matches!(&error, StepError::Disconnected { started: true, .. }), "{error:?}");
    assert!(error.is_disconnect());
    step.may_reboot = true;
    let again = step.run(&first, &mut ()).await.expect_err("a dead session cannot start it");
    assert!(matches!(&again, StepError::Disconnected { started: false, .. }), "{again:?}");
    let (second, _server) = guest(&sshd).await;
    let result = step.run(&second, &mut ()).await.expect("rebooted");
    assert!(matches!(result.outcome, Outcome::Disconnected { .. }));
}

#[test]
fn reboots_are_known_by_their_usual_names() {
    for command in [
        "reboot",
        "sudo -n reboot",
        "sudo systemctl reboot",
        "/sbin/shutdown -r now",
        "exec init 6",
    ] {
        assert!(is_reboot(command), "{command}");
    }
    for command in ["echo reboot", "shutdown -h now", "systemctl restart ssh", "rebootd", ""] {
        assert!(!is_reboot(command), "{command}");
    }
}

#[test]
fn checks_find_what_needs_no_guest() {
    let folder = tempfile::tempdir().expect("folder");
    let context = CheckContext { directory: folder.path().to_owned() };
    fs::write(folder.path().join("good.sh"), "#!/bin/sh\n").expect("write");
    fs::write(folder.path().join("dos.sh"), "#!/bin/sh\r\necho\r\n").expect("write");
    fs::create_dir(folder.path().join("folder")).expect("folder");
    let large = fs::File::create(folder.path().join("large")).expect("file");
    large.set_len(MAX_SCRIPT + 1).expect("length");
    assert!(scripts(&["good.sh"]).check(&context).is_ok());
    assert!(matches!(scripts(&["none.sh"]).check(&context), Err(CheckError::Unreadable { .. })));
    assert!(matches!(scripts(&["folder"]).check(&context), Err(CheckError::NotAFile { .. })));
    assert!(matches!(scripts(&["large"]).check(&context), Err(CheckError::TooLarge { .. })));
    let dos = scripts(&["dos.sh"]).check(&context).expect_err("refused");
    assert!(dos.to_string().contains("\"/bin/sh\\r\""), "{dos}");
    assert!(matches!(scripts(&[]).check(&context), Err(CheckError::Empty)));
    assert!(matches!(inline(&[" "]).check(&context), Err(CheckError::Empty)));
    let with = |change: fn(&mut ShellStep)| {
        let mut step = inline(&["true"]);
        change(&mut step);
        step.check(&context)
    };
    assert!(with(|_| ()).is_ok());
    assert!(matches!(
        with(|s| s.env.push(("A B".into(), String::new()))),
        Err(CheckError::VariableName { .. })
    ));
    assert!(matches!(with(|s| s.expect = vec![300]), Err(CheckError::ExitCode { code: 300 })));
    assert!(matches!(
        with(|s| s.privilege = Privilege::User("a;b".into())),
        Err(CheckError::UserName { .. })
    ));
}

#[test]
fn titles_are_one_line() {
    assert_eq!(inline(&["echo a\necho b", "x"]).title(), "shell: echo a… (and 1 more)");
    assert_eq!(scripts(&["a.sh", "b.sh"]).title(), "shell: a.sh, b.sh");
}

#[tokio::test]
async fn a_step_is_tried_again_as_often_as_it_says_and_no_more() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let count = sshd.folder.path().join("count");
    let text = format!("echo x >> {0}; test $(wc -l < {0}) -ge 3", count.display());
    let mut step = inline(&[&text]);
    step.retries = 1;
    let mut log = Record::default();
    let error = step.run(&guest, &mut log).await.expect_err("failed");
    assert_eq!((error.exit_code(), log.notes.len()), (Some(1), 1));
    assert!(log.notes[0].contains("once more"), "{:?}", log.notes);
    fs::remove_file(&count).expect("remove");
    step.retries = 5;
    step.run(&guest, &mut ()).await.expect("done");
    assert_eq!(fs::read_to_string(&count).expect("count"), "x\nx\nx\n");
}

#[tokio::test]
async fn a_step_that_hangs_is_tried_again_after_its_time() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    let mark = sshd.folder.path().join("mark");
    let text = format!("test -e {0} && exit 0; touch {0}; sleep 600", mark.display());
    let mut step = inline(&[&text]);
    (step.retries, step.timeout) = (1, Some(Duration::from_secs(10)));
    step.run(&guest, &mut ()).await.expect("done");
}
