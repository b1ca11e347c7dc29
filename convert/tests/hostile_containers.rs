//! VHDX, streamed and split VMDK, and OVA that are wrong on purpose: refused by name, never a
//! panic, never without end.

mod disks;

use std::fs;

use disks::{Random, Workshop, damaged, read_all, seal_vhdx, three_places};
use kvmbake_convert::{Encoding, Format, OpenOptions, Silent, Target, export, open, probe};

const MIB: usize = 1 << 20;

fn written(workshop: &Workshop, format: Format, settings: &[(&str, &str)]) -> Vec<u8> {
    let mut encoding = Encoding::from(format);
    for (key, value) in settings {
        encoding.set(key, value).unwrap();
    }
    let path = workshop.path(&format!("good.{format}"));
    let target = Target::new(encoding, &path);
    let never = std::sync::atomic::AtomicBool::new(false);
    export(&*workshop.source(), &[target], &Silent, &never).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

fn vhdx(workshop: &Workshop) -> Vec<u8> {
    written(workshop, Format::Vhdx, &[])
}

fn streamed(workshop: &Workshop) -> Vec<u8> {
    written(workshop, Format::Vmdk, &[("subformat", "streamOptimized")])
}

#[track_caller]
fn refused(workshop: &Workshop, format: Format, bytes: &[u8], reason: &str) {
    let error = read_all(&damaged(workshop, bytes), format).unwrap_err().to_string();
    assert!(error.contains(reason), "{reason:?} is not in {error}");
}

/// Changes both copies of a VHDX's headers or region tables and seals them.
fn patched_vhdx(good: &[u8], places: &[usize], value: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for at in places {
        bytes[*at..at + value.len()].copy_from_slice(value);
    }
    seal_vhdx(&mut bytes);
    bytes
}

#[test]
fn vhdx_that_contradicts_itself_is_refused_by_name() {
    let workshop = three_places();
    let good = vhdx(&workshop);
    let headers = |field: usize| [(64 << 10) + field, (128 << 10) + field];
    let regions = |field: usize| [(192 << 10) + field, (256 << 10) + field];
    let item = |index: usize, field: usize| 2 * MIB + 32 + index * 32 + field;
    let value = |index: usize| 2 * MIB + (64 << 10) + index * 64;
    let refused = |places: &[usize], value: &[u8], reason: &str| {
        refused(&workshop, Format::Vhdx, &patched_vhdx(&good, places, value), reason);
    };
    refused(&headers(48), &[1], "holds no valid sequence");
    refused(&headers(66), &[2], "version 2");
    refused(&headers(72), &(2u64 << 20).to_le_bytes(), "overlaps another region");
    refused(&headers(72), &(1u64 << 62).to_le_bytes(), "beyond the file");
    refused(&headers(0), b"xxxx", "neither header");
    refused(&regions(16), &[0xee], "required region");
    refused(&regions(8), &3000u32.to_le_bytes(), "3000 entries");
    refused(&regions(32), &(1u64 << 40).to_le_bytes(), "beyond the file");
    refused(&regions(48), &good[(192 << 10) + 16..][..16], "twice");
    refused(&[item(1, 0)], &[0xee], "required metadata item");
    refused(&[item(0, 16)], &[0xff; 4], "metadata item of");
    refused(&[value(0)], &[1], "blocks of");
    refused(&[value(0) + 4], &[2], "parent");
    refused(&[value(1)], &[0xff; 8], "a disk of");
    refused(&[value(1) + 5], &[1], "does not cover");
    refused(&[value(3)], &[1], "sectors of");
    // The BAT: the second block where the first one is, in the metadata, beyond the end, partial.
    let bat = 3 * MIB;
    refused(&[bat + 8], &good[bat..bat + 8], "overlaps another one");
    refused(&[bat], &(2u64 << 20 | 6).to_le_bytes(), "overlaps the metadata");
    refused(&[bat], &(900u64 << 20 | 6).to_le_bytes(), "beyond the file");
    refused(&[bat], &(u64::MAX << 20 | 6).to_le_bytes(), "beyond the file");
    refused(&[bat], &[7], "partly in a parent");
    for len in [0, 100, 64 << 10, MIB, 3 * MIB, good.len() - MIB] {
        assert!(read_all(&damaged(&workshop, &good[..len]), Format::Vhdx).is_err(), "{len}");
    }
    // One damaged copy of each is made good by the other.
    let mut bytes = good.clone();
    bytes[(64 << 10) + 100] ^= 1;
    bytes[(192 << 10) + 20] ^= 1;
    read_all(&damaged(&workshop, &bytes), Format::Vhdx).unwrap();
}

#[test]
fn streamed_vmdk_that_contradicts_itself_is_refused_by_name() {
    let workshop = three_places();
    let good = streamed(&workshop);
    let refused = |at: usize, value: &[u8], reason: &str| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        refused(&workshop, Format::Vmdk, &bytes, reason);
    };
    let first = 128 * 512;
    refused(first, &[1], "the marker at");
    refused(first + 8, &[0xff; 4], "the marker at");
    refused(first + 8, &[0; 4], "the marker at");
    refused(first + 12, &[0xee; 40], "does not decompress");
    let footer = good.len() - 1024;
    refused(footer, b"X", "footer is missing");
    refused(footer + 56, &[0xff; 8], "contradict");
    refused(footer + 56, &[0xff, 0xff], "beyond the file");
    refused(footer + 12, &[1], "contradict");
    let directory = u64::from_le_bytes(good[footer + 56..][..8].try_into().unwrap()) as usize * 512;
    let table = u32::from_le_bytes(good[directory..][..4].try_into().unwrap()) as usize * 512;
    refused(directory, &[0xff; 4], "beyond the file");
    refused(directory, &[0, 0, 0, 0x7f], "beyond the file");
    // The second grain where the first one is, and one in the header.
    refused(table + 4, &good[table..table + 4], "the marker at");
    refused(table, &[1, 0, 0, 0], "the marker at");
    refused(77, &[2], "compression algorithm 2");
    for len in [100, 512, 60_000, good.len() / 2, good.len() - 512, good.len() - 1] {
        assert!(read_all(&damaged(&workshop, &good[..len]), Format::Vmdk).is_err(), "{len}");
    }
}

#[test]
fn archives_that_contradict_themselves_are_refused_by_name() {
    let workshop = three_places();
    let good = written(&workshop, Format::Ova, &[]);
    let path = damaged(&workshop, &good);
    assert_eq!(probe(&path).unwrap(), Format::Ova);
    let header = |bytes: &mut [u8], at: usize| {
        bytes[at + 148..at + 156].fill(b' ');
        let sum: u32 = bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    };
    let refused = |at: usize, value: &[u8], reason: &str| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        header(&mut bytes, 0);
        refused(&workshop, Format::Ova, &bytes, reason);
    };
    refused(0, b"disk.xml\0", "does not begin with an OVF descriptor");
    refused(156, b"2", "a member of type '2'");
    refused(124, b"77777777777\0", "beyond the file");
    refused(124, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "beyond");
    refused(124, b"zzzzzzzzzzz\0", "has no size");
    let mut bytes = good.clone();
    bytes[3] ^= 1;
    let error = read_all(&damaged(&workshop, &bytes), Format::Ova).unwrap_err().to_string();
    assert!(error.contains("wrong sum"), "{error}");
    for len in [0, 511, 512, 4096, good.len() / 2] {
        assert!(read_all(&damaged(&workshop, &good[..len]), Format::Ova).is_err(), "{len}");
    }
    // Two disks: which one is meant is not guessed.
    let disk = u32::from_str_radix(std::str::from_utf8(&good[124..135]).unwrap(), 8).unwrap();
    let disk = 512 + (disk as usize).next_multiple_of(512);
    let end = good.len() - 1024;
    let twice = [&good[..end], &good[disk..end], &[0; 1024]].concat();
    let error = read_all(&damaged(&workshop, &twice), Format::Ova).unwrap_err().to_string();
    assert!(error.contains("2 disks"), "{error}");
}

#[test]
fn flipped_bytes_are_survived() {
    let workshop = three_places();
    let files = [
        (Format::Vhdx, vhdx(&workshop)),
        (Format::Vmdk, streamed(&workshop)),
        (Format::Ova, written(&workshop, Format::Ova, &[])),
    ];
    for (format, good) in files {
        let metadata: Vec<usize> = match format {
            Format::Vhdx => (0..80)
                .chain((64 << 10)..(64 << 10) + 80)
                .chain((192 << 10)..(192 << 10) + 80)
                .chain(2 * MIB..2 * MIB + 200)
                .chain(2 * MIB + (64 << 10)..2 * MIB + (65 << 10))
                .chain(3 * MIB..3 * MIB + 32)
                .collect(),
            Format::Vmdk => {
                (0..1024).chain(65_536..66_600).chain(good.len() - 6000..good.len()).collect()
            }
            _ => (0..600).chain(3 << 10..8 << 10).chain(good.len() - 4096..good.len()).collect(),
        };
        let mut random = Random::new(format as u64 + 500);
        for round in 0..150 {
            let mut bytes = good.clone();
            for _ in 0..=random.below(3) {
                let at = metadata[random.below(metadata.len() as u64) as usize];
                bytes[at] = random.next() as u8;
            }
            if format == Format::Vhdx && round % 2 == 0 {
                seal_vhdx(&mut bytes);
            }
            let _ = read_all(&damaged(&workshop, &bytes), format);
        }
    }
}

#[test]
fn sparse_giants_take_no_time() {
    let workshop = three_places();
    for (format, good) in [
        (Format::Vhdx, vhdx(&workshop)),
        (Format::Vmdk, streamed(&workshop)),
        (Format::Ova, written(&workshop, Format::Ova, &[])),
    ] {
        let path = damaged(&workshop, &good[..good.len().min(4 * MIB)]);
        fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
        // What counts is how soon this returns, which `read_all` checks.
        let _ = read_all(&path, format);
    }
}

#[test]
fn split_descriptors_that_lie_are_refused() {
    let workshop = three_places();
    let allowed = OpenOptions {
        allow_backing: vec![workshop.directory.path().to_owned()],
        ..OpenOptions::with_format(Format::Vmdk)
    };
    let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n";
    fs::write(workshop.path("part"), [5; 4096]).unwrap();
    for (rest, reason) in [
        ("createType=\"monolithicFlat\"\nRW 9 FLAT \"part\" 0\n", "beyond the file"),
        ("createType=\"monolithicFlat\"\nRW 8 FLAT \"part\" 1\n", "beyond the file"),
        ("createType=\"monolithicFlat\"\nRW 8 FLAT \"part\" 99999999999999999999\n", "understood"),
        ("createType=\"monolithicFlat\"\nRW 18446744073709551615 ZERO\nRW 1 ZERO\n", "possible"),
        ("createType=\"monolithicFlat\"\n", "0 extents"),
        ("createType=\"twoGbMaxExtentSparse\"\nRW 8 SPARSE \"part\"\n", "header is missing"),
        ("createType=\"fullDevice\"\nRW 8 FLAT \"/dev/sda\" 0\n", "fullDevice"),
        ("createType=\"monolithicFlat\"\nRW 8 VMFSRDM \"part\"\n", "VMFSRDM"),
        ("createType=\"monolithicFlat\"\nRW 8 FLAT \"none\" 0\n", "none"),
    ] {
        let path = damaged(&workshop, format!("{head}{rest}").as_bytes());
        let error = open(&path, &allowed).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason:?} is not in {error}");
    }
    let good = format!("{head}createType=\"monolithicFlat\"\nRW 6 FLAT \"part\" 2\nRW 4 ZERO\n");
    let disk = open(&damaged(&workshop, good.as_bytes()), &allowed).unwrap();
    let mut bytes = vec![1; 5120];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..3072].iter().all(|byte| *byte == 5) && bytes[3072..].iter().all(|b| *b == 0));
    let child = good.replace("ffffffff", "12345678");
    let error = open(&damaged(&workshop, child.as_bytes()), &allowed).unwrap_err();
    assert!(error.to_string().contains("parent"), "{error}");
}
