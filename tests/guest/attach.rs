//! A step that fails, with somebody to look at it: the guest stays, others attach to it, the script is
//! fixed, and the build goes on from the layer before.

use std::time::Duration;

use crate::project::{BINARY, LIGHT, LIMIT, Project};

/// The second step fails where the first one has left a file, unless the script is another.
fn profile(first: &str) -> String {
    format!(
        "{LIGHT}\n[[step]]\nname = \"first\"\nshell = \"{first}\"\n\
         [[step]]\nname = \"second\"\nshell = {{ script = \"second.sh\" }}\n[[output]]\nformat = \"qcow2\"\n"
    )
}

const FAILS: &str = "touch /tmp/dirty\ncat /tmp/first\nexit 7\n";
const WORKS: &str = "test ! -e /tmp/dirty\ntest -e /tmp/first\necho fixed\n";
/// How long the guest may take until the step has failed.
const FAILING: Duration = Duration::from_secs(240);

/// Runs another kvmbake beside the build, which must succeed; returns what it printed.
#[track_caller]
fn beside(project: &Project, arguments: &str) -> String {
    let line = format!("exec {BINARY} {arguments}");
    let run = project.rig.command(line).folder(&project.folder).timeout(LIMIT).run();
    run.unwrap().expect(0).stdout
}

/// Runs a build with a cache of its own.
fn start(project: &Project, arguments: &str) -> kvmbake_rig::Process<'static> {
    let line = format!("KVMBAKE_CACHE=$PWD/cache exec {BINARY} run p.toml {arguments}");
    project.rig.command(line).folder(&project.folder).timeout(LIMIT).spawn().unwrap()
}

#[test]
fn a_kept_guest_is_entered_and_its_step_retried_from_the_layer_before() {
    let project = Project::with_profile("kept", &profile("echo one > /tmp/first"));
    project.write("second.sh", FAILS);
    let mut build = start(&project, "--on-error keep");
    assert!(build.wait_for("Step 2 (second) failed", FAILING), "{:?}", build.so_far());
    assert!(build.wait_for("kvmbake retry", FAILING), "{:?}", build.so_far());

    let listed = beside(&project, "ps");
    assert!(listed.contains("step 2 (second) failed, guest kept"), "{listed}");
    let seen = beside(&project, "ssh p.toml -- 'cat /tmp/first; ls /tmp/dirty'");
    assert_eq!(seen, "one\n/tmp/dirty\n");
    let banner = beside(&project, "nc light 22 < /dev/null");
    assert!(banner.starts_with("SSH-2.0-"), "{banner}");
    let told = beside(&project, "ps --json");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told[0]["kept"], &told[0]["name"]), (&true.into(), &"light".into()));

    // A profile with a fault leaves the guest as it is.
    project.write("p.toml", "[image]\n");
    let line = format!("exec {BINARY} retry");
    let refused = project.rig.command(line).folder(&project.folder).timeout(LIMIT).run().unwrap();
    assert!(refused.expect(1).stderr.contains("p.toml:"));

    project.write("p.toml", &profile("echo one > /tmp/first"));
    project.write("second.sh", WORKS);
    let text = beside(&project, "retry");
    assert!(text.contains("step 2 (second) is tried again"), "{text}");
    let output = build.wait(LIMIT).expect(0);
    assert!(output.stderr.contains("| fixed"), "{}", output.stderr);
    // The first step is not run again.
    assert_eq!(output.stderr.matches("  step 1      first  (").count(), 1, "{}", output.stderr);
    project.finished();
    assert_eq!(beside(&project, "ps"), "no build is running\n");
}

#[test]
#[ignore = "boots a guest of its own, and the other test attaches as well; `make guest-long` runs it"]
fn a_kept_guest_goes_with_the_build_which_ends_with_its_failure() {
    let project = Project::with_profile("kept-end", &profile("echo one > /tmp/first"));
    project.write("second.sh", FAILS);
    let mut build = start(&project, "--no-cache --on-error keep");
    assert!(build.wait_for("kvmbake retry", FAILING), "{:?}", build.so_far());
    beside(&project, "stop");
    let output = build.wait(LIMIT).expect(3);
    assert!(output.stderr.contains("Step 2 (second) failed"), "{}", output.stderr);
    project.assert_nothing_left();
}
