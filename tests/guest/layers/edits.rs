//! Edits of steps, files, variables and of the base: exactly the right layers are reused, and `plan`
//! names the cause before anything runs.

use super::five::{Five, LOG, Plan};

#[track_caller]
fn assert_why(plan: &Plan, position: &str, parts: &[&str]) {
    let why = plan.why(position);
    for part in parts {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
}

/// Plans, runs, and looks at what the guest holds.
#[track_caller]
fn assert_run(five: &Five, planned: &str, log: &str) {
    let run = five.run("--until 5");
    assert_eq!(run.planned(), planned);
    let steps = run.steps().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(steps, planned.split_once("| ").unwrap().1);
    assert_eq!(five.shell("5", "cat log"), log);
    let again = five.run("--until 5");
    assert_eq!(again.planned(), "boot 1 2 3 4 5 | ", "what ran is kept");
}

#[test]
#[ignore = "runs a dozen builds, minutes in the rig; `make guest-long` runs it"]
fn edits_of_files_variables_and_titles_reuse_the_right_layers_and_the_cause_is_named() {
    let five = Five::new("edits");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 sealed | ");

    five.write("two.sh", "#!/bin/sh\necho second >> log\n");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 | 2 3 4 5 sealed");
    let lines = ["changed: two.sh, 1 line", "- echo two >> log", "+ echo second >> log"];
    assert_why(&plan, "step 2", &lines);
    assert_why(&plan, "step 3", &["what it is built on"]);
    assert_run(&five, "boot 1 | 2 3 4 5", &LOG.replace("two", "second"));

    five.project.judge("chmod 755 two.sh");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 | 2 3 4 5 sealed");
    assert_why(&plan, "step 2", &["two.sh, mode 0644 → 0755"]);
    assert_run(&five, "boot 1 | 2 3 4 5", &LOG.replace("two", "second"));

    // Back to the first state: its layers are still there.
    five.project.judge("chmod 644 two.sh");
    five.write("two.sh", "#!/bin/sh\necho two >> log\n");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 sealed | ");
    assert_eq!(five.run("--until 5").planned(), "boot 1 2 3 4 5 | ");

    five.edit("\"web\"", "\"db\"");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 2 | 3 4 5 sealed");
    assert_why(&plan, "step 3", &["changed: env ROLE: web → db"]);
    assert_run(&five, "boot 1 2 | 3 4 5", &LOG.replace("web", "db"));

    // What the guest fetched is what it would be served now.
    five.edit("\"web\"", "\"web\"");
    five.write("www/data.txt", "vier\n");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 2 3 | 4 5 sealed");
    assert_why(&plan, "step 4", &["data.txt, which the guest fetched, another content"]);
    assert_run(&five, "boot 1 2 3 | 4 5", &LOG.replace("four", "vier"));
    five.write("www/data.txt", "four\n");

    // Titles and time-outs reach no guest.
    five.edit("name = \"three\"\nshell = {", "name = \"third\"\nshell = { timeout = \"77s\",");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 sealed | ");
    assert!(five.plan().text.contains("third"));
    five.assert_sound();
}

#[test]
#[ignore = "builds anew, minutes in the rig; `make guest-long` runs it"]
fn another_base_makes_everything_anew_and_is_named() {
    let five = Five::new("base");
    // Only the length of the virtual disk is another; the guest's files are as they were.
    five.project.judge("cp -a base.qcow2 kept; qemu-img resize -q base.qcow2 +1G");
    let plan = five.plan();
    assert_eq!(plan.planned(), " | boot 1 2 3 4 5 sealed");
    assert_why(&plan, "boot", &["changed: base.qcow2, another content", "size: "]);
    let run = five.run("--until boot");
    assert_eq!(run.boots(), ["reading the kernel from the image"]);
    assert_eq!(five.run("--until boot").planned(), "boot | ");
    five.project.judge("mv kept base.qcow2");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 sealed | ");
    five.assert_sound();
}

#[test]
#[ignore = "runs a dozen builds, minutes in the rig; `make guest-long` runs it"]
fn what_a_step_and_the_command_line_say_of_the_cache_holds() {
    let five = Five::new("words");
    five.edit("name = \"four\"", "name = \"four\"\ncache = false");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 2 3 | 4 5 sealed");
    assert_why(&plan, "step 4", &["`cache = false`"]);
    assert_why(&plan, "step 5", &["follows step 4, which is not kept"]);
    let before = five.content();
    let run = five.run("--until 5");
    assert_eq!((run.planned().as_str(), run.steps()), ("boot 1 2 3 | 4 5", vec![4, 5]));
    assert_eq!(five.content(), before, "nothing of it is kept");

    five.edit("name = \"four\"", "name = \"four\"\nmax_age = \"1ms\"");
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 2 3 | 4 5 sealed");
    // Not as JSON as well: that was asked for a moment later, and tells of a greater age.
    assert!(plan.text.contains(" old, may be 0.0s"), "{}", plan.text);
    let run = five.run("--until 5");
    assert_eq!((run.planned().as_str(), run.steps()), ("boot 1 2 3 | 4 5", vec![4, 5]));
    five.edit("name = \"four\"", "name = \"four\"\nmax_age = \"1d\"");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 5 | sealed");

    five.write_steps(super::five::STEPS);
    let run = five.run("--from three --until 4");
    assert_eq!((run.planned().as_str(), run.steps()), ("boot 1 2 | 3 4", vec![3, 4]));
    // What was built on the layers that were replaced is not found any more.
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 | 5 sealed");
    assert_eq!(five.run("--until 2").planned(), "boot 1 2 | ");
    assert_eq!(five.shell("5", "cat log"), LOG);
    five.assert_sound();
    for arguments in ["--until nothing", "--no-cache --until 2", "--no-cache --from 2"] {
        let output = five.command(&format!("run p.toml {arguments}")).run().unwrap();
        assert!([1, 2].contains(&output.status), "{arguments}: {output:?}");
    }
}
