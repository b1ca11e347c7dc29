//! The command as a person meets it where no guest is needed: wrong profiles, wrong images, and
//! the commands that only look at files. Judged by exit codes, messages and what is left behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PROFILE: &str = r#"
[image]
name = "web"
source = "base.qcow2"

[[output]]
format = "raw"
"#;

fn kvmbake(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn tool(folder: &Path, line: &str) {
    let status = Command::new("sh").args(["-ec", line]).current_dir(folder).status().unwrap();
    assert!(
        status.success(),
        "`{line}` failed; it needs the Debian packages qemu-utils and e2fsprogs"
    );
}

/// A folder with a profile and an empty base.
fn project(profile: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.toml"), profile).unwrap();
    tool(folder.path(), "qemu-img create -q -f qcow2 base.qcow2 64M");
    folder
}

#[track_caller]
fn refused(folder: &Path, arguments: &[&str], code: i32, parts: &[&str]) {
    let before = listed(folder);
    let output = kvmbake(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in\n{message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(listed(folder), before, "something was left behind");
}

fn listed(folder: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let mut all = names(folder);
    all.retain(|name| name != "out");
    all.extend(names(&folder.join("out")));
    all.sort();
    all
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = project(PROFILE);
    for arguments in [&["run"][..], &["bake"], &["run", "web.toml", "--fast"], &[]] {
        assert_eq!(kvmbake(folder.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_unreadable_profile_names_line_and_column() {
    let folder = project("[image]\nname = \"web\nsource = 1\n");
    refused(
        folder.path(),
        &["run", "web.toml"],
        1,
        &["Not valid TOML", "web.toml:2:", "name = \"web"],
    );
    refused(folder.path(), &["run", "none.toml"], 1, &["none.toml", "No such file"]);
    fs::write(folder.path().join("binary.toml"), [0xff, 0xfe]).unwrap();
    refused(folder.path(), &["run", "binary.toml"], 1, &["binary.toml", "utf-8"]);
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_known_one() {
    let folder = project(&PROFILE.replace("name =", "nmae ="));
    let parts = ["Unknown key `nmae` in [image]", "web.toml:3:1", "Did you mean `name`?"];
    refused(folder.path(), &["validate", "web.toml"], 1, &parts);
}

#[test]
fn files_that_are_not_there_are_named_with_their_line() {
    let folder = project(&PROFILE.replace("base.qcow2", "other.qcow2"));
    refused(folder.path(), &["run", "web.toml"], 1, &["other.qcow2", "web.toml:4:"]);
    let step = format!("{PROFILE}\n[[step]]\nshell = {{ script = \"setup.sh\" }}\n");
    let folder = project(&step);
    refused(folder.path(), &["run", "web.toml"], 1, &["setup.sh", "web.toml:10:"]);
}

#[test]
fn a_wrong_checksum_is_told_with_the_right_one() {
    let wrong = format!("checksum = \"md5:{}\"\n\n[[output]]", "0".repeat(32));
    let folder = project(&PROFILE.replace("[[output]]", &wrong));
    refused(folder.path(), &["run", "web.toml"], 1, &["checksum", "web.toml:6:", "md5:"]);
}

#[test]
fn a_truncated_base_is_refused_at_once() {
    let folder = project(PROFILE);
    tool(
        folder.path(),
        "qemu-io -f qcow2 -c 'write -P 7 0 8M' base.qcow2 >/dev/null; truncate -s 3M base.qcow2",
    );
    refused(folder.path(), &["run", "web.toml"], 1, &["base.qcow2", "truncated"]);
}

#[test]
fn a_base_that_names_another_file_is_refused_unless_allowed() {
    let folder = project(PROFILE);
    tool(
        folder.path(),
        "qemu-img create -q -f raw secret.raw 64M; qemu-img create -q -f qcow2 -F raw -b secret.raw base.qcow2",
    );
    refused(folder.path(), &["run", "web.toml"], 1, &["base.qcow2", "secret.raw"]);
    fs::write(
        folder.path().join("web.toml"),
        PROFILE.replace("[[output]]", "allow_backing = \".\"\n[[output]]"),
    )
    .unwrap();
    refused(folder.path(), &["run", "web.toml"], 1, &["Cannot boot"]);
}

#[test]
fn a_base_that_shrinks_is_refused() {
    let folder = project(&PROFILE.replace("[[output]]", "size = \"32M\"\n[[output]]"));
    refused(folder.path(), &["run", "web.toml"], 1, &["web.toml:6:8", "An image only grows"]);
}

#[test]
fn a_base_without_a_kernel_says_where_it_was_looked_for() {
    let folder = project(PROFILE);
    refused(
        folder.path(),
        &["run", "web.toml"],
        1,
        &["Cannot boot", "base.qcow2", "[boot] kernel"],
    );
    tool(folder.path(), "qemu-img create -q -f raw base.raw 64M; mkfs.ext4 -q base.raw");
    fs::write(folder.path().join("web.toml"), PROFILE.replace("base.qcow2", "base.raw")).unwrap();
    refused(folder.path(), &["validate", "web.toml"], 1, &["Cannot boot", "base.raw", "ext4"]);
}

#[test]
fn a_network_that_cannot_be_is_refused_with_its_line() {
    let folder = project(&format!(
        "{PROFILE}\n[[net.forward]]\nat = \"10.0.2.15:80\"\ncontent = \"x\"\n\n\
         [[net.inbound]]\nhost = \"0.0.0.0:8080\"\nguest = 80\n"
    ));
    let parts = ["10.0.2.15 is the guest's own", "web.toml:10:", "`public = true`", "web.toml:14:"];
    refused(folder.path(), &["run", "web.toml"], 1, &parts);
    let folder = project(&format!(
        "{PROFILE}\n[net]\nserve = \"none\"\npcap = \"none/a.pcap\"\nlog = \"base.qcow2/log\"\n"
    ));
    let parts =
        ["none is no folder", "The folder of `pcap`", "web.toml:11:", "The folder of `log`"];
    refused(folder.path(), &["run", "web.toml", "--offline"], 1, &parts);
}

#[test]
fn a_port_of_the_host_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap();
    let folder = project(&format!("{PROFILE}\n[[net.inbound]]\nhost = \"{host}\"\nguest = 22\n"));
    let parts = ["Cannot listen at", &host.to_string(), "in use"];
    refused(folder.path(), &["run", "web.toml", "--no-cache"], 1, &parts);
}

#[test]
fn an_output_folder_that_cannot_be_made_is_named() {
    let folder = project(PROFILE);
    fs::write(folder.path().join("file"), "").unwrap();
    refused(folder.path(), &["run", "web.toml", "-o", "file/out"], 1, &["file/out"]);
}

#[test]
fn json_tells_a_failure_as_one_object() {
    let folder = project(&PROFILE.replace("name =", "nmae ="));
    let output = kvmbake(folder.path(), &["run", "web.toml", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let event: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((&event["event"], &event["exit_code"]), (&"failed".into(), &1.into()));
    let lines: Vec<_> = event["faults"].as_array().unwrap().iter().map(|f| &f["line"]).collect();
    assert_eq!(lines, [2, 3], "the missing key at its table, the unknown one where it stands");
}

#[test]
fn converting_there_and_back_keeps_every_byte() {
    let folder = project(PROFILE);
    tool(
        folder.path(),
        "qemu-io -f qcow2 -c 'write -P 7 1M 3M' -c 'write -P 9 63M 1M' base.qcow2 >/dev/null",
    );
    for format in ["vdi", "vhd", "vmdk", "qcow2", "raw"] {
        let output = kvmbake(folder.path(), &["convert", "base.qcow2", &format!("a.{format}")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output =
            kvmbake(folder.path(), &["convert", "-O", "raw", &format!("a.{format}"), "back"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tool(folder.path(), "qemu-img compare -q -f qcow2 -F raw base.qcow2 back");
        let info = kvmbake(folder.path(), &["info", &format!("a.{format}")]);
        let info = String::from_utf8(info.stdout).unwrap();
        assert!(info.contains(format) && info.contains("67108864"), "{info}");
    }
}

#[test]
fn a_conversion_that_fails_leaves_the_old_output() {
    let folder = project(PROFILE);
    fs::write(folder.path().join("old.vdi"), "precious").unwrap();
    tool(folder.path(), "head -c 1000 base.qcow2 > short.qcow2");
    refused(folder.path(), &["convert", "short.qcow2", "old.vdi"], 1, &["short.qcow2"]);
    assert_eq!(fs::read(folder.path().join("old.vdi")).unwrap(), b"precious");
    refused(
        folder.path(),
        &["convert", "base.qcow2", "base.qcow2"],
        1,
        &["is the input and the output"],
    );
    refused(folder.path(), &["convert", "base.qcow2", "out.xyz"], 2, &["out.xyz", "-O"]);
}

#[test]
fn doctor_says_what_to_do_where_kvm_cannot_be_opened() {
    let folder = project(PROFILE);
    // `nobody` has no access to a /dev/kvm that is root's or the group's, nor to the build folder.
    let staged = folder.path().join("kvmbake");
    fs::copy(env!("CARGO_BIN_EXE_kvmbake"), &staged).unwrap();
    tool(folder.path(), "chmod 755 . kvmbake");
    let output = Command::new(&staged)
        .arg("doctor")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/kvm"), "{text}");
    if output.status.code() == Some(1) {
        assert!(text.contains("hint:"), "{text}");
    }
}

#[test]
fn refusals_come_at_once() {
    let folder = project(&PROFILE.replace("name =", "nmae ="));
    let begun = Instant::now();
    kvmbake(folder.path(), &["run", "web.toml"]);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// A folder whose profile has steps with variables, one of them secret.
fn with_variables() -> tempfile::TempDir {
    let middle = "\n[vars]\nrelease = \"12\"\nmirror = {}\n\
        token = { secret = true, env = \"CLI_TEST_TOKEN\" }\n\
        [[step]]\nshell = \"use {{ release }} {{ mirror }}\"\n\
        [[step]]\nshell = \"login {{ token }}\"\n";
    project(&PROFILE.replace("\n[[output]]", &format!("{middle}[[output]]")))
}

#[test]
fn variables_reach_the_plan_and_secrets_do_not() {
    let folder = with_variables();
    fs::write(folder.path().join("more.toml"), "mirror = \"m1\"\n").unwrap();
    for json in [false, true] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvmbake"));
        command.args(["plan", "web.toml", "--var", "release=13", "--var-file", "more.toml"]);
        command.args(json.then_some("--json")).current_dir(folder.path());
        command.env("KVMBAKE_CACHE", folder.path().join("cache"));
        let output = command.env("CLI_TEST_TOKEN", "hunter2-hunter2").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("use 13 m1") && text.contains("login ***"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    // Nor the cache's records.
    let mut grep = Command::new("grep");
    let grep = grep.args(["-r", "hunter2", "cache"]).current_dir(folder.path()).output().unwrap();
    assert_eq!(grep.status.code(), Some(1));
}

#[test]
fn what_lacks_a_value_is_told_together() {
    let folder = with_variables();
    let parts = ["`mirror` has no value", "web.toml:8:", "`token` has no value", "CLI_TEST_TOKEN"];
    refused(folder.path(), &["validate", "web.toml"], 1, &parts);
    let arguments = ["validate", "web.toml", "--var", "miror=x"];
    refused(folder.path(), &arguments, 1, &["sets `miror`", "Did you mean `mirror`?"]);
    assert_eq!(kvmbake(folder.path(), &["plan", "web.toml", "--var", "x"]).status.code(), Some(2));
}

#[test]
fn a_seed_that_cannot_be_made_is_refused_before_the_boot() {
    for (seed, part) in [
        ("kind = \"nocloud\"\nhostname = \"a b\"", "Host name"),
        ("kind = \"ignition\"\nuser_data = \"#cloud-config\"", "no Ignition config"),
        ("kind = \"files\"\nfiles = { \"../a\" = \"# x\" }", "File name"),
        ("kind = \"files\"\nlabel = \"a b\"\nfiles = { a = \"# x\" }", "Label"),
        ("kind = \"config-drive\"\nvendor_data = \"none.yaml\"", "none.yaml"),
    ] {
        let folder =
            project(&PROFILE.replace("\n[[output]]", &format!("\n[seed]\n{seed}\n[[output]]")));
        refused(folder.path(), &["run", "web.toml"], 1, &[part, "web.toml:"]);
    }
}
