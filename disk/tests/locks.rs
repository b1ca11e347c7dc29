//! Who may use an image at the same time: our own processes among each other, and QEMU.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kvmbake_disk::{Block, ErrorKind, Format, MemoryBlock, OpenOptions, create_overlay, open};
use support::{qemu_img, run, text};
use tempfile::TempDir;

fn try_open(path: &Path, writable: bool) -> Result<Arc<dyn Block>, ErrorKind> {
    let options = OpenOptions { writable, ..OpenOptions::default() };
    open(path, &options).map_err(|error| {
        assert!(error.to_string().contains(text(path)), "{error}");
        assert!(error.hint().is_some());
        error.kind()
    })
}

fn images(dir: &TempDir) -> [std::path::PathBuf; 2] {
    ["qcow2", "raw"].map(|format| {
        let path = dir.path().join(format!("image.{format}"));
        qemu_img(&["create", "-q", "-f", format, text(&path), "1M"]);
        path
    })
}

/// `qemu-io` with an image open, until dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, read_only: bool) -> QemuIo {
        let mut command = Command::new("qemu-io");
        if read_only {
            command.arg("-r");
        }
        let format = path.extension().unwrap().to_str().unwrap();
        let mut child = command
            .args(["-f", format, text(path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is missing: install the Debian package qemu-utils");
        // The answer to a command shows that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        while !answer.contains("1 MiB") {
            answer.clear();
            assert!(lines.read_line(&mut answer).unwrap() > 0, "qemu-io ended");
        }
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn qemu_writing_an_image_keeps_us_out() {
    let dir = TempDir::new().unwrap();
    for path in images(&dir) {
        let qemu = QemuIo::open(&path, false);
        assert_eq!(try_open(&path, false).err(), Some(ErrorKind::Locked));
        assert_eq!(try_open(&path, true).err(), Some(ErrorKind::Locked));
        drop(qemu);
        assert_eq!(try_open(&path, true).err(), None);
    }
}

#[test]
fn qemu_reading_an_image_keeps_only_our_writing_out() {
    let dir = TempDir::new().unwrap();
    let [qcow2, _] = images(&dir);
    let _qemu = QemuIo::open(&qcow2, true);
    assert_eq!(try_open(&qcow2, true).err(), Some(ErrorKind::Locked));
    assert_eq!(try_open(&qcow2, false).err(), None);
}

#[test]
fn our_use_keeps_qemu_out() {
    let dir = TempDir::new().unwrap();
    for path in images(&dir) {
        let format = path.extension().unwrap().to_str().unwrap().to_owned();
        let qemu_can = |arguments: &[&str]| {
            let mut all = arguments.to_vec();
            all.extend(["-f", &format, text(&path), "-c", "write 0 4k"]);
            run("qemu-io", &all).status.success()
        };
        let reads = |path: &Path| {
            let arguments = ["info", "-f", &format, text(path)];
            run("qemu-img", &arguments).status.success()
        };
        let disk = try_open(&path, false).unwrap();
        assert!(reads(&path));
        assert!(!qemu_can(&[]), "QEMU writes to a base in use");
        drop(disk);
        let disk = try_open(&path, true).unwrap();
        // QEMU tolerates writers of raw images it reads; its format drivers do not.
        assert!(format == "raw" || !reads(&path), "QEMU reads an image that is being written");
        assert!(!qemu_can(&[]));
        drop(disk);
        assert!(qemu_can(&[]));
    }
}

#[test]
fn an_overlay_has_one_user_and_its_base_no_writer() {
    let dir = TempDir::new().unwrap();
    let [base_path, _] = images(&dir);
    let path = dir.path().join("overlay.qcow2");
    let base = try_open(&base_path, false).unwrap();
    let overlay = create_overlay(&path, base, 1 << 20).unwrap();
    assert_eq!(try_open(&path, true).err(), Some(ErrorKind::Locked));
    assert_eq!(try_open(&path, false).err(), Some(ErrorKind::Locked));
    assert_eq!(try_open(&base_path, true).err(), Some(ErrorKind::Locked));
    // A second build on the same base is fine.
    assert_eq!(try_open(&base_path, false).err(), None);
    drop(overlay);
    assert_eq!(try_open(&path, true).err(), None);
    assert_eq!(try_open(&base_path, true).err(), None);
}

/// Set in the process that [`a_killed_process_leaves_no_lock`] starts out of this same program.
const HOLD: &str = "KVMBAKE_TEST_HOLD_OVERLAY";

#[test]
fn a_killed_process_leaves_no_lock() {
    if let Some(path) = std::env::var_os(HOLD) {
        let base = Arc::new(MemoryBlock::zeroes(1 << 20));
        let overlay = create_overlay(Path::new(&path), base, 1 << 20).unwrap();
        overlay.write_at(&[5; 4096], 0).unwrap();
        overlay.flush().unwrap();
        println!("\nholding");
        std::io::stdout().flush().unwrap();
        // Until the parent kills us or goes away.
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("overlay.qcow2");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_leaves_no_lock", "--nocapture"])
        .env(HOLD, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "holding"));
    assert_eq!(try_open(&path, true).err(), Some(ErrorKind::Locked));
    child.kill().unwrap();
    child.wait().unwrap();
    let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
    let disk = open(&path, &options).unwrap();
    let mut buf = [0; 4096];
    disk.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [5; 4096]);
}
