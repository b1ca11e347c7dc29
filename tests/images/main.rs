//! The commands on images as a person meets them: converting, describing, checking, comparing,
//! measuring, and refusing what is hostile, judged by qemu-img, exit codes and what is left behind.

mod converted;
mod refused;
mod told;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn kvmbake(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

/// Runs a shell line that must succeed and returns what it printed.
fn tool(folder: &Path, line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "`{line}` failed; it needs the Debian packages qemu-utils, xz-utils, zstd and bzip2: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with `disk.qcow2` of 20 MiB with some data.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tool(
        folder.path(),
        "qemu-img create -q -f qcow2 disk.qcow2 20M
         qemu-io -f qcow2 -c 'write -P 7 1M 3M' -c 'write -P 9 19M 1M' disk.qcow2 >/dev/null",
    );
    folder
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = kvmbake(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}

fn listed(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs a command that must refuse: exit code 1, one line with every part, soon, nothing left.
#[track_caller]
fn refused(folder: &Path, arguments: &[&str], parts: &[&str]) -> String {
    ended(folder, arguments, 1, parts)
}

/// Runs a command whose arguments are wrong: as [`refused`], but with the exit code of wrong usage.
#[track_caller]
fn misused(folder: &Path, arguments: &[&str], parts: &[&str]) -> String {
    ended(folder, arguments, 2, parts)
}

#[track_caller]
fn ended(folder: &Path, arguments: &[&str], code: i32, parts: &[&str]) -> String {
    let before = listed(folder);
    let begun = Instant::now();
    let output = kvmbake(folder, arguments);
    assert!(begun.elapsed() < Duration::from_secs(10), "{arguments:?}: {:?}", begun.elapsed());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    let line = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "{arguments:?}: {part:?} is not in {text}");
    }
    assert!(!text.contains("  because:"), "{arguments:?}: more than one line: {text}");
    assert_eq!(listed(folder), before, "{arguments:?}: something was left behind");
    text
}
