//! Each way to fail inside or around a guest: one clear message, the right exit code, nothing left.

use kvmbake_rig::Output;

use crate::project::{LIGHT, Project};

const OUTPUT: &str = "[[output]]\nformat = \"raw\"\n";

fn with_step(step: &str) -> String {
    format!("{LIGHT}\n[[step]]\n{step}\n{OUTPUT}")
}

/// Runs a profile whose guest must fail, or be out of reach; returns the message.
#[track_caller]
fn fails(name: &str, profile: &str) -> String {
    fails_in(name, profile, Project::once)
}

/// As [`fails`], in a step: the boot before it may come from another test.
#[track_caller]
fn fails_later(name: &str, profile: &str) -> String {
    fails_in(name, profile, Project::warm)
}

#[track_caller]
fn fails_in(name: &str, profile: &str, run: fn(&Project, &str) -> Output) -> String {
    let project = Project::with_profile(name, profile);
    let output = run(&project, "run p.toml").expect(3);
    project.assert_nothing_left();
    output.stderr
}

#[test]
fn a_failing_step_tells_its_command_code_and_last_lines() {
    let message =
        fails_later("failing", &with_step("shell = [\"true\", \"echo almost; ls /nonexistent\"]"));
    for part in [
        "Step 1",
        "Command 2 of 2",
        "exit code 2",
        "almost",
        "/nonexistent",
        "last lines of the console",
    ] {
        assert!(message.contains(part), "{part} is not in\n{message}");
    }
}

#[test]
fn a_step_past_its_time_is_killed() {
    let message = fails_later(
        "slow",
        &with_step("shell = { inline = \"echo begun; sleep 600\", timeout = \"3s\" }"),
    );
    assert!(message.contains("ran longer than 3.0 s and was killed"), "{message}");
    assert!(message.contains("begun"), "{message}");
}

#[test]
fn a_panic_ends_the_build_at_once_with_the_console() {
    let begun = std::time::Instant::now();
    let step = "shell = \"echo 1 | sudo tee /proc/sys/kernel/sysrq; echo c | sudo tee /proc/sysrq-trigger\"";
    let message = fails_later("panic", &with_step(step));
    assert!(
        message.contains("The guest panicked: Kernel panic - not syncing: sysrq triggered crash"),
        "{message}"
    );
    assert!(message.contains("Call Trace") || message.contains("RIP:"), "{message}");
    // The SSH time-out is three minutes, keep-alives take two: neither may have been what ended it.
    assert!(begun.elapsed().as_secs() < 110, "{:?}", begun.elapsed());
}

#[test]
fn a_triple_fault_ends_the_build_with_its_registers() {
    let boot = "[boot]\nappend = \"reboot=triple,force\"\n";
    let message = fails("triple", &format!("{}{boot}", with_step("shell = \"sudo reboot\"")));
    assert!(message.contains("Triple fault"), "{message}");
    assert!(message.contains("rip"), "{message}");
}

#[test]
fn a_guest_without_a_network_is_told() {
    let silent = LIGHT.replace("3m", "45s");
    let silent = format!("{silent}[boot]\nappend = \"init=/bin/sleep -- 1000\"\n{OUTPUT}");
    let message = fails("silent", &silent);
    assert!(message.contains("the guest never used its network"), "{message}");
}

#[test]
#[ignore = "waits for a time-out of minutes; `make guest-long` runs it"]
fn a_guest_that_refuses_the_key_is_told() {
    // Time to boot beside another rig.
    let keyless = LIGHT.replace("3m", "2m");
    let keyless = format!("{keyless}[seed]\nkind = \"none\"\n{OUTPUT}");
    let message = fails("keyless", &keyless);
    assert!(message.contains("refused the key of user debian"), "{message}");
    assert!(message.contains("publickey"), "{message}");
}

#[test]
#[ignore = "bakes an image to boot it, minutes in the rig; `make guest-long` runs it"]
fn a_guest_without_sshd_is_named() {
    let step = "shell = \"sudo rm -f /usr/sbin/sshd; sudo sync\"";
    let project =
        Project::with_profile("no-sshd", &with_step(step).replace("\"raw\"", "\"qcow2\""));
    project.kvmbake("run p.toml").expect(0);
    let derived = format!("{}/light.qcow2", project.finished());
    let profile = LIGHT.replace("/images/light.qcow2", &derived).replace("3m", "2m") + OUTPUT;
    let message = fails("refused", &profile);
    assert!(message.contains("refused"), "{message}");
    assert!(message.contains("is sshd installed and enabled?"), "{message}");
}

#[test]
#[ignore = "bakes twice, minutes in the rig; `make guest-long` runs it"]
fn a_full_output_disk_is_named_whether_the_guest_or_the_export_fills_it() {
    let project = Project::with_profile("full", &with_step("shell = \"true\""));
    project.judge("mkdir out; mount -t tmpfs -o size=60M,mode=777 tmpfs out");
    let output = project.kvmbake("run p.toml").expect(1);
    assert!(output.stderr.contains("o space left"), "{}", output.stderr);
    project.assert_nothing_left();

    project.write("p.toml", &with_step("shell = \"head -c 150000000 /dev/urandom > f && sync f\""));
    let output = project.kvmbake("run p.toml");
    assert!(output.status == 1 || output.status == 3, "{output:?}");
    assert!(
        output.stderr.contains("o space left") || output.stderr.contains("is it full?"),
        "{}",
        output.stderr
    );
    project.assert_nothing_left();
    project.judge("umount out");
}
