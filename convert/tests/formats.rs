//! Every format written here, judged by qemu-img and 7-Zip and read back by our own readers.

mod disks;

use std::fs;

use disks::{Random, Workshop, qemu_img, qemu_name, qemu_virtual_size, succeed, text};
use kvmbake_convert::{Format, OpenOptions, digest, info, open, probe};

const MIB: u64 = 1 << 20;
const ALL: [Format; 7] = Format::ALL;
/// The formats that qemu-img and 7-Zip know; `appliances.rs` is about the other one.
const KNOWN: [Format; 6] =
    [Format::Qcow2, Format::Raw, Format::Vdi, Format::Vhd, Format::Vhdx, Format::Vmdk];

/// Exports to all formats and lets qemu-img and our readers judge each.
fn check_all(workshop: &Workshop) {
    let export = workshop.export(&ALL, "out");
    let source = workshop.source();
    let expected = digest(&*source).unwrap();
    assert_eq!(export.disk_digest, Some(expected));
    let raw = text(&workshop.raw);
    for artifact in &export.artifacts {
        let (format, path) = (artifact.format, text(&artifact.path));
        let name = qemu_name(format);
        if matches!(format, Format::Qcow2 | Format::Vdi | Format::Vhdx | Format::Vmdk) {
            let report = qemu_img(&["check", "-f", name, path]);
            assert!(report.contains("No errors were found"), "{format}: {report}");
            assert!(!report.to_lowercase().contains("leak"), "{format}: {report}");
        }
        let rounded = source.len().next_multiple_of(512);
        // qemu-img knows no archives; their disk is judged in `appliances.rs`.
        if format != Format::Ova {
            assert_eq!(qemu_virtual_size(&artifact.path, format), rounded, "{format}");
            qemu_img(&["compare", "-f", "raw", "-F", name, raw, path]);
        }
        let stated = if format == Format::Raw { source.len() } else { rounded };
        assert_eq!(artifact.virtual_size, stated, "{format}");
        assert_eq!(probe(&artifact.path).unwrap(), format);
        let about = info(&artifact.path, &OpenOptions::default()).unwrap();
        assert_eq!((about.format, about.virtual_size), (format, stated));
        assert_eq!((about.file_size, about.allocated), (artifact.file_size, artifact.allocated));
        let disk = open(&artifact.path, &OpenOptions::with_format(format)).unwrap();
        if disk.len() == source.len() {
            assert_eq!(digest(&*disk).unwrap(), expected, "{format}");
        }
        for (program, sum) in [("sha512sum", &artifact.sha512), ("md5sum", &artifact.md5)] {
            let printed = succeed(program, "coreutils", &[path]);
            assert!(printed.starts_with(sum.as_ref().unwrap().as_str()), "{format}");
        }
    }
}

#[test]
fn empty_disks() {
    for size in [512, 64 << 10, MIB, 100 * MIB] {
        check_all(&Workshop::new(size));
    }
}

#[test]
fn a_disk_full_of_data() {
    let workshop = Workshop::new(9 * MIB);
    workshop.put(0, &Random::new(1).bytes(9 << 20));
    check_all(&workshop);
}

#[test]
fn alternating_data_and_zeroes() {
    for (data, period) in
        [(4 << 10, 8 << 10), (512, 64 << 10), (64 << 10, 128 << 10), (1 << 20, 3 << 20)]
    {
        let workshop = Workshop::new(20 * MIB);
        let mut random = Random::new(period);
        for offset in (0..20 * MIB - data).step_by(period as usize) {
            workshop.put(offset, &random.bytes(data as usize));
        }
        check_all(&workshop);
    }
}

#[test]
fn one_byte_at_the_very_end() {
    for size in [512, 1024, MIB + 512, 33 * MIB + 1536, 700 * MIB + 512] {
        let workshop = Workshop::new(size);
        workshop.put(size - 1, b"z");
        check_all(&workshop);
    }
}

#[test]
fn sizes_that_are_no_sectors_are_rounded_up_never_down() {
    for size in [1, 511, 513, MIB + 1, 5 * MIB - 1] {
        let workshop = Workshop::new(size);
        workshop.put(size - 1, b"z");
        check_all(&workshop);
    }
}

#[test]
fn random_sparse_disks() {
    for seed in 1..=12 {
        let mut random = Random::new(seed);
        let size = (1 + random.below(1 << (10 + seed % 10))) * 512;
        let workshop = Workshop::new(size);
        for _ in 0..random.below(40) {
            let offset = random.below(size);
            let longest = 1 << random.below(19);
            let len = (1 + random.below(longest)).min(size - offset);
            let bytes = if random.below(4) == 0 {
                vec![0; len as usize]
            } else {
                random.bytes(len as usize)
            };
            workshop.put(offset, &bytes);
        }
        check_all(&workshop);
    }
}

#[test]
fn large_sparse_disks() {
    let tib = 1u64 << 40;
    for size in [tib / 2 + 512, 2040 << 30] {
        let workshop = Workshop::new(size);
        let mut random = Random::new(size);
        for offset in [0, size / 3, size / 2 + 4096, size - 70_000] {
            workshop.put(offset, &random.bytes(70_000));
        }
        let export = workshop.export_quickly(&KNOWN, "out");
        for artifact in &export.artifacts {
            assert_eq!(qemu_virtual_size(&artifact.path, artifact.format), size);
            assert!(artifact.allocated < 64 * MIB, "{artifact:?}");
            let disk = open(&artifact.path, &OpenOptions::with_format(artifact.format)).unwrap();
            let mut found = vec![0; 70_000];
            let mut expected = vec![0; 70_000];
            for offset in [0, size / 3, size / 2 + 4096, size - 70_000] {
                disk.read_at(&mut found, offset).unwrap();
                workshop.source().read_at(&mut expected, offset).unwrap();
                assert!(found == expected, "{} at {offset}", artifact.format);
            }
        }
    }
}

#[test]
fn three_tebibytes_fit_all_formats_but_vhd() {
    let size = 3u64 << 40;
    let workshop = Workshop::new(size);
    workshop.put(size - 512, b"last");
    let formats = [Format::Qcow2, Format::Vdi, Format::Vhdx, Format::Vmdk];
    for artifact in &workshop.export_quickly(&formats, "out").artifacts {
        assert_eq!(qemu_virtual_size(&artifact.path, artifact.format), size);
    }
    let refused = workshop.try_export(&[Format::Qcow2, Format::Vhd], "late").unwrap_err();
    assert!(refused.to_string().contains("2040 GiB"), "{refused}");
    assert!(!workshop.path("late.qcow2").exists() && !workshop.path("late.vhd").exists());
}

#[test]
fn what_qemu_img_wrote_is_read_the_same() {
    let mut random = Random::new(77);
    for size in [512, 3 * MIB + 512, 70 * MIB] {
        let workshop = Workshop::new(size);
        for _ in 0..6 {
            let offset = random.below(size);
            let len = random.below((size - offset).min(300_000)) as usize;
            workshop.put(offset, &random.bytes(len));
        }
        workshop.put(size - 1, b"!");
        let expected = digest(&*workshop.source()).unwrap();
        for (format, option) in [
            (Format::Qcow2, "compat=1.1"),
            (Format::Qcow2, "compat=0.10"),
            (Format::Vdi, "static=off"),
            (Format::Vdi, "static=on"),
            (Format::Vhd, "subformat=dynamic,force_size=on"),
            (Format::Vhd, "subformat=fixed,force_size=on"),
            (Format::Vhdx, "subformat=dynamic"),
            (Format::Vhdx, "subformat=fixed"),
            (Format::Vhdx, "subformat=dynamic,block_size=1M,block_state_zero=off"),
            (Format::Vmdk, "subformat=monolithicSparse"),
            (Format::Vmdk, "subformat=streamOptimized"),
        ] {
            let path = workshop.path("theirs");
            let _ = fs::remove_file(&path);
            let name = qemu_name(format);
            let raw = text(&workshop.raw);
            qemu_img(&["convert", "-f", "raw", "-O", name, "-o", option, raw, text(&path)]);
            assert_eq!(probe(&path).unwrap(), format, "{option}");
            let disk = open(&path, &OpenOptions::default()).unwrap();
            assert_eq!(disk.len(), size, "{format} {option}");
            assert_eq!(digest(&*disk).unwrap(), expected, "{format} {option}");
        }
    }
}

#[test]
fn sizes_by_geometry_are_seen_as_qemu_sees_them() {
    let workshop = Workshop::new(10 * MIB);
    workshop.put(10 * MIB - 1, b"!");
    let path = workshop.path("theirs.vhd");
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", text(&workshop.raw), text(&path)]);
    let disk = open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(disk.len(), qemu_virtual_size(&path, Format::Vhd));
    assert!(disk.len() > 10 * MIB);
}

#[test]
fn equal_disks_give_equal_files() {
    let workshop = Workshop::new(30 * MIB);
    let mut random = Random::new(5);
    for _ in 0..20 {
        let offset = random.below(29 * MIB);
        workshop.put(offset, &random.bytes(50_000));
    }
    let targets = |prefix: &str| -> Vec<_> {
        ALL.iter()
            .map(|format| {
                let path = workshop.path(&format!("{prefix}.{}", format.extension()));
                kvmbake_convert::Target::new(*format, path)
                    .named(format!("disk.{}", format.extension()))
            })
            .collect()
    };
    let never = std::sync::atomic::AtomicBool::new(false);
    let silent = kvmbake_convert::Silent;
    let first =
        kvmbake_convert::export(&*workshop.source(), &targets("a"), &silent, &never).unwrap();
    // The second time from another format, with other extents.
    let vdi = open(&workshop.path("a.vdi"), &OpenOptions::default()).unwrap();
    let second = kvmbake_convert::export(&*vdi, &targets("b"), &silent, &never).unwrap();
    for (one, two) in first.artifacts.iter().zip(&second.artifacts) {
        assert_eq!(one.sha512, two.sha512, "{}", one.format);
        assert!(fs::read(&one.path).unwrap() == fs::read(&two.path).unwrap());
    }
    let vmdk = fs::read(workshop.path("a.vmdk")).unwrap();
    let descriptor = String::from_utf8_lossy(&vmdk[512..2048]).into_owned();
    assert!(descriptor.contains("SPARSE \"disk.vmdk\""), "{descriptor}");
}

#[test]
fn partitions_are_seen_by_7zip_and_sfdisk() {
    let workshop = Workshop::new(64 * MIB);
    let script = workshop.path("script");
    fs::write(&script, "label: gpt\n,20M\n,30M\n").unwrap();
    let shell = format!("sfdisk -q {} < {}", text(&workshop.raw), text(&script));
    succeed("sh", "fdisk", &["-c", &shell]);
    workshop.put(2 * MIB, &Random::new(3).bytes(100_000));
    let export = workshop.export(&KNOWN, "out");
    let own = succeed("sfdisk", "fdisk", &["-d", text(&workshop.raw)]);
    for artifact in &export.artifacts {
        let path = text(&artifact.path);
        if artifact.format != Format::Raw {
            let kind = format!("-t{}", artifact.format.name().replace("qcow2", "qcow"));
            let listing = succeed("7z", "p7zip-full", &["l", "-slt", &kind, path]);
            assert!(listing.contains("Size = 67108864"), "{listing}");
        }
        let listing = succeed("7z", "p7zip-full", &["l", path]);
        assert!(listing.contains("20971520") && listing.contains("31457280"), "{listing}");
        let back = workshop.path("back.raw");
        let name = qemu_name(artifact.format);
        qemu_img(&["convert", "-f", name, "-O", "raw", path, text(&back)]);
        let found = succeed("sfdisk", "fdisk", &["-d", text(&back)]);
        assert_eq!(found.replace("back.raw", "source.raw"), own);
        succeed("cmp", "diffutils", &[text(&workshop.raw), text(&back)]);
    }
}

#[test]
fn files_are_no_larger_than_qemu_imgs() {
    let workshop = Workshop::new(200 * MIB);
    let mut random = Random::new(9);
    for _ in 0..60 {
        let offset = random.below(199 * MIB);
        let len = random.below(500_000) as usize;
        workshop.put(offset, &random.bytes(len));
    }
    for artifact in workshop.export(&KNOWN, "out").artifacts {
        let path = workshop.path("theirs");
        let name = qemu_name(artifact.format);
        qemu_img(&["convert", "-f", "raw", "-O", name, text(&workshop.raw), text(&path)]);
        let theirs = info(&path, &OpenOptions::with_format(artifact.format)).unwrap();
        assert!(
            artifact.allocated <= theirs.allocated + 8192,
            "{}: {} bytes, qemu-img {}",
            artifact.format,
            artifact.allocated,
            theirs.allocated
        );
    }
}
