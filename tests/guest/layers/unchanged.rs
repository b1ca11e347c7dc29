//! Nothing changed, or only the last thing.

use super::five::{Five, LOG};

#[test]
fn an_unchanged_build_boots_nothing_and_gives_the_finished_folder() {
    let first = Five::first_run();
    assert_eq!(first.planned(), " | boot 1 2 3 4 5 sealed");
    assert_eq!(first.boots(), ["reading the kernel from the image"]);
    let five = Five::new("unchanged");
    // The folder's images are remembered where they lie, also by a copy of the cache.
    let judge = |line: &str| five.project.judge(line);
    assert_eq!(judge("ls -A out").lines().count(), 1);

    let again = five.run("");
    assert_eq!(again.planned(), "boot 1 2 3 4 5 sealed | ");
    assert!(again.boots().is_empty() && again.steps().is_empty(), "{}", again.output.stdout);
    for stage in ["\"ssh\"", "\"seal\"", "\"export\""] {
        assert!(!again.output.stdout.contains(stage), "{stage}: {}", again.output.stdout);
    }
    assert_eq!(base_name(again.folder()), base_name(first.folder()));
    assert_eq!(judge("ls -A out").lines().count(), 1, "no new folder");
    let (took, before) = (again.output.duration, first.output.duration);
    eprintln!("unchanged: {took:?} after {before:?}");

    let other = five.run("-o other");
    assert!(other.boots().is_empty(), "{}", other.output.stdout);
    let (ours, theirs) = (first.folder(), other.folder());
    assert_ne!(ours, theirs);
    judge(&format!(
        "cmp {ours}/five.qcow2 {theirs}/five.qcow2; cd {theirs}; sha512sum -c SHA512SUM.txt"
    ));
    assert!(!other.output.stdout.contains("encod"), "{}", other.output.stdout);
    judge("rm -r other");
    // Of an image that somebody has written to, nothing is believed.
    judge(&format!("printf x | dd of={ours}/five.qcow2 bs=1 seek=300000 conv=notrunc status=none"));
    let anew = five.run("");
    assert!(anew.boots().is_empty(), "the sealed disk is still there: {}", anew.output.stdout);
    assert_ne!(base_name(anew.folder()), base_name(ours));
    let folder = anew.folder();
    judge(&format!("cd {folder}; sha512sum -c SHA512SUM.txt; qemu-img check five.qcow2"));
    judge(&format!("! cmp -s {ours}/five.qcow2 {folder}/five.qcow2"));
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

#[test]
fn after_an_edit_of_the_last_step_only_that_one_runs_on_the_memory_of_the_one_before() {
    let five = Five::new("last");
    five.write("five.sh", "#!/bin/sh\necho another five >> log\n");
    let run = five.run("--until 5");
    assert_eq!(run.planned(), "boot 1 2 3 4 | 5");
    assert_eq!(run.steps(), [5]);
    assert_eq!(run.boots().len(), 1);
    assert!(run.boots()[0].starts_with("going on from memory"), "{:?}", run.boots());
    assert_eq!(five.shell("5", "cat log"), LOG.replace("\nfive", "\nanother five"));
    five.assert_sound();
}
