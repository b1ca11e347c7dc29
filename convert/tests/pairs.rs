//! Random disks through every pair of formats: read from one, written to the other, the same.

mod disks;

use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop};
use kvmbake_convert::{
    Comparison, Encoding, Error, Format, OpenOptions, Options, Silent, Target, compare, digest,
    export_with, open,
};

const MIB: u64 = 1 << 20;

/// Every kind of image that is both written and read.
const KINDS: [(Format, &str); 14] = [
    (Format::Raw, ""),
    (Format::Qcow2, ""),
    (Format::Qcow2, "-c"),
    (Format::Qcow2, "-c,compression_type=zstd"),
    (Format::Qcow2, "cluster_size=4K"),
    (Format::Vdi, ""),
    (Format::Vdi, "static=on"),
    (Format::Vhd, ""),
    (Format::Vhd, "subformat=fixed"),
    (Format::Vhdx, ""),
    (Format::Vmdk, ""),
    (Format::Vmdk, "-c"),
    (Format::Vmdk, "subformat=monolithicFlat"),
    (Format::Ova, ""),
];

fn targets(workshop: &Workshop, prefix: &str) -> Vec<Target> {
    KINDS
        .iter()
        .enumerate()
        .map(|(index, (format, settings))| {
            let mut encoding = Encoding::from(*format);
            for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
                match setting.split_once('=') {
                    Some((key, value)) => encoding.set(key, value).unwrap(),
                    None => encoding.compress().unwrap(),
                }
            }
            Target::new(encoding, workshop.path(&format!("{prefix}{index}.{format}")))
        })
        .collect()
}

fn opened(workshop: &Workshop, target: &Target) -> std::sync::Arc<dyn kvmbake_disk::Block> {
    let allow_backing = vec![workshop.directory.path().to_owned()];
    let options = OpenOptions { allow_backing, ..OpenOptions::default() };
    open(&target.path, &options).unwrap()
}

/// Writes every kind from the raw disk, and from each of those every kind again.
fn through_every_pair(workshop: &Workshop) {
    let never = AtomicBool::new(false);
    // Each image is compared with its source here, so not also by the export.
    let quick = Options { verify: false, digest: false, checksums: false, sync: false };
    let source = workshop.source();
    let first = targets(workshop, "a");
    // Only VHD may refuse a disk, and only one that is too large for it.
    let too_large = source.len() > 2040 << 30;
    let fits = |target: &&Target| !(too_large && target.format() == Format::Vhd);
    if too_large {
        let refused = export_with(&*source, &first, &quick, &Silent, &never).unwrap_err();
        assert!(matches!(refused, Error::Refused { format: Format::Vhd, .. }), "{refused}");
    }
    let first: Vec<_> = first.iter().filter(fits).cloned().collect();
    let expected = digest(&*source).unwrap();
    export_with(&*source, &first, &quick, &Silent, &never).unwrap();
    for (index, target) in first.iter().enumerate() {
        let disk = opened(workshop, target);
        assert!(disk.len() >= source.len(), "{:?}", target.encoding);
        let found = compare(&*disk, &*source, &Silent, &never).unwrap();
        assert_eq!(found, Comparison::Equal, "{:?}", target.encoding);
        if disk.len() == source.len() {
            assert_eq!(digest(&*disk).unwrap(), expected, "{:?}", target.encoding);
        }
        let second = targets(workshop, &format!("b{index}-"));
        let second: Vec<_> = second.iter().filter(fits).cloned().collect();
        export_with(&*disk, &second, &quick, &Silent, &never).unwrap();
        for other in &second {
            let found = compare(&*opened(workshop, other), &*source, &Silent, &never).unwrap();
            let pair = (&target.encoding, &other.encoding);
            assert_eq!(found, Comparison::Equal, "{pair:?}");
            let _ = std::fs::remove_file(&other.path);
        }
    }
}

/// Scatters data, zeroes that are stored, and holes.
fn scattered(random: &mut Random, size: u64, pieces: u64) -> Workshop {
    let workshop = Workshop::new(size);
    for _ in 0..pieces {
        let offset = random.below(size);
        let longest = 1 << random.below(18);
        let len = (1 + random.below(longest)).min(size - offset) as usize;
        let bytes = match random.below(4) {
            0 => vec![0; len],
            1 => vec![random.next() as u8; len],
            _ => random.bytes(len),
        };
        workshop.put(offset, &bytes);
    }
    workshop
}

#[test]
fn small_disks() {
    let mut random = Random::new(41);
    for size in [512, 1024, 65_536, 65_537, MIB, MIB + 511] {
        through_every_pair(&scattered(&mut random, size, 5));
    }
}

#[test]
fn disks_of_some_mebibytes() {
    let mut random = Random::new(43);
    for _ in 0..3 {
        let size = 1 + random.below(24 * MIB);
        through_every_pair(&scattered(&mut random, size, 30));
    }
}

#[test]
fn a_large_sparse_disk() {
    let mut random = Random::new(47);
    let size = (100 << 30) + random.below(100 << 30) / 512 * 512;
    through_every_pair(&scattered(&mut random, size, 12));
}
