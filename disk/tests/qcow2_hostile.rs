//! Damaged and hostile qcow2 files: refused with one clear error or read without harm, never a
//! panic, a hang, or memory beyond measure.

mod support;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use kvmbake_disk::qcow2::check_refcounts;
use kvmbake_disk::{Block, Error, ErrorKind, Format, OpenOptions, open};
use support::{Random, patchy, qemu_img, text};
use tempfile::TempDir;

fn open_as_qcow2(path: &Path, writable: bool) -> Result<std::sync::Arc<dyn Block>, Error> {
    open(path, &OpenOptions { writable, format: Some(Format::Qcow2), ..OpenOptions::default() })
}

fn refusal(path: &Path) -> Error {
    open_as_qcow2(path, false).unwrap_err()
}

/// Returns the bytes of an image of `contents`.
fn image(dir: &TempDir, contents: &[u8], convert: &[&str]) -> Vec<u8> {
    let raw = dir.path().join("source");
    let path = dir.path().join("converted");
    std::fs::write(&raw, contents).unwrap();
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(convert);
    arguments.extend([text(&raw), text(&path)]);
    qemu_img(&arguments);
    std::fs::read(path).unwrap()
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn bad_headers_are_refused_by_name() {
    use ErrorKind::{Corrupt, Truncated, Unsupported};
    let dir = TempDir::new().unwrap();
    let good = image(&dir, &patchy(&mut Random(1), 1 << 20), &[]);
    let l1 = get64(&good, 40) as usize;
    let l2 = (get64(&good, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    type Patch = Box<dyn Fn(&mut Vec<u8>)>;
    let set32 = |at: usize, value: u32| -> Patch { Box::new(move |bytes| put32(bytes, at, value)) };
    let set64 = |at: usize, value: u64| -> Patch { Box::new(move |bytes| put64(bytes, at, value)) };
    let cases: Vec<(Patch, ErrorKind, &str)> = vec![
        (set32(0, 0), Corrupt, "no qcow2 magic"),
        (set32(4, 4), Unsupported, "qcow2 version 4"),
        (set32(4, 0), Unsupported, "qcow2 version 0"),
        (set32(20, 8), Corrupt, "cluster_bits is 8"),
        (set32(20, 22), Corrupt, "cluster_bits is 22"),
        (set32(20, u32::MAX), Corrupt, "cluster_bits is"),
        (set64(24, 1 << 40), Corrupt, "L1 table has 1 entries, but a disk of 1099511627776"),
        (set64(24, u64::MAX), Corrupt, "above the limit"),
        (set32(32, 1), Unsupported, "AES encryption"),
        (set32(32, 2), Unsupported, "LUKS encryption"),
        (set32(36, u32::MAX), Corrupt, "above the limit"),
        (set32(36, 0), Corrupt, "L1 table has 0 entries"),
        (set32(36, 400_000), Truncated, "the L1 table"),
        (set64(40, l1 as u64 + 512), Corrupt, "the L1 table does not start at a cluster"),
        (set64(40, 0), Corrupt, "the L1 table does not start at a cluster"),
        (set64(40, 1 << 40), Truncated, "the L1 table"),
        (set64(40, u64::MAX << 16), Truncated, "the L1 table"),
        (set64(48, 1 << 40), Truncated, "the refcount table"),
        (set32(56, 0), Corrupt, "the refcount table has 0 bytes"),
        (set32(56, u32::MAX), Corrupt, "the refcount table has"),
        (set32(60, 1000), Corrupt, "the snapshot table"),
        (set64(72, 1), Corrupt, "dirty"),
        (set64(72, 2), Corrupt, "corrupt"),
        (set64(72, 4), Corrupt, "keeps its data in another file"),
        (set64(72, 8), Unsupported, "compression type 0"),
        (set64(72, 16), Corrupt, "entry 0 of the L2 table"),
        (set64(72, 1 << 63), Unsupported, "feature bits 0x8000000000000000"),
        (set32(96, 7), Corrupt, "refcount_order is 7"),
        (set32(100, 96), Corrupt, "header_length is 96"),
        (set32(100, 108), Corrupt, "header_length is 108"),
        (set32(100, 1 << 17), Corrupt, "header_length is 131072"),
        (set64(8, 1 << 16), Corrupt, "backing file's name is at 0x10000"),
        (set32(116, 41), Corrupt, "feature name table has 41 bytes"),
        (set32(116, 1 << 20), Corrupt, "leaves the header"),
        (
            Box::new(|bytes| {
                put64(bytes, 8, 1024);
                put32(bytes, 16, 2000);
            }),
            Corrupt,
            "backing file's name of 2000 bytes",
        ),
        (set64(l1, l2 as u64 | 1), Corrupt, "entry 0 of the L1 table"),
        (set64(l1, l2 as u64 + 512), Corrupt, "entry 0 of the L1 table"),
        (set64(l1, 1 << 40), Truncated, "an L2 table"),
        (set64(l2 + 8, 1 << 40), Truncated, "a data cluster"),
        (set64(l2 + 8, 0x5_0200), Corrupt, "entry 1 of the L2 table"),
        (set64(l2 + 8, 0x5_0002), Corrupt, "entry 1 of the L2 table"),
        (set64(l2 + 8, 1 << 63), Corrupt, "entry 1 of the L2 table"),
        (set64(l2 + 8, 3 << 62), Corrupt, "entry 1 of the L2 table"),
        (set64(l2 + 8, 1 << 62 | 1 << 40), Truncated, "a compressed cluster"),
    ];
    let path = dir.path().join("patched.qcow2");
    for (patch, kind, message) in &cases {
        let mut bytes = good.clone();
        patch(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let error = refusal(&path);
        assert_eq!(error.kind(), *kind, "{message}: {error}");
        assert!(error.to_string().contains(message), "{message}: {error}");
        assert!(error.to_string().contains("patched.qcow2"), "{error}");
    }
    for length in [0, 4, 71, 100, 103] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(matches!(refusal(&path).kind(), Truncated | Corrupt), "{length}");
    }
}

#[test]
fn one_l2_table_cannot_serve_twice() {
    let dir = TempDir::new().unwrap();
    let mut bytes = image(&dir, &patchy(&mut Random(2), 1 << 20), &["-o", "cluster_size=4k"]);
    let l1 = get64(&bytes, 40) as usize;
    // 1 MiB in clusters of 4 KiB is less than one table; a disk of 4 MiB has two.
    put64(&mut bytes, 24, 4 << 20);
    put32(&mut bytes, 36, 2);
    let first = get64(&bytes, l1);
    put64(&mut bytes, l1 + 8, first);
    let path = dir.path().join("patched.qcow2");
    std::fs::write(&path, &bytes).unwrap();
    let error = refusal(&path);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("serves both L1 entry"), "{error}");
}

#[test]
fn files_that_lost_their_end_are_found_at_opening() {
    let dir = TempDir::new().unwrap();
    let contents = patchy(&mut Random(3), 1_500_160);
    let kinds: [&[&str]; 4] =
        [&[], &["-c"], &["-o", "cluster_size=4k"], &["-c", "-o", "compat=0.10,cluster_size=512"]];
    for convert in kinds {
        let bytes = image(&dir, &contents, convert);
        let path = dir.path().join("cut.qcow2");
        let mut last_good = bytes.len();
        for length in (0..bytes.len()).rev().step_by(509) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            match open_as_qcow2(&path, false) {
                // Only what the disk does not need may be missing.
                Ok(disk) => {
                    support::assert_contents(&*disk, &contents);
                    last_good = length;
                }
                Err(error) => {
                    let expected = matches!(error.kind(), ErrorKind::Truncated)
                        || (length < 4 && error.kind() == ErrorKind::Corrupt);
                    assert!(expected, "{convert:?} cut to {length}: {error}");
                    assert!(error.hint().is_some());
                }
            }
        }
        assert!(last_good + 1024 > bytes.len(), "{convert:?}: {last_good}");
    }
}

#[test]
fn kinds_that_are_only_read_are_refused_for_writing_with_advice() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.qcow2");
    for (option, message) in
        [("compression_type=zstd", "zstd compression"), ("extended_l2=on", "extended L2 entries")]
    {
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", option, text(&path), "1M"]);
        open(&path, &OpenOptions::default()).unwrap();
        let writable = OpenOptions { writable: true, ..OpenOptions::default() };
        let error = open(&path, &writable).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().unwrap().contains("kvmbake convert"));
    }
}

#[test]
fn damaged_subclusters_and_zstd_clusters_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.qcow2");
    let raw = dir.path().join("raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let convert = |flags: &[&str]| {
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(flags);
        arguments.extend([text(&raw), text(&path)]);
        qemu_img(&arguments);
        std::fs::read(&path).unwrap()
    };
    let be64 = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    let l2_of = |bytes: &[u8]| be64(bytes, be64(bytes, 40) as usize) as usize;

    let mut bytes = convert(&["-o", "extended_l2=on"]);
    let l2 = l2_of(&bytes);
    // The first subcluster both allocated and zero.
    put64(&mut bytes, l2 + 8, 1 << 32 | 1);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(refusal(&path).kind(), ErrorKind::Corrupt);

    let mut bytes = convert(&["-c", "-o", "compression_type=zstd"]);
    let l2 = l2_of(&bytes);
    let entry = u64::from_be_bytes(bytes[l2..l2 + 8].try_into().unwrap());
    let place = (entry & ((1 << 54) - 1)) as usize;
    bytes[place..place + 8].fill(0xee);
    std::fs::write(&path, &bytes).unwrap();
    let disk = open(&path, &OpenOptions::default()).unwrap();
    let error = disk.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("image.qcow2"), "{error}");
}

#[test]
fn files_named_inside_an_image_are_refused_unless_allowed() {
    let dir = TempDir::new().unwrap();
    let inside = dir.path().join("inside");
    let outside = dir.path().join("outside");
    for directory in [&inside, &outside] {
        std::fs::create_dir(directory).unwrap();
        let base = directory.join("base.raw");
        std::fs::write(&base, vec![7; 4096]).unwrap();
    }
    std::os::unix::fs::symlink(outside.join("base.raw"), inside.join("link.raw")).unwrap();
    let image = inside.join("image.qcow2");
    let make = |backing: &str, format: &str| {
        qemu_img(&[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            format,
            "-b",
            backing,
            text(&image),
            "4k",
        ]);
    };
    let open_with = |allowed: Option<&PathBuf>| {
        let options = OpenOptions {
            allow_backing: allowed.cloned().into_iter().collect(),
            format: Some(Format::Qcow2),
            ..OpenOptions::default()
        };
        open(&image, &options).map_err(|error| (error.kind(), error.to_string()))
    };
    let kind = |allowed| open_with(allowed).err().map(|(kind, _)| kind);

    make("base.raw", "raw");
    let (refused, message) = open_with(None).err().unwrap();
    assert_eq!(refused, ErrorKind::NamesOtherFile);
    assert!(message.contains("\"base.raw\"") && message.contains("image.qcow2"), "{message}");
    assert_eq!(kind(Some(&outside)), Some(ErrorKind::NamesOtherFile));
    let mut buf = [0; 4096];
    let disk = open_with(Some(&inside)).ok().unwrap();
    disk.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7; 4096]);
    drop(disk);

    for outwards in ["link.raw", "../outside/base.raw", text(&outside.join("base.raw"))] {
        make(outwards, "raw");
        assert_eq!(kind(Some(&inside)), Some(ErrorKind::NamesOtherFile), "{outwards}");
        assert_eq!(kind(Some(&outside)), None, "{outwards}");
    }
    for protocol in [
        "nbd:localhost:10809",
        "http://localhost/base.raw",
        "json:{\"driver\":\"file\",\"filename\":\"base.raw\"}",
        "file:base.raw",
    ] {
        make(protocol, "raw");
        assert_eq!(kind(Some(&inside)), Some(ErrorKind::NamesOtherFile), "{protocol}");
    }
    make("missing.raw", "raw");
    assert_eq!(kind(Some(&inside)), Some(ErrorKind::NotFound));
    make("image.qcow2", "qcow2");
    let (refused, message) = open_with(Some(&inside)).err().unwrap();
    assert_eq!(refused, ErrorKind::Unsupported);
    assert!(message.contains("follow each other"), "{message}");
    make("base.raw", "vmdk");
    assert_eq!(kind(Some(&inside)), Some(ErrorKind::Unsupported));
}

#[test]
fn only_regular_files_are_opened() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(support::run("mkfifo", &[text(&pipe)]).status.success());
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let cases = [
        (pipe.as_path(), "a named pipe or socket"),
        (socket.as_path(), "a named pipe or socket"),
        (dir.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
    ];
    for (path, message) in cases {
        for writable in [false, true] {
            for format in [None, Some(Format::Raw), Some(Format::Qcow2)] {
                let options = OpenOptions { writable, format, ..OpenOptions::default() };
                let Err(error) = open(path, &options) else {
                    panic!("{} was opened", path.display());
                };
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.to_string().contains(message), "{error}");
            }
        }
    }
}

/// Damages metadata at random and uses whatever still opens. A watchdog ends a hang.
#[test]
fn random_damage_never_panics_or_hangs() {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let dir = TempDir::new().unwrap();
        let kinds: [&[&str]; 4] = [
            &["-o", "cluster_size=4k"],
            &["-c", "-o", "cluster_size=4k"],
            &["-o", "cluster_size=512,refcount_bits=1"],
            &["-c", "-o", "compat=0.10,cluster_size=512"],
        ];
        for (seed, convert) in kinds.into_iter().enumerate() {
            let mut random = Random(1000 + seed as u64);
            let contents = patchy(&mut random, 200_704);
            let good = image(&dir, &contents, convert);
            let mut opened = 0;
            for round in 0..1500 {
                let mut bytes = good.clone();
                damage(&mut bytes, &mut random);
                let path = dir.path().join("damaged.qcow2");
                std::fs::write(&path, &bytes).unwrap();
                let options = OpenOptions {
                    writable: round % 2 == 1,
                    format: Some(Format::Qcow2),
                    accept_dirty: round % 2 == 0,
                    ..OpenOptions::default()
                };
                if let Ok(disk) = open(&path, &options) {
                    opened += 1;
                    use_roughly(&*disk, &mut random);
                }
            }
            assert!(opened > 100, "{convert:?}: only {opened} images opened");
        }
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(300)).expect("the test panicked or hangs");
}

/// Changes a few bytes or table entries among the metadata.
fn damage(bytes: &mut [u8], random: &mut Random) {
    let cluster = 1u64 << u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    let end = bytes.len() as u64;
    let mask = 0x00ff_ffff_ffff_fe00;
    let l1 = get64(bytes, 40);
    let reftable = get64(bytes, 48);
    let mut tables = vec![l1, reftable];
    for at in (l1..l1 + 64).step_by(8).chain((reftable..reftable + 16).step_by(8)) {
        if at + 8 <= end {
            tables.push(get64(bytes, at as usize) & mask);
        }
    }
    tables.retain(|&table| table != 0 && table + cluster <= end);
    for _ in 0..=random.below(4) {
        let table = tables[random.below(tables.len() as u64) as usize];
        match random.below(4) {
            0 => {
                let at = random.below(160) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = (table + random.below(cluster)) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            _ => {
                // A plausible entry: a cluster of the file, with or without flags.
                let at = (table + random.below(cluster / 8) * 8) as usize;
                let flags = [0, 1 << 63, 1 << 62, 1, 1 << 63 | 1][random.below(5) as usize];
                let target = random.below(end / cluster + 2) * cluster;
                put64(bytes, at, target | flags);
            }
        }
    }
}

fn use_roughly(disk: &dyn Block, random: &mut Random) {
    let len = disk.len().min(1 << 20);
    if len == 0 {
        return;
    }
    let mut at = 0;
    for _ in 0..10_000 {
        match disk.next_data(at) {
            Ok(Some(extent)) => {
                assert!(extent.offset >= at && extent.len > 0 && extent.end() <= disk.len());
                at = extent.end();
            }
            _ => break,
        }
    }
    let mut buf = vec![0; len as usize];
    let _ = disk.read_at(&mut buf, 0);
    for _ in 0..12 {
        let (offset, count) = random.range(len);
        let piece = &mut buf[..count];
        let _ = match random.below(5) {
            0 | 1 => disk.write_at(piece, offset),
            2 => disk.discard(offset, count as u64),
            3 => disk.write_zeroes(offset, count as u64),
            _ => disk.read_at(piece, offset),
        };
    }
    let _ = disk.flush();
}

#[test]
fn a_dirty_image_is_read_without_its_refcounts_if_the_caller_accepts_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("dirty.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", text(&path), "8M"];
    qemu_img(&create);
    // QEMU is killed before it writes the refcounts.
    let writes = ["-f", "qcow2", "-c", "write -P 5 1M 3M", "-c", "flush", "-c", "sigraise 9"];
    support::run("qemu-io", &[&writes[..], &[text(&path)]].concat());
    let accept =
        OpenOptions { format: Some(Format::Qcow2), accept_dirty: true, ..OpenOptions::default() };
    let error = refusal(&path);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("marked as dirty"), "{error}");
    let error = open(&path, &OpenOptions { writable: true, ..accept.clone() }).unwrap_err();
    assert!(error.to_string().contains("marked as dirty"), "{error}");

    let disk = open(&path, &accept).unwrap();
    let mut contents = vec![0; 8 << 20];
    contents[1 << 20..4 << 20].fill(5);
    support::assert_contents(&*disk, &contents);
    drop(disk);
    let report = check_refcounts(&path).unwrap();
    assert!(report.dirty && report.too_low > 0 && report.overlap.is_none(), "{report:?}");

    // Two L2 entries for one cluster, and one for that of the L1 table: nothing to rely on.
    let good = std::fs::read(&path).unwrap();
    let l1 = get64(&good, 40);
    let l2 = (get64(&good, l1 as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = get64(&good, l2 + 16 * 8);
    for target in [entry, l1 | 1 << 63] {
        let mut bytes = good.clone();
        put64(&mut bytes, l2 + 17 * 8, target);
        std::fs::write(&path, &bytes).unwrap();
        let error = open(&path, &accept).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("used twice"), "{error}");
    }

    // Repaired by QEMU it is the same.
    std::fs::write(&path, &good).unwrap();
    qemu_img(&["check", "-q", "-r", "all", text(&path)]);
    support::assert_contents(&*open_as_qcow2(&path, false).unwrap(), &contents);
}

#[test]
fn refcount_damage_is_refused_and_leaks_are_counted() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.qcow2");
    let raw = dir.path().join("raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]);
    qemu_img(&["snapshot", "-c", "one", text(&path)]);
    let sound = check_refcounts(&path).unwrap();
    assert_eq!((sound.too_low, sound.leaked), (0, Some(0)));
    let good = std::fs::read(&path).unwrap();
    let be64 = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let block = be64(be64(48));
    // The header's own cluster, counted not at all and then twice.
    for (refcount, expected) in [(0u16, (1, Some(0))), (2, (0, Some(1)))] {
        let mut bytes = good.clone();
        bytes[block..block + 2].copy_from_slice(&refcount.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let report = check_refcounts(&path).unwrap();
        assert_eq!((report.too_low, report.leaked), expected);
        if refcount == 0 {
            let error = refusal(&path);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("refcounts"), "{error}");
            assert!(error.hint().unwrap().contains("qemu-img check"));
        } else {
            open(&path, &OpenOptions::default()).unwrap();
        }
    }
}
