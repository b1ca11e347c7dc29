use super::*;
use crate::cache::recipe::Kind;

fn step(fields: Vec<Field>) -> Recipe {
    Recipe::new(Kind::Step, fields)
}

#[track_caller]
fn told(old: Vec<Field>, new: Vec<Field>, expected: &[&str]) -> Vec<Change> {
    let changes = explain(&step(old), &step(new));
    let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(lines, expected);
    changes
}

fn text(name: &str, value: &str) -> Field {
    Field::text(name, value)
}

fn script(content: &str, mode: u32) -> Field {
    Field::bytes("script 1", "setup.sh", mode, content.as_bytes())
}

#[test]
fn values_are_told_old_and_new() {
    told(vec![text("cpus", "1")], vec![text("cpus", "2")], &["cpus: 1 → 2"]);
    told(vec![], vec![text("env A", "x")], &["env A: now x"]);
    told(vec![text("env A", "x")], vec![], &["env A: no longer x"]);
    told(vec![text("env A", "x")], vec![text("env A", "")], &["env A: x → nothing"]);
    let changes = told(
        vec![text("cpus", "1"), text("memory", "1G"), text("user", "root")],
        vec![text("cpus", "2"), text("memory", "1G"), text("user", "web")],
        &["cpus: 1 → 2", "user: root → web"],
    );
    assert!(changes.iter().all(|change| change.details().is_empty()));
}

#[test]
fn a_script_is_told_by_its_lines() {
    let old = "#!/bin/sh\napt-get update\napt-get install nginx\necho a\necho b\n";
    let new = "#!/bin/sh\napt-get install nginx curl\necho a\necho B\n";
    let changes = told(vec![script(old, 0o755)], vec![script(new, 0o755)], &["setup.sh, 3 lines"]);
    let expected = [
        "@ line 2",
        "- apt-get update",
        "- apt-get install nginx",
        "+ apt-get install nginx curl",
        "@ line 4",
        "- echo b",
        "+ echo B",
    ];
    assert_eq!(changes[0].details(), expected);
    told(vec![script("a\n", 0o755)], vec![script("b\n", 0o755)], &["setup.sh, 1 line"]);
}

#[test]
fn commands_of_several_lines_are_told_like_a_script() {
    let changes = told(
        vec![text("commands", "one\ntwo\nthree")],
        vec![text("commands", "one\n2\nthree")],
        &["commands, 1 line"],
    );
    assert_eq!(changes[0].details(), ["@ line 2", "- two", "+ 2"]);
}

#[test]
fn modes_and_files_that_come_and_go_are_told() {
    told(vec![script("a", 0o644)], vec![script("a", 0o755)], &["setup.sh, mode 0644 → 0755"]);
    told(vec![], vec![script("a", 0o644)], &["setup.sh, added"]);
    told(vec![script("a", 0o644)], vec![], &["setup.sh, removed"]);
    told(
        vec![text("script 1", "a")],
        vec![script("a", 0o644)],
        &["script 1: given in another way"],
    );
}

#[test]
fn a_file_without_text_is_told_by_its_digest() {
    let file = |bytes: &[u8]| vec![Field::bytes("file 1", "logo.png", 0o644, bytes)];
    let changes = told(file(b"\xff1"), file(b"\xff2"), &["logo.png, another content"]);
    let details = changes[0].details();
    assert_eq!(details[0], format!("- blake3 {}", Digest::of(b"\xff1").prefix(16)));
    assert_eq!(details[1], format!("+ blake3 {}", Digest::of(b"\xff2").prefix(16)));
}

#[test]
fn a_secret_is_never_shown() {
    let secret = |seed: u8| {
        vec![Field {
            name: "env TOKEN".into(),
            value: Value::Secret(Digest::from_bytes([seed; 32])),
        }]
    };
    let changes = told(secret(1), secret(2), &["env TOKEN: changed"]);
    assert!(changes[0].details().is_empty());
}

#[test]
fn a_file_under_another_name_and_the_same_order_change_nothing() {
    let old = step(vec![Field::bytes("script 1", "old.sh", 0o755, b"a")]);
    let new = step(vec![Field::bytes("script 1", "new.sh", 0o755, b"a")]);
    assert!(explain(&old, &new).is_empty());
    told(
        vec![text("a", "1"), text("b", "2")],
        vec![text("b", "2"), text("a", "1")],
        &["the order"],
    );
    told(vec![text("a", "1"), text("a", "2")], vec![text("a", "1"), text("a", "3")], &["a: 2 → 3"]);
}

#[test]
fn nothing_of_a_value_drives_the_terminal_or_floods_it() {
    let long = "x".repeat(500);
    let changes = told(
        vec![text("a", "\x1b[31mred")],
        vec![text("a", &long)],
        &[&format!("a: \u{fffd}[31mred → {}…", "x".repeat(59))],
    );
    assert!(changes[0].details().is_empty());
    let lines = |letter: &str| (0..100).map(|n| format!("{letter}\x1b{n}\n")).collect::<String>();
    let changes = told(
        vec![script(&lines("a"), 0o644)],
        vec![script(&lines("b"), 0o644)],
        &["setup.sh, 100 lines"],
    );
    let details = changes[0].details();
    assert_eq!(details.len(), 12);
    assert_eq!(details[11], "… and 190 more");
    assert!(details.iter().all(|line| !line.contains('\x1b')));
}

fn traced(name: &str, layer: bool) -> Traced {
    let layer = layer.then(|| crate::cache::LayerId(Digest::of(name.as_bytes())));
    Traced { title: name.into(), recipe: step(vec![text("script", name)]), layer }
}

fn why(now: &str, earlier: Option<&Traced>, parent_missed: bool, miss: Miss) -> Vec<String> {
    let recipe = step(vec![text("script", now)]);
    causes(&recipe, earlier, parent_missed, &miss).iter().map(ToString::to_string).collect()
}

#[test]
fn what_became_of_the_layer_is_told() {
    let old = traced("a", true);
    assert_eq!(why("a", None, false, Miss::Absent), ["never built"]);
    assert_eq!(why("a", Some(&old), false, Miss::Absent), ["removed from the cache"]);
    let unkept = traced("a", false);
    assert_eq!(why("a", Some(&unkept), false, Miss::Absent), ["not kept by the last run"]);
    assert_eq!(why("a", Some(&old), true, Miss::Absent), ["what it is built on is made anew"]);
    assert_eq!(
        why("b", Some(&old), true, Miss::Absent),
        ["script: a → b", "what it is built on is made anew"]
    );
    let expired =
        Miss::Expired { age: Duration::from_secs(90000), max_age: Duration::from_secs(86400) };
    assert_eq!(why("a", Some(&old), false, expired), ["25h 00m old, may be 24h 00m"]);
    let anew = Miss::Expired { age: Duration::from_secs(9), max_age: Duration::ZERO };
    assert_eq!(why("a", Some(&old), false, anew), ["asked to be made anew"]);
    let damaged = Miss::Damaged { why: "layer 1: the content of memory has changed".into() };
    assert_eq!(
        why("a", Some(&old), false, damaged),
        ["thrown away: layer 1: the content of memory has changed"]
    );
    let (one, two) = (Some(Digest::of(b"1")), Some(Digest::of(b"2")));
    let served = |was, is| Miss::Served { path: "/k.cfg".into(), was, is };
    assert_eq!(
        why("a", Some(&old), false, served(one, two)),
        ["/k.cfg, which the guest fetched, another content"]
    );
    assert_eq!(
        why("a", Some(&old), false, served(one, None)),
        ["/k.cfg, which the guest fetched, is gone"]
    );
    assert_eq!(
        why("a", Some(&old), false, served(None, one)),
        ["/k.cfg, which the guest asked for, is there now"]
    );
}

#[test]
fn a_step_put_in_between_shifts_no_comparison() {
    let old = [traced("a", true), traced("b", true), traced("c", true)];
    let new = |names: &[&str]| -> Vec<Recipe> {
        names.iter().map(|name| step(vec![text("script", name)])).collect()
    };
    let found = |names: &[&str]| counterparts(&old, &new(names));
    assert_eq!(found(&["a", "b", "c"]), [Some(0), Some(1), Some(2)]);
    assert_eq!(found(&["a", "x", "b", "c"]), [Some(0), None, Some(1), Some(2)]);
    assert_eq!(found(&["a", "x", "c"]), [Some(0), Some(1), Some(2)]);
    assert_eq!(found(&["a", "c"]), [Some(0), Some(2)]);
    assert_eq!(found(&["a", "b", "c", "d"]), [Some(0), Some(1), Some(2), None]);
    assert_eq!(found(&[]), []);
    assert_eq!(counterparts(&[], &new(&["a"])), [None]);
}
