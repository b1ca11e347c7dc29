//! The commands of the inner loop: `shell` in a guest as it was, and `watch`.

use std::time::{Duration, Instant};

use kvmbake_rig::Process;

use super::five::Five;
use crate::project::LIMIT;

#[test]
fn a_shell_sees_the_guest_after_its_step_and_what_it_writes_is_gone() {
    let five = Five::new("shell");
    let before = five.content();
    let line = "cat log; echo left > left; sudo sync; exit 7";
    let command = format!("shell p.toml --at three -- {}", kvmbake_rig::quote(line));
    let output = five.command(&command).run().unwrap().expect(7);
    assert_eq!(output.stdout, "one\ntwo\nthree web\n");
    assert!(!output.stderr.contains("reading the kernel"), "{}", output.stderr);
    assert_eq!(five.shell("3", "ls"), "log\n");
    assert_eq!(five.content(), before);
    assert_eq!(five.project.shell(&format!("ls -A {}/tmp", five.cache)), "");
    five.command("shell p.toml --at sealed").run().unwrap().expect(1);
}

#[test]
fn a_shell_after_a_step_that_is_not_there_makes_it_and_keeps_it() {
    let five = Five::new("shell-makes");
    five.write("five.sh", "#!/bin/sh\necho fifth >> log\n");
    assert_eq!(five.shell("5", "tail -n 1 log; echo sixth >> log"), "fifth\n");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 | sealed");
    assert_eq!(five.shell("5", "tail -n 1 log"), "fifth\n");
}

#[test]
#[ignore = "one of three tests of `kvmbake shell`; `make guest-long` runs it"]
fn a_shell_on_a_terminal_is_the_guests_own() {
    let five = Five::new("terminal");
    let command = five.command("shell p.toml --at 2");
    let mut shell = command.pty().spawn().unwrap();
    assert!(shell.wait_for("debian@", Duration::from_secs(120)), "a prompt: {:?}", shell.so_far());
    shell.type_keys("echo $((6 * 7)) $(tail -n 1 log) $(tty)\r").unwrap();
    assert!(shell.wait_for("42 two /dev/pts/", LIMIT), "{:?}", shell.so_far());
    shell.type_keys("exit 3\r").unwrap();
    shell.wait(Duration::from_secs(120)).expect(3);

    // Without a terminal there is no shell to open.
    let output = five.command("shell p.toml --at 2").run().unwrap();
    assert_eq!(output.status, 1, "{output:?}");
    assert!(output.stderr.contains("no terminal"), "{}", output.stderr);
}

#[test]
#[ignore = "starts three guests, minutes in the rig; `make guest-long` runs it"]
fn a_person_goes_past_a_breakpoint_looks_at_a_failure_and_has_the_step_tried_again() {
    let five = Five::new("person");
    let step = "[[step]]\nname = \"five\"";
    five.edit(step, &format!("[[step]]\nbreakpoint = \"look here\"\n\n{step}"));
    five.write("five.sh", "#!/bin/sh\ntouch /tmp/dirty\nexit 7\n");
    let mut build = five.command("run p.toml --on-error shell -o person").pty().spawn().unwrap();
    let mut answer = |question: &str, keys: &str| {
        assert!(build.wait_for(question, Duration::from_secs(240)), "{:?}", build.so_far());
        build.type_keys(keys).unwrap();
    };
    answer("stopped before step 5 (look here)", "\r");
    answer("Step 5 (five) failed", "");
    answer("debian@localhost", "echo $(tail -n 1 log) and $(ls /tmp/dirty)\r");
    answer("four and /tmp/dirty", "exit\r");
    five.write("five.sh", "#!/bin/sh\ntest ! -e /tmp/dirty && echo the fixed step\n");
    answer("retry, shell or abort?", "retry\r");
    answer("is tried again", "");
    // The guest is another one, and stops there too.
    wait_for_second(&build, "(look here)");
    build.type_keys("\r").unwrap();
    let output = build.wait(LIMIT).expect(0);
    assert!(output.stdout.contains("the fixed step"), "{}", output.stdout);
    five.project.judge("rm -r person");
}

/// Waits until `needle` has been written twice.
#[track_caller]
fn wait_for_second(process: &Process<'_>, needle: &str) {
    let begun = Instant::now();
    loop {
        let (stdout, stderr) = process.so_far();
        if stdout.matches(needle).count() + stderr.matches(needle).count() >= 2 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{stdout}\n{stderr}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_watch_runs_again_from_the_cache_when_a_script_changes() {
    let five = Five::new("watch");
    let mut watch = five.start("watch p.toml --until 2");
    let waiting = "waiting for a change";
    assert!(watch.wait_for(waiting, Duration::from_secs(120)), "{:?}", watch.so_far());
    let (_, before) = watch.so_far();
    assert!(!before.contains("going on from memory"), "all of it is there: {before}");
    five.write("two.sh", "#!/bin/sh\necho edited while watched >&2\n");
    assert!(watch.wait_for("| edited while watched", LIMIT), "{:?}", watch.so_far());
    wait_for_second(&watch, waiting);
    watch.signal("INT").unwrap();
    let output = watch.wait(Duration::from_secs(120)).expect(130);
    let second = output.stderr.split(waiting).nth(1).unwrap();
    assert!(second.contains("two.sh changed"), "{second}");
    assert!(second.contains("going on from memory"), "{second}");
    let lines = second.lines().filter(|line| line.contains("  cached  "));
    assert_eq!(lines.count(), 2, "boot and step 1: {second}");
}
