//! Random disks through every pair of formats: read from one, written to the other, the same.
//!
//! Some disks go through all pairs, and any disk of up to 3 TiB (proptest) through any pair.
//! `PROPTEST_CASES` asks for more of those than the few that always run.

mod disks;

use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop};
use kvmbake_convert::{
    Comparison, Encoding, Error, Format, OpenOptions, Options, Silent, Target, compare, digest,
    export_with, open,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

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

fn target(workshop: &Workshop, prefix: &str, kind: usize) -> Target {
    let (format, settings) = KINDS[kind];
    let mut encoding = Encoding::from(format);
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        match setting.split_once('=') {
            Some((key, value)) => encoding.set(key, value).unwrap(),
            None => encoding.compress().unwrap(),
        }
    }
    Target::new(encoding, workshop.path(&format!("{prefix}{kind}.{format}")))
}

fn targets(workshop: &Workshop, prefix: &str) -> Vec<Target> {
    (0..KINDS.len()).map(|kind| target(workshop, prefix, kind)).collect()
}

fn opened(workshop: &Workshop, target: &Target) -> std::sync::Arc<dyn kvmbake_disk::Block> {
    let allow_backing = vec![workshop.directory.path().to_owned()];
    let options = OpenOptions { allow_backing, ..OpenOptions::default() };
    open(&target.path, &options).unwrap()
}

/// Each image is compared with its source here, so not also by the export.
const QUICK: Options = Options { verify: false, digest: false, checksums: false, sync: false };

/// Writes every kind from the raw disk, and from each of those every kind again.
fn through_every_pair(workshop: &Workshop) {
    let never = AtomicBool::new(false);
    let source = workshop.source();
    let first = targets(workshop, "a");
    // Only VHD may refuse a disk, and only one that is too large for it.
    let too_large = source.len() > 2040 << 30;
    let fits = |target: &&Target| !(too_large && target.format() == Format::Vhd);
    if too_large {
        let refused = export_with(&*source, &first, &QUICK, &Silent, &never).unwrap_err();
        assert!(matches!(refused, Error::Refused { format: Format::Vhd, .. }), "{refused}");
    }
    let first: Vec<_> = first.iter().filter(fits).cloned().collect();
    let expected = digest(&*source).unwrap();
    export_with(&*source, &first, &QUICK, &Silent, &never).unwrap();
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
        export_with(&*disk, &second, &QUICK, &Silent, &never).unwrap();
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
    for _ in 0..2 {
        let size = 1 + random.below(24 * MIB);
        through_every_pair(&scattered(&mut random, size, 30));
    }
}

/// The largest disk of these tests, which VHD cannot hold.
const MAX_SIZE: u64 = 3 << 40;

/// A stretch of the disk that is not a hole.
#[derive(Debug, Clone)]
enum Piece {
    /// Bytes of this seed.
    Random(u64),
    /// One byte again and again; zeroes too.
    Same(u8),
}

/// A disk: its size, and where it is what; later pieces hide earlier ones.
#[derive(Debug, Clone)]
struct Disk {
    size: u64,
    pieces: Vec<(u64, usize, Piece)>,
}

fn any_disk() -> impl Strategy<Value = Disk> {
    let size = prop_oneof![
        4 => 512..=4 * MIB,
        3 => 4 * MIB..=48 * MIB,
        1 => 48 * MIB..=MAX_SIZE,
    ];
    let piece = prop_oneof![
        3 => any::<u64>().prop_map(Piece::Random),
        1 => Just(Piece::Same(0)),
        1 => any::<u8>().prop_map(Piece::Same),
    ];
    let len = prop_oneof![1..=4096usize, 1..=300_000usize];
    size.prop_flat_map(move |size| {
        // Ends and beginnings of units are where faults are.
        let place = prop_oneof![
            0..size,
            (0..=(size - 1) / MIB).prop_map(|mebibyte| mebibyte * MIB),
            (1..=size.min(2000)).prop_map(move |from_end| size - from_end),
        ];
        let pieces = vec((place, len.clone(), piece.clone()), 0..12);
        pieces.prop_map(move |pieces| Disk { size, pieces })
    })
}

impl Disk {
    fn make(&self) -> Workshop {
        let workshop = Workshop::new(self.size);
        for (offset, len, piece) in &self.pieces {
            let len = (*len as u64).min(self.size - offset) as usize;
            match piece {
                Piece::Random(seed) => workshop.put(*offset, &Random::new(*seed).bytes(len)),
                Piece::Same(byte) => workshop.put(*offset, &vec![*byte; len]),
            }
        }
        workshop
    }
}

/// Writes one kind from the raw disk and the other kind from that; says where it went wrong.
fn through(disk: &Disk, from: usize, to: usize) -> Result<(), String> {
    let never = AtomicBool::new(false);
    let workshop = disk.make();
    let source = workshop.source();
    let mut here = source.clone();
    for (prefix, kind) in [("a", from), ("b", to)] {
        let target = target(&workshop, prefix, kind);
        let written = export_with(&*here, std::slice::from_ref(&target), &QUICK, &Silent, &never);
        match written {
            // A fixed VHD that was rounded up may be too large for the next.
            Err(Error::Refused { format: Format::Vhd, reason, .. }) if here.len() > 2040 << 30 => {
                return if reason.contains("2040 GiB") { Ok(()) } else { Err(reason) };
            }
            Err(error) => return Err(format!("{:?}: {error}", KINDS[kind])),
            Ok(_) => {}
        }
        here = opened(&workshop, &target);
        if here.len() < disk.size {
            return Err(format!("{:?} has {} bytes", KINDS[kind], here.len()));
        }
        let found = compare(&*here, &*source, &Silent, &never).unwrap();
        if found != Comparison::Equal {
            return Err(format!("{:?}: {found:?}", KINDS[kind]));
        }
    }
    Ok(())
}

#[test]
fn the_largest_disk_from_and_to_every_kind() {
    let places = [0, 7, MAX_SIZE / 3, MAX_SIZE / 2 + 4096, MAX_SIZE - 70_000];
    let piece = |place: u64| (place, 70_000, Piece::Random(place));
    let disk = Disk { size: MAX_SIZE, pieces: places.map(piece).to_vec() };
    for from in 0..KINDS.len() {
        for step in [1, 5] {
            through(&disk, from, (from + step) % KINDS.len()).unwrap();
        }
    }
}

#[test]
fn any_disk_through_any_pair() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: cases.unwrap_or(80),
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    // The same disks in every run, unless more are asked for.
    let mut runner = match cases {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let strategy = (any_disk(), 0..KINDS.len(), 0..KINDS.len());
    let outcome = runner
        .run(&strategy, |(disk, from, to)| through(&disk, from, to).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, (disk, from, to))) => {
            panic!("{reason}: {disk:?} through {:?} to {:?}", KINDS[from], KINDS[to]);
        }
        Err(error) => panic!("{error}"),
    }
}
