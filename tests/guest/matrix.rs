//! A matrix of two sizes and two variants: what cells have in common is made once, and each image is what
//! its cell says.

use std::collections::BTreeSet;

use serde_json::Value;

use super::project::{BINARY, LIGHT, LIMIT, Project, manifest, root_offset, unless_dropped};

const PROFILE: &str = r#"
include = ["common.toml"]

[matrix]
variant = ["red", "blue"]
size = ["3G", "4G"]

[image]
size = "{{ matrix.size }}"

[[step]]
name = "variant"
shell = { inline = "echo {{ matrix.variant }} > /etc/variant", sudo = true }

[[step]]
name = "red alone"
only = "variant=red"
shell = { inline = "echo only >> /etc/variant", sudo = true }

[[output]]
format = "qcow2"
"#;

const STEP: &str = "\n[[step]]\nname = \"shared\"\nshell = \"echo shared > shared\"\n";

/// The events of a run, and its exit code.
fn run(project: &Project, arguments: &str) -> (Vec<Value>, i32) {
    let line = format!("exec {BINARY} run p.toml --json {arguments}");
    let cache = format!("{}/cache", project.folder);
    let output = unless_dropped(|| {
        let command = project.rig.command(line.clone()).folder(&project.folder);
        command.env("KVMBAKE_CACHE", &cache).timeout(LIMIT * 4).run().unwrap()
    });
    let events = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    eprintln!("{}", output.stderr);
    (events, output.status)
}

/// The stages of this name that began, by cell, with their step's number.
fn begun<'e>(events: &'e [Value], stage: &str) -> Vec<(&'e str, Option<u64>)> {
    let started = events.iter().filter(|one| one["event"] == "started" && one["stage"] == stage);
    started.map(|one| (one["cell"].as_str().unwrap(), one["step"].as_u64())).collect()
}

fn results(events: &[Value]) -> Vec<(String, String)> {
    let last = events.last().unwrap();
    assert_eq!(last["event"], "cells", "{last}");
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let cells = last["cells"].as_array().unwrap();
    cells.iter().map(|one| (text(&one["cell"]), text(&one["result"]))).collect()
}

#[test]
fn a_matrix_of_sizes_and_variants_shares_what_is_the_same() {
    let project = Project::with_profile("matrix", PROFILE);
    project.write("common.toml", &format!("{LIGHT}{STEP}"));
    let (events, code) = run(&project, "");
    assert_eq!(code, 0);
    let cells = ["red-3G", "red-4G", "blue-3G", "blue-4G"];
    let all = |result: &str| -> Vec<(String, String)> {
        cells.iter().map(|cell| ((*cell).to_string(), result.to_string())).collect()
    };
    assert_eq!(results(&events), all("done"));
    // One cold boot for all; the variants part where they differ; a size costs its export alone.
    let steps: Vec<_> = begun(&events, "step");
    let expected =
        [("red-3G", Some(1)), ("red-3G", Some(2)), ("red-3G", Some(3)), ("blue-3G", Some(2))];
    assert_eq!(steps, expected);
    assert_eq!(begun(&events, "boot").len(), 2);
    assert_eq!(begun(&events, "seal").len(), 2);
    assert_eq!(begun(&events, "export").len(), 4);
    let planned = |cell: &str| -> BTreeSet<&str> {
        let of = events.iter().filter(|one| one["event"] == "planned" && one["cell"] == cell);
        of.filter_map(|one| one["action"].as_str()).collect()
    };
    assert_eq!(planned("red-4G"), BTreeSet::from(["cached"]));
    assert_eq!(planned("blue-4G"), BTreeSet::from(["cached"]));

    let done: Vec<(&str, &str)> = events
        .iter()
        .filter(|one| one["event"] == "done")
        .map(|one| (one["cell"].as_str().unwrap(), one["folder"].as_str().unwrap()))
        .collect();
    for (cell, folder) in done {
        let folder = format!("{}/{folder}", project.folder);
        let (variant, size) = cell.split_once('-').unwrap();
        let bytes = if size == "3G" { 3u64 << 30 } else { 4 << 30 };
        assert_eq!(manifest(&project, &folder)["disk"]["virtual_size"], bytes);
        let content = if variant == "red" { "red\nonly\n" } else { "blue\n" };
        let image = "judged.raw";
        project.judge(&format!("qemu-img convert -O raw {folder}/light-{cell}.qcow2 {image}"));
        let root = root_offset(&project.judge(&format!("sfdisk -d {image}")));
        let seen = project.judge(&format!(
            "stat -c %s {image}; (cd {folder}; sha512sum -c --quiet SHA512SUM.txt); \
             loop=$(losetup -r -f --show -o {root} {image}); e2fsck -fn $loop > /dev/null 2>&1; \
             debugfs -R 'cat /etc/variant' $loop 2> /dev/null; \
             debugfs -R 'cat /home/debian/shared' $loop 2> /dev/null; losetup -d $loop; rm {image}"
        ));
        assert_eq!(seen, format!("{bytes}\n{content}shared\n"), "{cell}");
        project.judge(&format!("test -s out/light-{cell}.log"));
    }

    // Again: nothing is made. Two at once, one of which fails: the other does not mind.
    let (events, code) = run(&project, "--jobs 2");
    assert_eq!((results(&events), code), (all("unchanged"), 0));
    let failing = PROFILE.replace("echo only", "exit 7; echo only");
    project.write("p.toml", &failing);
    let (events, code) = run(&project, "--jobs 2 --cell size=3G");
    assert_eq!(code, 3);
    let pair = |cell: &str, result: &str| (cell.to_string(), result.to_string());
    assert_eq!(results(&events), [pair("red-3G", "failed"), pair("blue-3G", "unchanged")]);
    project.judge("grep -q 'red alone' out/light-red-3G.log");
}
