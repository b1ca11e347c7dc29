//! What goes wrong leaves nothing behind and says what it was.

mod disks;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use disks::{Random, Workshop, run, text};
use kvmbake_convert::{Error, Format, Progress, Silent, Stage, Target, export};

const MIB: u64 = 1 << 20;

fn with_data(size: u64) -> Workshop {
    let workshop = Workshop::new(size);
    workshop.put(0, &Random::new(1).bytes(size as usize));
    workshop
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Wishes to stop once a stage has advanced by some bytes.
struct StopAt<'a> {
    stage: Stage,
    running: AtomicBool,
    cancel: &'a AtomicBool,
    since: std::sync::Mutex<Option<Instant>>,
}

impl Progress for StopAt<'_> {
    fn started(&self, stage: Stage, _total_bytes: u64) {
        self.running.store(stage == self.stage, Ordering::Relaxed);
    }

    fn advanced(&self, _bytes: u64) {
        if self.running.load(Ordering::Relaxed) && !self.cancel.swap(true, Ordering::Relaxed) {
            *self.since.lock().unwrap() = Some(Instant::now());
        }
    }
}

#[test]
fn cancelling_stops_soon_and_removes_every_file() {
    let workshop = with_data(48 * MIB);
    for stage in [Stage::Write, Stage::Verify] {
        let cancel = AtomicBool::new(false);
        let progress =
            StopAt { stage, running: AtomicBool::new(false), cancel: &cancel, since: None.into() };
        let targets = workshop.targets(&Format::ALL, "out");
        let error = export(&*workshop.source(), &targets, &progress, &cancel).unwrap_err();
        let since = progress.since.lock().unwrap().unwrap();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!(files(workshop.directory.path()), ["source.raw"]);
    }
}

#[test]
fn an_existing_file_is_neither_overwritten_nor_removed() {
    let workshop = with_data(MIB);
    fs::write(workshop.path("out.vdi"), "precious").unwrap();
    let error = workshop.try_export(&Format::ALL, "out").unwrap_err();
    assert!(error.to_string().contains("out.vdi"), "{error}");
    assert_eq!(files(workshop.directory.path()), ["out.vdi", "source.raw"]);
    assert_eq!(fs::read(workshop.path("out.vdi")).unwrap(), b"precious");
    // The source itself, and one path for two targets, are existing files too.
    for paths in [["source.raw", "a"], ["b", "b"]] {
        let targets = paths.map(|name| Target::new(Format::Raw, workshop.path(name)));
        export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(files(workshop.directory.path()), ["out.vdi", "source.raw"]);
    }
}

#[test]
fn a_missing_directory_is_named() {
    let workshop = with_data(MIB);
    let targets = [Target::new(Format::Raw, workshop.path("nowhere/out.raw"))];
    let error =
        export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("nowhere/out.raw"), "{error}");
}

#[test]
fn formats_refuse_before_anything_is_created() {
    for (size, format, reason) in [
        ((2040 << 30) + 512, Format::Vhd, "2040 GiB"),
        (33 << 40, Format::Vmdk, "32 TiB"),
        (0, Format::Vdi, "0 bytes"),
    ] {
        // On a file system without such large files there is nothing to refuse.
        let workshop = Workshop::new(0);
        let file = File::options().write(true).open(&workshop.raw).unwrap();
        if file.set_len(size).is_err() {
            continue;
        }
        let error = workshop.try_export(&[Format::Raw, format], "out").unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(reason));
        assert_eq!(files(workshop.directory.path()), ["source.raw"]);
    }
    let workshop = with_data(MIB);
    let target = Target::new(Format::Vmdk, workshop.path("a.vmdk")).named("a\"b.vmdk");
    let error =
        export(&*workshop.source(), &[target], &Silent, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("file name"), "{error}");
}

/// Runs in a mount namespace of its own, started by the test below.
#[test]
#[ignore = "needs a small file system; a_full_disk_is_one_clear_error runs it"]
fn on_a_full_disk() {
    let small = std::env::var("KVMBAKE_SMALL_DISK").unwrap();
    let workshop = with_data(24 * MIB);
    for format in Format::ALL {
        let targets = [
            Target::new(Format::Raw, workshop.path("roomy.raw")),
            Target::new(format, Path::new(&small).join("full")),
        ];
        let error =
            export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(error.to_string().contains(&format!("{small}/full")), "{error}");
        assert!(files(Path::new(&small)).is_empty());
        assert_eq!(files(workshop.directory.path()), ["source.raw"]);
    }
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=8m tmpfs \"$KVMBAKE_SMALL_DISK\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    // Root can mount by right, everybody else in a user namespace.
    let is_root = run("id", "coreutils", &["-u"]).stdout == b"0\n";
    command.args(if is_root { &["--mount"][..] } else { &["--mount", "--map-root-user"] });
    let output = command
        .args(["sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "on_a_full_disk", "--ignored", "--nocapture"])
        .env("KVMBAKE_SMALL_DISK", text(directory.path()))
        .output()
        .unwrap_or_else(|error| panic!("unshare (Debian package util-linux): {error}"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
