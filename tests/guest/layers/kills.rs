//! Builds that end early, by kill -9 or Ctrl-C: the next one is right, and nothing is left behind.

use std::time::Duration;

use super::five::{Five, LOG};
use crate::project::LIMIT;

/// How often a build is killed.
const ROUNDS: usize = 20;
/// Longest life of a build that begins at a layer.
const LIFE: u64 = 5000;
/// Longest life of one that boots.
const COLD_LIFE: u64 = 25_000;

/// xorshift64: the same moments in every run of the test, as far as clocks go.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
#[ignore = "kills twenty builds, minutes in the rig; `make guest-long` runs it"]
fn after_a_kill_at_any_moment_the_next_run_is_right() {
    let five = Five::new("kills");
    let mut moments = Moments(0x006b_766d_6261_6b65);
    let mut alive = 0;
    for round in 0..ROUNDS {
        let (from, life) = match round {
            0 => ("boot".to_string(), moments.below(COLD_LIFE)),
            _ => ((moments.below(5) + 1).to_string(), moments.below(LIFE)),
        };
        let mut build = five.start(&format!("run p.toml --until 5 --from {from}"));
        // Killed before its life is over only when it ends by itself.
        let ended = build.wait_for("no such line", Duration::from_millis(life));
        assert!(!ended);
        let killed = build.signal("KILL").is_ok();
        let output = build.wait(LIMIT);
        alive += usize::from(killed);
        assert_eq!(killed, output.status != 0, "{output:?}");
        let told = output.stderr.lines().last().unwrap_or_default().trim();
        eprintln!("round {round}: from {from}, {life} ms, last said: {told}");

        assert_eq!(five.shell("5", "cat log"), LOG, "round {round}, from {from}, {life} ms");
        five.assert_sound();
        let left = five.project.shell(&format!("ls -A {}/tmp", five.cache));
        assert_eq!(left, "", "round {round}: the dead build's folders are gone");
    }
    assert!(alive > ROUNDS / 2, "only {alive} builds were still alive when they were to be killed");
}

#[test]
fn ctrl_c_in_a_step_keeps_the_layers_before_it_and_leaves_nothing_else() {
    let five = Five::new("ctrl-c");
    five.write("two.sh", "#!/bin/sh\necho new >> log\n");
    five.write("five.sh", "#!/bin/sh\necho asleep\nsleep 300\n");
    let mut build = five.start("run p.toml --until 5");
    assert!(build.wait_for("| asleep", LIMIT), "{:?}", build.so_far());
    build.signal("INT").unwrap();
    let output = build.wait(Duration::from_secs(60)).expect(130);
    assert!(output.stderr.contains("Interrupted"), "{}", output.stderr);
    assert_eq!(five.project.shell(&format!("ls -A {}/tmp", five.cache)), "");
    assert_eq!(five.project.shell("pgrep -x kvmbake || true"), "");
    assert_eq!(five.plan().planned(), "boot 1 2 3 4 | 5 sealed");
    five.assert_sound();
}
