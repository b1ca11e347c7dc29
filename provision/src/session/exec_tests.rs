//! Commands on OpenSSH's own server.

use std::time::{Duration, Instant};

use super::super::sshd::{Sshd, scripts};
use super::*;
use crate::command::Program;
use crate::output::Tail;

#[tokio::test]
async fn environment_arguments_folder_and_input_reach_the_program() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let mut command =
        Command::new(["/bin/sh", "-c", "pwd; echo \"$A|$1\"; cat", "name", "it's \"here\""]);
    command.env.push(("A".into(), "two\nlines 'and' $quotes".into()));
    command.workdir = Some("/usr".into());
    command.stdin = Some(b"input \x00\xff end".to_vec());
    let seen = session.capture(&command).await.expect("status");
    assert_eq!(seen.stdout, "/usr\ntwo\nlines 'and' $quotes|it's \"here\"\ninput \0\u{fffd} end");
}

#[tokio::test]
async fn a_script_runs_under_its_own_interpreter_and_leaves_nothing_behind() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let script = "#!/usr/bin/perl\nuse strict; print \"$0 @ARGV\\n\"; print STDERR <STDIN> // 'no input'; exit 4;\n";
    let mut command = Command::script("setup.pl", script);
    if let Program::Script { arguments, .. } = &mut command.program {
        arguments.push("one two".into());
    }
    let seen = session.capture(&command).await.expect("status");
    assert_eq!(seen.status, ExitStatus::Code(4), "{seen:?}");
    let (path, rest) = seen.stdout.split_once(' ').expect("path");
    assert!(path.contains("/kvmbake.") && path.ends_with("/setup.pl"), "{path}");
    assert_eq!(rest, "one two\n");
    assert_eq!(seen.stderr, "no input");
    assert!(!std::path::Path::new(path).parent().expect("folder").exists());
}

#[tokio::test]
async fn a_large_script_and_large_output_pass_whole() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let mut script =
        "#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' x\necho end >&2\nexit 0\n".to_owned();
    script.push_str(&"# padding\n".repeat(600_000));
    struct Count(u64, Vec<u8>);
    impl Output for Count {
        fn write(&mut self, stream: Stream, bytes: &[u8]) {
            match stream {
                Stream::Stdout => {
                    self.0 += bytes.iter().filter(|&&byte| byte == b'x').count() as u64
                }
                Stream::Stderr => self.1.extend_from_slice(bytes),
            }
        }
    }
    let mut count = Count(0, Vec::new());
    let status = session.run(&Command::script("big", script), &mut count).await.expect("status");
    assert!(status.success());
    assert_eq!((count.0, count.1.as_slice()), (20_000_000, b"end\n".as_slice()));
}

#[tokio::test]
async fn output_is_streamed_while_the_command_runs() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let gate = sshd.path("gate");
    struct Opens(std::path::PathBuf);
    impl Output for Opens {
        fn write(&mut self, _: Stream, _: &[u8]) {
            std::fs::write(&self.0, "").expect("write");
        }
    }
    // Ends only if the first line is seen before the end.
    let command = Command::shell(format!(
        "echo waiting; until [ -e {} ]; do sleep 0.05; done",
        gate.display()
    ));
    let command = command.with_timeout(Duration::from_secs(60));
    assert!(session.run(&command, &mut Opens(gate)).await.expect("status").success());
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let pids = sshd.path("pids");
    let script = format!(
        "trap '' TERM\n(trap '' TERM; exec sleep 1000) &\necho $! $$ >{0}.new; mv {0}.new {0}\nwhile :; do echo on; sleep 0.01; done",
        pids.display()
    );
    let started = Instant::now();
    let mut tail = Tail::new(5);
    let limit = Duration::from_secs(2);
    let result = session.run(&Command::shell(script).with_timeout(limit), &mut tail).await;
    assert!(matches!(result, Err(SessionError::TimedOut { ended: true, .. })), "{result:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
    for pid in std::fs::read_to_string(&pids).expect("pids").split_ascii_whitespace() {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "process {pid} lives: {state}");
    }
    assert_eq!(tail.into_lines().last().map(|line| line.text.clone()).as_deref(), Some("on"));
    let after =
        session.capture(&Command::shell("echo still here")).await.expect("the session lives on");
    assert_eq!(after.stdout, "still here\n");
}

#[tokio::test]
async fn a_flood_of_output_does_not_keep_a_command_alive_past_its_time() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    // Also with a limit that is over before the command has begun.
    for limit in [500, 0] {
        let command = Command::new(["yes"]).with_timeout(Duration::from_millis(limit));
        let result = session.run(&command, &mut ()).await;
        assert!(matches!(result, Err(SessionError::TimedOut { ended: true, .. })), "{result:?}");
    }
    assert_eq!(std::fs::read_dir(sshd.path("tmp")).expect("folder").count(), 0);
}

#[tokio::test]
async fn a_program_left_in_the_background_does_not_hold_the_command_up() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let started = Instant::now();
    let seen =
        session.capture(&Command::shell("sleep 30 & echo started $!")).await.expect("status");
    assert!(seen.status.success() && seen.stdout.starts_with("started"));
    assert!(started.elapsed() < Duration::from_secs(15));
    let pid = seen.stdout.trim().trim_start_matches("started ");
    let _ = session.capture(&Command::new(["kill", pid])).await;
}

#[tokio::test]
async fn death_by_a_signal_is_reported() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let seen = session.capture(&Command::shell("kill -SEGV $$")).await.expect("status");
    assert_eq!(seen.status.code(), 139);
    // The wrapper itself, as a shutdown kills it.
    let seen = session.capture(&Command::shell("kill -TERM $PPID")).await.expect("status");
    assert_eq!(seen.status, ExitStatus::Signal { name: "TERM".into(), core_dumped: false });
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    let mut command = Command::shell("true");
    command.workdir = Some("/not/there".into());
    let error = session.capture(&command).await.expect_err("not started");
    assert!(
        matches!(&error, SessionError::NotStarted { message, .. } if message.contains("/not/there")),
        "{error}"
    );
    let missing = session.capture(&Command::new(["/no/such/program"])).await.expect("status");
    assert_eq!(missing.status, ExitStatus::Code(127));
}

#[tokio::test]
async fn a_lost_connection_is_its_own_error() {
    let sshd = Sshd::new();
    let (session, mut server) = sshd.session().await;
    struct Kills<'a>(&'a mut super::super::sshd::Server);
    impl Output for Kills<'_> {
        fn write(&mut self, _: Stream, _: &[u8]) {
            self.0.kill();
        }
    }
    let command = Command::shell("echo going; exec sleep 20");
    let result = session.run(&command, &mut Kills(&mut server)).await;
    assert!(
        matches!(&result, Err(SessionError::ConnectionLost { started: true, .. })),
        "{result:?}"
    );
    let again = session.capture(&Command::shell("true")).await;
    assert!(
        matches!(&again, Err(SessionError::ConnectionLost { started: false, .. })),
        "{again:?}"
    );
    assert!(session.is_closed());
}

#[tokio::test]
async fn many_commands_follow_each_other_and_run_side_by_side() {
    // More than the ten sessions that sshd opens on one connection.
    let sshd = Sshd::new();
    let (session, _server) = sshd.session().await;
    for number in 0..30 {
        let seen =
            session.capture(&Command::new(["echo", &number.to_string()])).await.expect("status");
        assert_eq!(seen.stdout, format!("{number}\n"));
    }
    let (one, two) = (Command::shell("echo one"), Command::shell("echo two"));
    let (one, two) = tokio::join!(session.capture(&one), session.capture(&two));
    assert_eq!(
        (one.expect("one").stdout.as_str(), two.expect("two").stdout.as_str()),
        ("one\n", "two\n")
    );
}

#[tokio::test]
async fn real_sudo_and_su_change_the_user_and_a_command_under_them_can_be_killed() {
    let sshd = Sshd::new();
    let (mut session, _server) = sshd.session().await;
    assert_eq!(sshd.user, "root", "this test must run as root: it becomes other users");
    assert!(
        std::path::Path::new("/usr/bin/sudo").exists(),
        "sudo is missing: install the Debian package sudo"
    );
    let whoami =
        Command::shell("id -un; echo $HOME $1").with_privilege(Privilege::User("daemon".into()));
    let by_su = session.capture(&whoami).await.expect("su");
    assert_eq!(by_su.stdout.lines().next(), Some("daemon"), "{by_su:?}");
    session.set_user("debian");
    let by_sudo = session.capture(&whoami).await.expect("sudo");
    assert_eq!(by_sudo.stdout, by_su.stdout);
    let as_root = session
        .capture(&Command::shell("id -u").with_privilege(Privilege::Root))
        .await
        .expect("sudo");
    assert_eq!(as_root.stdout, "0\n");
    for privilege in [Privilege::Root, Privilege::User("daemon".into())] {
        let command =
            Command::shell("trap '' TERM; sleep 1000; sleep 1000").with_privilege(privilege);
        let result = session.run(&command.with_timeout(Duration::from_secs(1)), &mut ()).await;
        assert!(matches!(result, Err(SessionError::TimedOut { ended: true, .. })), "{result:?}");
    }
}

/// Puts a program called `sudo` before the real ones, for a session that believes it is not root.
async fn with_sudo(body: &str) -> (Sshd, Session, super::super::sshd::Server) {
    let tools = scripts(&[("sudo", body)]).keep();
    let sshd = Sshd::with(&format!("SetEnv PATH={}:/usr/bin:/bin", tools.display()));
    let (mut session, server) = sshd.session().await;
    session.set_user("debian");
    (sshd, session, server)
}

#[tokio::test]
async fn sudo_that_wants_a_password_is_named() {
    let (_sshd, session, _server) =
        with_sudo("echo 'sudo: a password is required' >&2; exit 1").await;
    let command = Command::shell("true").with_privilege(Privilege::Root);
    let error = session.capture(&command).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "sudo does not let debian run commands as root without a password: sudo: a password is required"
    );
}

#[tokio::test]
async fn sudo_is_given_the_user_and_nothing_of_the_command() {
    let (_sshd, session, _server) =
        with_sudo("echo \"$*\" >&2; while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"")
            .await;
    let mut command =
        Command::shell("echo $SECRET").with_privilege(Privilege::User("baker".into()));
    command.env.push(("SECRET".into(), "s3cret".into()));
    let seen = session.capture(&command).await.expect("status");
    assert_eq!(seen.stdout, "s3cret\n");
    assert_eq!(seen.stderr, "-n -H -u baker -- /bin/sh -c IFS= read -r b && eval \"$b\"\n");
}

#[tokio::test]
async fn a_password_is_given_to_sudo_alone_whether_it_wants_one_or_not() {
    let asks = "IFS= read -r given; [ \"$given\" = 'hunter 2' ] || { echo 'sudo: 1 incorrect password attempt' >&2; exit 1; }; ";
    for sudo in [asks, ""] {
        let body = format!(
            "{sudo}echo \"$*\" >&2; while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\""
        );
        let (_sshd, mut session, _server) = with_sudo(&body).await;
        session.set_sudo_password("hunter 2");
        let mut command =
            Command::shell("cat; echo done").with_privilege(Privilege::User("baker".into()));
        command.stdin = Some(b"its input\n".to_vec());
        let seen = session.capture(&command).await.expect("status");
        assert_eq!(seen.stdout, "its input\ndone\n");
        assert!(seen.stderr.starts_with("-k -S -p  -H -u baker -- /bin/sh -c "), "{seen:?}");
        assert!(!seen.stderr.contains("hunter"), "{seen:?}");
        let limit = Duration::from_secs(60);
        let line = session.ask(&Privilege::Root, limit, || "echo line".into()).await;
        assert_eq!(line.expect("status").stdout, "line\n");
        let command = Command::shell("trap '' TERM; sleep 1000").with_privilege(Privilege::Root);
        let result = session.run(&command.with_timeout(Duration::from_secs(1)), &mut ()).await;
        assert!(matches!(result, Err(SessionError::TimedOut { ended: true, .. })), "{result:?}");
    }
    let (_sshd, mut session, _server) = with_sudo(asks).await;
    session.set_sudo_password("guess");
    let command = Command::shell("true").with_privilege(Privilege::Root);
    assert_eq!(
        session.capture(&command).await.expect_err("refused").to_string(),
        "sudo does not let debian run commands as root with this password: \
         sudo: 1 incorrect password attempt"
    );
}

#[test]
fn a_password_is_one_line_of_text() {
    use super::super::SudoPassword;
    for wrong in ["", ":", "a\nb", "a\rb", "a\0b"] {
        assert_eq!(SudoPassword::new(wrong), None, "{wrong:?}");
    }
    let password = SudoPassword::new("hunter 2").expect("a line");
    assert_eq!(format!("{password:?}"), "SudoPassword");
}

#[tokio::test]
async fn a_line_is_asked_with_the_rights_it_needs() {
    let limit = Duration::from_secs(60);
    let (_sshd, session, _server) =
        with_sudo("echo 'sudo: a password is required' >&2; exit 1").await;
    let ask =
        async |privilege| session.ask(&privilege, limit, || "echo $((6 * 7)); exit 3".into()).await;
    let seen = ask(Privilege::Login).await.expect("status");
    assert_eq!((seen.status, seen.stdout.as_str()), (ExitStatus::Code(3), "42\n"));
    let error = ask(Privilege::Root).await.expect_err("refused");
    assert!(matches!(error, SessionError::SudoRefused { .. }), "{error:?}");
}
