//! `kvmbake cache` as a person meets it, on a store that holds a small family of layers.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use kvmbake::cache::{Begun, Cache, DISK, Field, Kind, Layer, Lookup, MEMORY, Meta, Recipe};

fn build(cache: &Cache, parent: Option<&Layer>, kind: Kind, title: &str) -> Layer {
    let recipe = Recipe::new(kind, vec![Field::text("title", title)]);
    let never = AtomicBool::new(false);
    let parent_id = parent.map(Layer::id);
    let lookup = Lookup {
        parent: parent_id,
        recipe: &recipe,
        max_age: None,
        served: &|_| None,
        cancel: &never,
    };
    let Begun::Build(building) = cache.begin(&lookup, &mut |_| {}).unwrap().0 else {
        panic!("{title} is there")
    };
    fs::write(building.path(DISK), title).unwrap();
    fs::write(building.path(MEMORY), vec![1; 100_000]).unwrap();
    let meta = Meta { title: title.into(), served: Vec::new() };
    building.publish(meta, parent).unwrap().wait().unwrap()
}

/// A store with boot → step 1, and the IDs of both.
fn store() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
    let boot = build(&cache, None, Kind::Boot, "ready for steps");
    let step = build(&cache, Some(&boot), Kind::Step, "apt-get \x1b[31m install");
    let ids = [boot.id().short(), step.id().short()];
    (folder, ids)
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .arg("cache")
        .args(arguments)
        .env("KVMBAKE_CACHE", folder.join("cache"))
        .env_remove("KVMBAKE_CACHE_LIMIT")
        .output()
        .unwrap()
}

#[track_caller]
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in\n{message}");
    }
}

#[test]
fn ls_shows_a_tree_and_gives_the_terminal_no_orders() {
    let (folder, [boot, step]) = store();
    let text = printed(folder.path(), &["ls"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("ID") && lines[0].ends_with("TITLE"), "{text}");
    assert!(lines[1].starts_with(&boot) && lines[1].ends_with("  ready for steps"), "{text}");
    assert!(lines[2].starts_with(&step), "{text}");
    assert!(lines[2].ends_with("    apt-get \u{fffd}[31m install"), "{text}");
    assert!(lines[3].starts_with("2 layers, "), "{text}");
    let list: serde_json::Value =
        serde_json::from_str(&printed(folder.path(), &["ls", "--json"])).unwrap();
    assert_eq!(list[1]["parent"], list[0]["id"]);
    assert_eq!(list[1]["kind"], "step");
    assert_eq!(list[0]["memory"], "flat");
    assert_eq!(list[0]["parent"], serde_json::Value::Null);
}

#[test]
fn du_counts_what_is_on_the_disk() {
    let (folder, _) = store();
    let usage: serde_json::Value =
        serde_json::from_str(&printed(folder.path(), &["du", "--json"])).unwrap();
    assert_eq!(usage["layers"], 2);
    assert_eq!(usage["limit"], 20u64 << 30);
    assert!(usage["memory"].as_u64().unwrap() >= 200_000, "{usage}");
    assert!(usage["bytes"].as_u64() > usage["memory"].as_u64(), "{usage}");
    let text = printed(folder.path(), &["du"]);
    assert!(
        text.lines().any(|line| line.starts_with("limit") && line.ends_with("20 GiB")),
        "{text}"
    );
}

#[test]
fn rm_takes_what_is_built_on_a_layer_and_names_what_is_unknown() {
    let (folder, [boot, _]) = store();
    refused(&run(folder.path(), &["rm", "zzz"]), &["begins with `zzz`", "kvmbake cache ls"]);
    let text = printed(folder.path(), &["rm", &boot]);
    assert!(text.contains("2 layers removed"), "{text}");
    assert!(printed(folder.path(), &["ls"]).starts_with("No layers in "));
    assert_eq!(run(folder.path(), &["rm"]).status.code(), Some(2));
    assert_eq!(run(folder.path(), &["rm", "--all", &boot]).status.code(), Some(2));
}

#[test]
fn rm_all_and_gc_leave_an_empty_store() {
    for arguments in [&["rm", "--all"][..], &["gc", "--limit", "0", "--no-compress"]] {
        let (folder, _) = store();
        let text = printed(folder.path(), arguments);
        assert!(text.contains("2 layers removed"), "{text}");
        assert!(printed(folder.path(), &["ls"]).starts_with("No layers in "));
    }
    let (folder, _) = store();
    assert!(printed(folder.path(), &["gc"]).contains("0 layers removed"));
}

#[test]
fn what_a_running_build_uses_stays() {
    let (folder, [boot, step]) = store();
    let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
    let id = cache.resolve(&boot).unwrap();
    let user = cache.layer(id, &AtomicBool::new(false)).unwrap().0.unwrap();
    refused(&run(folder.path(), &["rm", &boot]), &["in use", &boot]);
    let text = printed(folder.path(), &["gc", "--limit", "0"]);
    assert!(text.contains("1 layer removed") && text.contains(&step), "{text}");
    assert!(printed(folder.path(), &["ls"]).contains("     now  ready for steps"));
    drop(user);
}

#[test]
fn verify_finds_a_flipped_bit_that_no_time_tells_of() {
    let (folder, [boot, step]) = store();
    let text = printed(folder.path(), &["verify"]);
    assert!(text.contains(&format!("sound    {boot}  ready")) && text.contains("2 layers, "));
    let layers = fs::read_dir(folder.path().join("cache/layers")).unwrap();
    let damaged = layers
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().contains(&format!("-{step}")));
    let path = damaged.unwrap().path().join(MEMORY);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[77_777] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let parts = ["Threw 1 layer away", &step, "the content of memory has changed"];
    refused(&run(folder.path(), &["verify"]), &parts);
    assert!(printed(folder.path(), &["verify"]).contains("1 layer, "));
}

#[test]
fn a_cache_that_others_can_write_is_refused_with_a_way_out() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, _) = store();
    let path = folder.path().join("cache");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&run(folder.path(), &["ls"]), &["can be written by others", "hint: Set KVMBAKE_CACHE"]);
}

#[test]
fn a_limit_that_is_no_size_is_refused() {
    let (folder, _) = store();
    let output = Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(["cache", "gc"])
        .env("KVMBAKE_CACHE", folder.path().join("cache"))
        .env("KVMBAKE_CACHE_LIMIT", "lots")
        .output()
        .unwrap();
    refused(&output, &["KVMBAKE_CACHE_LIMIT", "`lots` is not a size"]);
}

#[test]
fn the_environment_says_where_the_cache_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = |variables: &[(&str, &Path)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvmbake"));
        command
            .args(["cache", "ls"])
            .current_dir(folder.path())
            .env_clear()
            .envs(variables.iter().copied());
        command.output().unwrap()
    };
    let (own, xdg, home) =
        (folder.path().join("own"), folder.path().join("xdg"), folder.path().join("home"));
    let relative = Path::new("relative");
    let all: [(&[(&str, &Path)], _); 5] = [
        (&[("KVMBAKE_CACHE", &own), ("XDG_CACHE_HOME", &xdg), ("HOME", &home)], own.clone()),
        (&[("XDG_CACHE_HOME", &xdg), ("HOME", &home)], xdg.join("kvmbake")),
        (&[("HOME", &home)], home.join(".cache/kvmbake")),
        (&[("XDG_CACHE_HOME", relative), ("HOME", &home)], home.join(".cache/kvmbake")),
        (&[("KVMBAKE_CACHE", relative), ("HOME", &home)], folder.path().join("relative")),
    ];
    for (variables, expected) in all {
        let output = run(variables);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, format!("No layers in {}\n", expected.display()));
        assert!(expected.join("layers").is_dir());
    }
    refused(&run(&[]), &["There is no place for the cache", "hint: Set KVMBAKE_CACHE"]);
}
