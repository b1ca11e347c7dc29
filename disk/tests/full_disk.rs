//! A host without room: the error says so and names the file, what was written before stays
//! readable, and freed clusters serve again.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kvmbake_disk::{Block, ErrorKind, Format, MemoryBlock, OpenOptions, create_overlay, open};
use support::{assert_contents, qemu_img, text};
use tempfile::TempDir;

/// Set in the process that runs under the limit, to the directory it works in.
const LIMITED: &str = "KVMBAKE_TEST_LIMITED_DIRECTORY";

const DISK: usize = 16 << 20;

/// The limit on a file's size stands in for a full file system: it needs no privilege, and takes
/// the same way through every layer.
fn under_a_limit_of_4_mib(test: &str, dir: &TempDir) {
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(LIMITED, dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_full_disk_is_reported_and_survived() {
    if let Some(dir) = std::env::var_os(LIMITED) {
        fill_and_go_on(&Path::new(&dir).join("overlay"));
        return;
    }
    let dir = TempDir::new().unwrap();
    under_a_limit_of_4_mib("a_full_disk_is_reported_and_survived", &dir);
    let path = dir.path().join("overlay");
    qemu_img(&["check", "-f", "qcow2", text(&path)]);
}

fn fill_and_go_on(path: &Path) {
    let base = Arc::new(MemoryBlock::read_only(vec![1; DISK]));
    let overlay = create_overlay(path, base, DISK as u64).unwrap();
    let mut model = vec![1; DISK];
    let chunk = vec![2; 256 << 10];
    let mut at = 0;
    let error = loop {
        match overlay.write_at(&chunk, at as u64) {
            Ok(()) => model[at..at + chunk.len()].fill(2),
            Err(error) => break error,
        }
        at += chunk.len();
    };
    assert!((2 << 20..4 << 20).contains(&at), "failed at {at}");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains(text(path)), "{error}");
    overlay.flush().unwrap();
    // The clusters before the failure may have been written.
    let mut tail = vec![0; chunk.len()];
    overlay.read_at(&mut tail, at as u64).unwrap();
    assert!(tail.iter().all(|byte| matches!(byte, 1 | 2)));
    model[at..at + chunk.len()].copy_from_slice(&tail);
    assert_contents(&*overlay, &model);

    overlay.discard(0, 1 << 20).unwrap();
    overlay.write_at(&vec![3; 512 << 10], 8 << 20).unwrap();
    model[..1 << 20].fill(0);
    model[8 << 20..(8 << 20) + (512 << 10)].fill(3);
    overlay.flush().unwrap();
    assert_contents(&*overlay, &model);
}

#[test]
fn raw_images_report_a_full_disk_too() {
    if let Some(dir) = std::env::var_os(LIMITED) {
        let path = Path::new(&dir).join("disk.raw");
        let options =
            OpenOptions { writable: true, format: Some(Format::Raw), ..OpenOptions::default() };
        let disk = open(&path, &options).unwrap();
        disk.write_at(&[1; 512], 0).unwrap();
        let error = disk.write_at(&[1; 512], 8 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("disk.raw"), "{error}");
        return;
    }
    let dir = TempDir::new().unwrap();
    let file = std::fs::File::create(dir.path().join("disk.raw")).unwrap();
    file.set_len(DISK as u64).unwrap();
    under_a_limit_of_4_mib("raw_images_report_a_full_disk_too", &dir);
}

#[test]
fn an_overlay_that_cannot_be_made_leaves_no_file() {
    if let Some(dir) = std::env::var_os(LIMITED) {
        let path = Path::new(&dir).join("overlay");
        // The L1 table alone needs 16 MiB.
        let base = Arc::new(MemoryBlock::zeroes(0));
        let Err(error) = create_overlay(&path, base, 1 << 50) else {
            panic!("an overlay of 1 PiB was made");
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(!path.exists());
        return;
    }
    let dir = TempDir::new().unwrap();
    under_a_limit_of_4_mib("an_overlay_that_cannot_be_made_leaves_no_file", &dir);
}
