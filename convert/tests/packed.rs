//! Raw images that are written compressed, unpacked by the formats' own tools and by 7-Zip.

mod disks;

use std::fs;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop, succeed, text};
use kvmbake_convert::{
    Comparison, Encoding, OpenOptions, Packing, Silent, Target, compare, export, open,
};

const MIB: u64 = 1 << 20;

fn targets(workshop: &Workshop, prefix: &str) -> Vec<Target> {
    Packing::ALL
        .map(|packing| {
            let name = format!("{prefix}.raw.{}", packing.extension());
            Target::new(Encoding::from_file_name(&name).unwrap(), workshop.path(&name))
        })
        .to_vec()
}

fn sha256_of(line: &str) -> String {
    succeed("sh", "coreutils", &["-ec", &format!("{line} | sha256sum")])[..64].to_owned()
}

fn check(workshop: &Workshop) {
    let never = AtomicBool::new(false);
    let source = workshop.source();
    let targets = targets(workshop, "out");
    let written = export(&*source, &targets, &Silent, &never).unwrap();
    let expected = sha256_of(&format!("cat {}", text(&workshop.raw)));
    for (artifact, tool) in written.artifacts.iter().zip(["gzip", "xz", "bzip2", "zstd"]) {
        let path = text(&artifact.path);
        assert_eq!(artifact.virtual_size, source.len(), "{tool}");
        succeed(tool, tool, &["-t", "-q", path]);
        assert_eq!(sha256_of(&format!("{tool} -dc {path}")), expected, "{tool}");
        if tool != "zstd" {
            let unpacked = sha256_of(&format!("7z x -so {path} 2>/dev/null"));
            assert_eq!(unpacked, expected, "7-Zip: {tool}");
        }
        let disk = open(&artifact.path, &OpenOptions::default()).unwrap();
        assert_eq!(disk.len(), source.len(), "{tool}");
        assert_eq!(compare(&*disk, &*source, &Silent, &never).unwrap(), Comparison::Equal);
    }
}

#[test]
fn every_byte_comes_out_again() {
    for size in [1, 512, 65_536, MIB + 511, 5 * MIB] {
        check(&Workshop::new(size));
        let workshop = Workshop::new(size);
        workshop.put(size - 1, b"z");
        workshop.put(size / 3, &Random::new(size).bytes((size / 2).min(300_000) as usize));
        check(&workshop);
    }
    let full = Workshop::new(3 * MIB);
    full.put(0, &Random::new(5).bytes(3 << 20));
    check(&full);
}

#[test]
fn a_disk_that_looks_like_an_image_is_compared_as_what_it_is() {
    let workshop = Workshop::new(MIB);
    workshop.put(0, b"QFI\xfb\0\0\0\x03");
    let never = AtomicBool::new(false);
    export(&*workshop.source(), &targets(&workshop, "out"), &Silent, &never).unwrap();
}

#[test]
fn equal_disks_give_equal_files_and_holes_cost_little() {
    let workshop = Workshop::new(400 * MIB);
    workshop.put(399 * MIB, &Random::new(1).bytes(100_000));
    let never = AtomicBool::new(false);
    let [one, other] = ["one", "other"].map(|prefix| {
        let targets = targets(&workshop, prefix);
        export(&*workshop.source(), &targets[3..], &Silent, &never).unwrap();
        fs::read(&targets[3].path).unwrap()
    });
    assert!(one == other && one.len() < 300_000, "{}", one.len());
    // A time in the file would make each run's different.
    let gzip = targets(&workshop, "time").remove(0);
    let small = Workshop::new(MIB);
    export(&*small.source(), std::slice::from_ref(&gzip), &Silent, &never).unwrap();
    let header = fs::read(&gzip.path).unwrap();
    assert_eq!(header[4..8], [0; 4], "the time of RFC 1952");
    let listed = Command::new("gzip").arg("-l").arg(&gzip.path).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("1048576"));
}
