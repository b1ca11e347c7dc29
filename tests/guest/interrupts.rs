//! A build that is stopped: by Ctrl-C in each stage, and by kill -9.

use std::time::Duration;

use crate::project::{LIGHT, LIMIT, Project};

fn profile() -> String {
    // The checksum makes the first stage long enough to be hit.
    format!(
        "{}\n[[step]]\nshell = \"echo asleep; sleep 300\"\n[[output]]\nformat = \"qcow2\"\n[[output]]\nformat = \"vmdk\"\n",
        LIGHT.replace("[machine]", "checksum = \"sha512:CHECKSUM\"\n[machine]")
    )
}

/// Starts a build, waits for `sign` in its output, stops it by `signal`, and returns how it ended.
fn stopped(project: &Project, sign: &str, signal: &str) -> kvmbake_rig::Output {
    let mut build = project.start("run p.toml");
    assert!(build.wait_for(sign, Duration::from_secs(240)), "no {sign:?}: {:?}", build.so_far());
    build.signal(signal).unwrap();
    build.wait(LIMIT)
}

fn project(name: &str) -> Project {
    let project = Project::new(name);
    let sum = project.judge("sha512sum /images/light.qcow2");
    project.write("p.toml", &profile().replace("CHECKSUM", sum.split(' ').next().unwrap()));
    project
}

#[test]
#[ignore = "runs five builds, minutes in the rig; `make guest-long` runs it"]
fn ctrl_c_in_any_stage_leaves_nothing() {
    let project = project("ctrl-c");
    for sign in ["  base  ", "reading the kernel", "waiting for the guest", "| asleep"] {
        let output = stopped(&project, sign, "INT").expect(130);
        assert!(output.stderr.contains("Interrupted"), "{}", output.stderr);
        project.assert_nothing_left();
    }
    let text =
        profile().replace("sleep 300", "true").replace("checksum = \"sha512:CHECKSUM\"\n", "");
    project.write("p.toml", &text);
    stopped(&project, "writing", "INT").expect(130);
    project.assert_nothing_left();
}

#[test]
fn what_a_killed_build_left_is_removed_by_the_next_one() {
    let project = project("killed");
    stopped(&project, "| asleep", "KILL");
    assert!(
        project.judge("ls -A out").contains(".kvmbake-light-"),
        "the dead build left its folder"
    );
    project.write(
        "p.toml",
        &profile().replace("sleep 300", "true").replace("checksum = \"sha512:CHECKSUM\"\n", ""),
    );
    let output = project.kvmbake("run p.toml").expect(0);
    assert!(output.stderr.contains("which a dead build left"), "{}", output.stderr);
    let folder = project.finished();
    project.judge(&format!("qemu-img compare {folder}/light.vmdk {folder}/light.qcow2"));
}
