//! Two builds at once that begin alike.

use super::five::{Five, HEAD, LOG, Run, STEPS};
use crate::project::{LIMIT, is_dropped, until_kept};

#[test]
#[ignore = "runs two builds at once, minutes in the rig; `make guest-long` runs it"]
fn of_two_builds_that_begin_alike_one_makes_what_is_common_and_the_other_uses_it() {
    let five = Five::empty("company");
    let one = STEPS.replace("$ROLE", "one");
    let other = STEPS.replace("$ROLE", "other");
    five.write("one.toml", &format!("{HEAD}{one}"));
    five.write("other.toml", &format!("{HEAD}{other}"));
    let start = |profile| five.start(&format!("run {profile} --until 5 --json"));
    let both = || {
        five.project.shell(&format!("rm -rf {}", five.cache));
        [start("one.toml"), start("other.toml")].map(|build| build.wait(LIMIT))
    };
    let outputs = until_kept(both, |outputs| outputs.iter().any(is_dropped));
    let runs = outputs.map(|output| Run::new(output.expect(0)));
    let cold = |run: &&Run| run.boots().contains(&"reading the kernel from the image");
    assert_eq!(runs.iter().filter(cold).count(), 1, "one of them boots the image");
    let said: String = runs.iter().map(Run::notes).collect();
    assert!(said.contains("waiting for the build with process ID"), "{said}");
    // boot, 1, 2 once; 3, 4, 5 twice.
    assert_eq!(five.layers().len(), 9, "{:#?}", five.layers());
    let mut steps: Vec<u64> = runs.iter().flat_map(Run::steps).collect();
    steps.sort_unstable();
    assert_eq!(steps, [1, 2, 3, 3, 4, 4, 5, 5]);
    for role in ["one", "other"] {
        let output = five.kvmbake(&format!("shell {role}.toml --at 5 -- cat log"));
        assert_eq!(output.stdout, LOG.replace("web", role));
    }
    five.assert_sound();
}
