//! What a caller may choose about each format, judged by qemu-img.

mod disks;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop, qemu_img, qemu_name, qemu_virtual_size, text};
use kvmbake_convert::{
    Artifact, Encoding, Error, Format, OpenOptions, Silent, Target, digest, export, open,
};

const MIB: u64 = 1 << 20;

/// Every way to write, as on the command line; `-c` asks for compression.
const VARIANTS: [(Format, &str); 20] = [
    (Format::Qcow2, "cluster_size=512"),
    (Format::Qcow2, "cluster_size=4K"),
    (Format::Qcow2, "cluster_size=1M"),
    (Format::Qcow2, "cluster_size=2M"),
    (Format::Qcow2, "-c"),
    (Format::Qcow2, "-c,level=9"),
    (Format::Qcow2, "-c,cluster_size=512"),
    (Format::Qcow2, "-c,cluster_size=4K"),
    (Format::Qcow2, "-c,cluster_size=2M"),
    (Format::Qcow2, "-c,compression_type=zstd"),
    (Format::Qcow2, "-c,compression_type=zstd,cluster_size=2M,level=10"),
    (Format::Vdi, "static=on"),
    (Format::Vhd, "subformat=dynamic"),
    (Format::Vhd, "subformat=fixed"),
    (Format::Vhdx, "block_size=1M"),
    (Format::Vhdx, "block_size=32M"),
    (Format::Vmdk, "subformat=streamOptimized"),
    (Format::Vmdk, "subformat=streamOptimized,level=12,adapter_type=ide"),
    (Format::Vmdk, "subformat=monolithicFlat"),
    (Format::Vmdk, "hwversion=19"),
];

fn encoding(format: Format, settings: &str) -> Encoding {
    let mut encoding = Encoding::from(format);
    for setting in settings.split(',') {
        match setting.split_once('=') {
            Some((key, value)) => encoding.set(key, value).unwrap(),
            None => encoding.compress().unwrap(),
        }
    }
    encoding
}

/// Writes the workshop's disk in every variant in one pass.
fn export_variants(workshop: &Workshop) -> Vec<Artifact> {
    let targets: Vec<_> = VARIANTS
        .iter()
        .enumerate()
        .map(|(index, (format, settings))| {
            let path = workshop.path(&format!("{index}.{}", format.extension()));
            Target::new(encoding(*format, settings), path)
        })
        .collect();
    let never = AtomicBool::new(false);
    export(&*workshop.source(), &targets, &Silent, &never).unwrap().artifacts
}

fn check_variants(workshop: &Workshop) {
    let expected = digest(&*workshop.source()).unwrap();
    let size = workshop.source().len();
    for (artifact, (format, settings)) in export_variants(workshop).iter().zip(VARIANTS) {
        let path = text(&artifact.path);
        let whole = if settings == "subformat=fixed" { MIB } else { 512 };
        let stated = size.next_multiple_of(whole);
        assert_eq!(artifact.virtual_size, stated, "{format} {settings}");
        assert_eq!(qemu_virtual_size(&artifact.path, format), stated, "{format} {settings}");
        let name = qemu_name(format);
        if matches!(format, Format::Qcow2 | Format::Vdi | Format::Vhdx) {
            let report = qemu_img(&["check", "-f", name, path]);
            assert!(report.contains("No errors were found"), "{format} {settings}: {report}");
            assert!(!report.to_lowercase().contains("leak"), "{format} {settings}: {report}");
        }
        qemu_img(&["compare", "-f", "raw", "-F", name, text(&workshop.raw), path]);
        let allow_backing = vec![workshop.directory.path().to_owned()];
        let options = OpenOptions { allow_backing, ..OpenOptions::default() };
        let disk = open(&artifact.path, &options).unwrap();
        if disk.len() == size {
            assert_eq!(digest(&*disk).unwrap(), expected, "{format} {settings}");
        }
    }
}

#[test]
fn empty_disks() {
    for size in [512, 64 << 10, 100 * MIB] {
        check_variants(&Workshop::new(size));
    }
}

#[test]
fn incompressible_disks() {
    let workshop = Workshop::new(5 * MIB);
    workshop.put(0, &Random::new(1).bytes(5 << 20));
    check_variants(&workshop);
}

#[test]
fn sizes_that_end_inside_everything() {
    for size in [513, MIB - 1, MIB + 512, 33 * MIB + 1536] {
        let workshop = Workshop::new(size);
        workshop.put(size - 1, b"z");
        workshop.put(size / 2, &vec![b'a'; 512.min(size / 4) as usize]);
        check_variants(&workshop);
    }
}

#[test]
fn random_sparse_disks() {
    for seed in 1..=5 {
        let mut random = Random::new(seed);
        let size = (1 + random.below(40 << 10)) * 512;
        let workshop = Workshop::new(size);
        for _ in 0..random.below(60) {
            let offset = random.below(size);
            let longest = 1 << random.below(19);
            let len = (1 + random.below(longest)).min(size - offset);
            let bytes = match random.below(4) {
                0 => vec![0; len as usize],
                1 => vec![random.next() as u8; len as usize],
                _ => random.bytes(len as usize),
            };
            workshop.put(offset, &bytes);
        }
        check_variants(&workshop);
    }
}

#[test]
fn many_clusters_fill_many_refcount_blocks() {
    // 4 MiB in clusters of 512 bytes: 8192 clusters, 32 blocks of 256 refcounts.
    let workshop = Workshop::new(12 * MIB);
    let mut random = Random::new(8);
    for offset in (0..12 * MIB).step_by(3 << 20) {
        workshop.put(offset, &random.bytes(1 << 20));
    }
    check_variants(&workshop);
}

#[test]
fn equal_disks_give_equal_files() {
    let workshop = Workshop::new(9 * MIB);
    workshop.put(MIB, &vec![7; 3 << 20]);
    let first = export_variants(&workshop);
    let moved: Vec<_> = first
        .iter()
        .map(|artifact| {
            let bytes = fs::read(&artifact.path).unwrap();
            fs::remove_file(&artifact.path).unwrap();
            if let Some(extent) = &artifact.extent {
                fs::remove_file(&extent.path).unwrap();
            }
            bytes
        })
        .collect();
    for (artifact, bytes) in export_variants(&workshop).iter().zip(moved) {
        assert!(fs::read(&artifact.path).unwrap() == bytes, "{:?}", artifact.path);
    }
}

#[test]
fn uuid_and_time_are_those_that_were_asked_for() {
    let workshop = Workshop::new(MIB);
    workshop.put(5, b"x");
    let uuid = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x47, 0x88, 0x99, 0, 1, 2, 3, 4, 5, 6];
    let time = 1_700_000_000;
    let targets: Vec<_> = [Format::Vdi, Format::Vhd, Format::Vhdx, Format::Vmdk, Format::Ova]
        .into_iter()
        .map(|format| Target {
            uuid: Some(uuid),
            time: Some(time),
            ..Target::new(format, workshop.path(&format!("own.{format}")))
        })
        .collect();
    export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap();
    let bytes = |format: Format| fs::read(workshop.path(&format!("own.{format}"))).unwrap();
    assert_eq!(bytes(Format::Vdi)[392..408], uuid);
    let vhd = bytes(Format::Vhd);
    assert_eq!(vhd[68..84], uuid);
    // Seconds since 2000.
    assert_eq!(vhd[24..28], (1_700_000_000u32 - 946_684_800).to_be_bytes());
    assert!(bytes(Format::Vhdx).windows(16).any(|window| window == uuid));
    let vmdk = bytes(Format::Vmdk);
    let descriptor = String::from_utf8_lossy(&vmdk[512..2048]).into_owned();
    let line = "ddb.uuid.image = \"11223344-5566-4788-9900-010203040506\"";
    assert!(descriptor.contains(line), "{descriptor}");
    assert_eq!(bytes(Format::Ova)[136..147], *format!("{time:011o}").as_bytes());
}

#[test]
fn only_the_differences_to_a_backing_file_are_stored() {
    for (cluster, compressed) in [("512", false), ("4K", false), ("64K", false), ("1M", false)]
        .into_iter()
        .chain(["512", "64K", "2M"].map(|cluster| (cluster, true)))
    {
        let workshop = Workshop::new(20 * MIB);
        let mut random = Random::new(3);
        let shared = random.bytes(6 << 20);
        workshop.put(MIB, &shared);
        // The base has the same and more: what is zero on the disk must hide it.
        let base = workshop.path("base.raw");
        let file = fs::File::create(&base).unwrap();
        file.set_len(16 * MIB).unwrap();
        file.write_all_at(&shared, MIB).unwrap();
        file.write_all_at(&random.bytes(300_000), 9 * MIB + 5000).unwrap();
        // Sector by sector other, zero, the same: also where an L2 table ends.
        for (sector, bytes) in random.bytes(512 << 9).chunks(512).enumerate() {
            let at = 12 * MIB + sector as u64 * 512;
            file.write_all_at(bytes, at).unwrap();
            match sector % 3 {
                0 => workshop.put(at, &[7; 512]),
                1 => {}
                _ => workshop.put(at, bytes),
            }
        }
        workshop.put(2 * MIB + 100, b"different");
        workshop.put(18 * MIB, b"behind the base");
        let mut encoding = Encoding::from(Format::Qcow2);
        for (key, value) in
            [("backing_file", "base.raw"), ("backing_fmt", "raw"), ("cluster_size", cluster)]
        {
            encoding.set(key, value).unwrap();
        }
        if compressed {
            encoding.compress().unwrap();
        }
        let path = workshop.path("diff.qcow2");
        let target = Target::new(encoding, &path);
        let written =
            export(&*workshop.source(), &[target], &Silent, &AtomicBool::new(false)).unwrap();
        // The shared mebibytes are not in it, but for one cluster.
        assert!(written.artifacts[0].allocated < 5 * MIB, "{written:?}");
        let report = qemu_img(&["check", "-f", "qcow2", text(&path)]);
        assert!(!report.to_lowercase().contains("leak"), "{cluster}: {report}");
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&workshop.raw), text(&path)]);
        let refused = open(&path, &OpenOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("base.raw"), "{refused}");
    }
}

#[test]
fn what_cannot_be_expressed_is_refused_before_anything_is_created() {
    let workshop = Workshop::new(3 << 40);
    let refused = |format, settings: &str, reason: &str| {
        let path = workshop.path("never");
        let target = Target::new(encoding(format, settings), &path);
        let outcome = export(&*workshop.source(), &[target], &Silent, &AtomicBool::new(false));
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!path.exists());
    };
    refused(Format::Qcow2, "cluster_size=512", "L1 table");
    refused(Format::Vhd, "subformat=fixed", "2040 GiB");
    refused(Format::Qcow2, "-c,level=12", "1 to 9 with zlib");
    refused(Format::Qcow2, "backing_file=a", "backing_fmt");
    refused(Format::Qcow2, "-c,backing_file=a", "backing_fmt");
}

#[test]
fn compressed_clusters_share_clusters_across_tables_and_refcount_blocks() {
    // 8 MiB in clusters of 512 bytes: 256 L2 tables, some 60 refcount blocks, and data of every length.
    let workshop = Workshop::new(8 * MIB);
    let mut random = Random::new(11);
    let mut bytes = vec![9; 8 << 20];
    for sector in bytes.chunks_mut(512) {
        let len = random.below(600).min(512) as usize;
        sector[..len].copy_from_slice(&random.bytes(len));
    }
    workshop.put(0, &bytes);
    for settings in ["-c,cluster_size=512", "-c,cluster_size=4K,compression_type=zstd"] {
        let path = workshop.path("small.qcow2");
        let target = Target::new(encoding(Format::Qcow2, settings), &path);
        export(&*workshop.source(), &[target], &Silent, &AtomicBool::new(false)).unwrap();
        let report = qemu_img(&["check", "-f", "qcow2", text(&path)]);
        assert!(!report.to_lowercase().contains("leak"), "{settings}: {report}");
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&workshop.raw), text(&path)]);
        fs::remove_file(path).unwrap();
    }
}
