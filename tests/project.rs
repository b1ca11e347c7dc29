//! Profiles as files: the examples, the schema, what `init` and `import` write, man pages and completions.
//! Judged by validators and shells that are not ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kvmbake::profile::{Given, Profile, Source};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Reads the TOML file named second, and holds it against the JSON Schema named first.
const VALIDATE: &str = "
import json, sys, tomllib, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
for path in sys.argv[2:]:
    errors = list(jsonschema.Draft7Validator(schema).iter_errors(tomllib.load(open(path, 'rb'))))
    print(path, 'invalid: ' + errors[0].message[:200] if errors else 'valid')
";

fn kvmbake(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = kvmbake(folder, arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(ROOT).join("examples")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

/// The examples' environment.
fn environment(name: &str) -> Option<String> {
    let value = match name {
        "IMAGE_PATH" => "flatcar.img",
        "IMAGE_NAME" => "dcos-agent",
        "BUILD_TYPE" => "master",
        "SSH_PRIVATE_KEY" => "/home/me/.ssh/build",
        "SSH_PUBLIC_KEY" => "ssh-ed25519 AAAA me",
        "REGISTRY_TOKEN" => "secret-of-the-registry",
        _ => return None,
    };
    Some(value.to_string())
}

#[test]
fn every_example_is_a_sound_profile() {
    let mut given = Given::default();
    given.environment = environment;
    for path in examples().iter().filter(|path| !path.ends_with("slapos-outputs.toml")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut own = given.clone();
        if name == "download.toml" {
            own.set("role", "web");
        }
        let text = fs::read_to_string(path).unwrap();
        let (source, faults) = Source::new(path, text).with_includes();
        assert!(faults.is_empty(), "{faults:#?}");
        let cells = Profile::cells(source, &own);
        let cells = cells.unwrap_or_else(|faults| panic!("{name}: {faults:#?}"));
        assert_eq!(cells.len(), if name == "slapos.toml" { 6 } else { 1 }, "{name}");
        if name == "coreos-dcos.toml" {
            assert_eq!(cells[0].image.name, "dcos-agent");
            assert_eq!(cells[0].steps.len(), 3);
        }
    }
    given.environment = |_| None;
    let path = Path::new(ROOT).join("examples/coreos-dcos.toml");
    let text = fs::read_to_string(&path).unwrap();
    let faults = Profile::cells(Source::new(path, text), &given).unwrap_err();
    let names = ["IMAGE_NAME", "IMAGE_PATH", "BUILD_TYPE", "SSH_PRIVATE_KEY", "SSH_PUBLIC_KEY"];
    for name in names {
        assert!(faults.iter().any(|fault| fault.message.contains(name)), "{name}: {faults:#?}");
    }
}

#[test]
fn an_independent_validator_takes_the_examples_and_refuses_broken_profiles() {
    let folder = tempfile::tempdir().unwrap();
    let schema = printed(folder.path(), &["schema"]);
    fs::write(folder.path().join("schema.json"), schema).unwrap();
    let sound = "[image]\nname = \"a\"\nsource = \"b\"\n[machine]\ncpus = \"{{ n }}\"\n\
                 [[output]]\nformat = \"raw\"\n";
    let broken = [
        ("name = \"a\"", "nmae = \"a\""),
        ("[image]", "[imagee]"),
        ("cpus = \"{{ n }}\"", "cpus = \"four\""),
        ("cpus = \"{{ n }}\"", "cpus = 65"),
        ("cpus = \"{{ n }}\"", "memory = \"1X\""),
        ("[[output]]", "[output]"),
        ("format = \"raw\"", "format = \"rar\""),
        ("format = \"raw\"", "name = \"raw\""),
        ("[[output]]", "[[step]]\nshell = { inlin = \"true\" }\n[[output]]"),
        ("[[output]]", "[[step]]\nshell = 1\n[[output]]"),
        ("[[output]]", "[ssh]\ntimeout = \"soon\"\n[[output]]"),
        ("[[output]]", "[matrix]\na = 1\n[[output]]"),
        ("[[output]]\nformat = \"raw\"\n", ""),
    ];
    let write = |name: String, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let mut paths = examples();
    // A profile that others include is none by itself, to an editor neither.
    paths.retain(|path| !path.ends_with("slapos-outputs.toml"));
    let good = paths.len() + 1;
    paths.push(write("sound.toml".into(), sound));
    for (index, (from, to)) in broken.iter().enumerate() {
        assert!(sound.contains(from), "{from}");
        let text = sound.replace(from, to);
        assert!(Profile::parse(Source::new("p.toml", text.clone())).is_err(), "{to}");
        paths.push(write(format!("broken-{index}.toml"), &text));
    }
    let output = Command::new("python3")
        .args(["-c", VALIDATE, "schema.json"])
        .args(&paths)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "it needs the Debian package python3-jsonschema\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), paths.len(), "{told}");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.ends_with(" valid"), index < good, "{line}");
    }
}

#[test]
fn man_pages_are_sound_to_both_formatters() {
    let folder = tempfile::tempdir().unwrap();
    assert!(printed(folder.path(), &["man"]).contains(".TH kvmbake 1"));
    printed(folder.path(), &["man", "-o", "pages"]);
    let pages = folder.path().join("pages");
    for name in ["kvmbake.1", "kvmbake-run.1", "kvmbake-cache-gc.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
    let judged = |line: &str| {
        let output = Command::new("bash").args(["-c", line]).current_dir(&pages).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(output.status.success(), "{line}: {told}");
        told
    };
    let told = judged("for page in *.1; do mandoc -T lint -W warning $page || exit; done");
    assert_eq!(told, "");
    assert_eq!(
        judged("for page in *.1; do groff -K utf8 -man -ww -z -Tutf8 $page || exit; done"),
        ""
    );
}

#[test]
fn completions_are_sound_to_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let text = printed(folder.path(), &["completions", shell]);
        assert!(text.contains("var-file"), "{shell}");
        fs::write(folder.path().join(shell), text).unwrap();
        let output = Command::new(shell).args(["-n", shell]).current_dir(folder.path()).output();
        let output = output.unwrap_or_else(|error| panic!("the package {shell}: {error}"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{shell}: {told}");
    }
    let code = kvmbake(folder.path(), &["completions", "tcsh"]).status.code();
    assert_eq!(code, Some(2));
}

#[test]
fn init_writes_a_profile_of_an_image_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shell = |line: &str| {
        let status = Command::new("sh").args(["-ec", line]).current_dir(folder.path()).status();
        assert!(status.unwrap().success(), "{line}");
    };
    // A disk without a partition table, made by the file system's own program.
    shell(
        "mkdir -p tree/etc/cloud; printf 'PRETTY_NAME=\"Debian GNU/Linux 12\"\\nID=debian\\n' > tree/etc/os-release; \
         touch tree/etc/cloud/cloud.cfg; truncate -s 64M base.img; mke2fs -q -t ext4 -d tree base.img",
    );
    let text = printed(folder.path(), &["init", "--from", "base.img", "--format", "ova"]);
    assert!(text.contains("kvmbake validate kvmbake.toml"), "{text}");
    let path = folder.path().join("kvmbake.toml");
    let text = fs::read_to_string(&path).unwrap();
    let parts = [
        "# Debian GNU/Linux 12: raw, 64 MiB",
        "user = \"debian\"",
        "\"nocloud\"",
        "\"ova\"",
        "[boot] must",
    ];
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let profile = Profile::parse(Source::new(&path, text.clone())).unwrap();
    assert_eq!(profile.image.name, "base-baked");
    let again = kvmbake(folder.path(), &["init", "--from", "base.img"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("Nothing is overwritten"));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    fs::write(folder.path().join("none.qcow2"), b"QFI\xfb").unwrap();
    let refused = kvmbake(folder.path(), &["init", "--from", "none.qcow2", "other.toml"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!folder.path().join("other.toml").exists());
}

#[test]
fn init_asks_at_a_terminal_and_takes_defaults_for_empty_answers() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("answers"), "\nweb\n\nqcow2, ova\n").unwrap();
    // script(1) is the terminal.
    let output = Command::new("sh")
        .args(["-c", "script -qec \"$KVMBAKE init p.toml\" /dev/null < answers"])
        .env("KVMBAKE", env!("CARGO_BIN_EXE_kvmbake"))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    for part in [
        "Base image, a file or a URL [base.qcow2]: ",
        "Name of the images [base-baked]: ",
        "Login [root]: ",
        " [qcow2]: ",
        "p.toml is written",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let path = folder.path().join("p.toml");
    let profile = Profile::parse(Source::new(&path, fs::read_to_string(&path).unwrap())).unwrap();
    assert_eq!((&*profile.image.name, &*profile.ssh.user), ("web", "root"));
    let files: Vec<&str> = profile.outputs.iter().map(|output| &*output.file).collect();
    assert_eq!(files, ["web.qcow2", "web.ova"]);
}

#[test]
fn import_lists_what_it_could_not_map_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let template = r#"{"builders": [{"type": "qemu", "disk_image": true, "iso_url": "a.img",
        "boot_command": ["x"]}], "provisioners": [{"type": "shell", "inline": ["true"]}]}"#;
    fs::write(folder.path().join("t.json"), template).unwrap();
    let output = kvmbake(folder.path(), &["import", "t.json", "-o", "t.toml"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("- `boot_command` (1 lines)"), "{told}");
    let text = fs::read_to_string(folder.path().join("t.toml")).unwrap();
    assert!(text.contains("# - `boot_command` (1 lines)"), "{text}");
    Profile::parse(Source::new("t.toml", text)).unwrap();
    let again = kvmbake(folder.path(), &["import", "t.json", "-o", "t.toml"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(kvmbake(folder.path(), &["import", "none.json"]).status.code() == Some(1));
}

#[test]
fn cells_are_validated_planned_and_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.raw"), vec![0; 1 << 20]).unwrap();
    let profile = "include = [\"common.toml\"]\n[matrix]\nkind = [\"a\", \"b\"]\nsize = [\"2M\", \"4M\"]\n\
        [image]\nsize = \"{{ matrix.size }}\"\n[[output]]\nformat = \"raw\"\n";
    let common = "[image]\nname = \"web\"\nsource = \"base.raw\"\nformat = \"raw\"\n[cache]\nenabled = false\n";
    fs::write(folder.path().join("p.toml"), profile).unwrap();
    fs::write(folder.path().join("common.toml"), common).unwrap();
    let plan = printed(folder.path(), &["plan", "p.toml"]);
    let cells: Vec<&str> = plan.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(cells, ["a-2M", "", "a-4M", "", "b-2M", "", "b-4M"]);
    let plan = printed(folder.path(), &["plan", "p.toml", "--json", "--cell", "kind=b,size=4M"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert!(plan.as_array().unwrap().iter().all(|entry| entry["cell"] == "b-4M"));
    for (arguments, code, part) in [
        (&["shell", "p.toml"][..], 1, "4 cells"),
        (&["plan", "p.toml", "--cell", "a-3M"], 1, "Did you mean `a-2M`?"),
        (&["run", "p.toml", "--jobs", "0"], 2, "--jobs"),
    ] {
        let output = kvmbake(folder.path(), arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(part), "{told}");
    }
    // A base without a kernel: each cell fails for itself, and has a log.
    let output = kvmbake(folder.path(), &["run", "p.toml", "--json", "--cell", "kind=a"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    let events: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed = |cell: &str| events.iter().any(|e| e["event"] == "failed" && e["cell"] == cell);
    assert!(failed("a-2M") && failed("a-4M"), "{told}");
    let cells = &events.last().unwrap()["cells"];
    let results: Vec<_> =
        cells.as_array().unwrap().iter().map(|one| (&one["cell"], &one["result"])).collect();
    assert_eq!(results, [(&"a-2M".into(), &"failed".into()), (&"a-4M".into(), &"failed".into())]);
    let log = fs::read_to_string(folder.path().join("out/web-a-4M.log")).unwrap();
    assert!(log.contains("error:"), "{log}");
    fs::write(folder.path().join("common.toml"), common.replace("source", "sorce")).unwrap();
    let output = kvmbake(folder.path(), &["validate", "p.toml"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.matches("common.toml:3:1").count(), 1, "told once, in its file: {told}");
}
