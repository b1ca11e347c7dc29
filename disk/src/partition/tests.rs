//! Tables written by sgdisk and sfdisk, then damaged by hand.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::memory::MemoryBlock;

const SIZE: usize = 64 << 20;

/// Runs a partitioning program on an empty image of [`SIZE`] bytes and returns the image.
fn made_by(package: &str, program: &str, arguments: &[&str], input: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE as u64).unwrap();
    let mut child = Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(arguments)
        .arg(file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} failed");
    std::fs::read(file.path()).unwrap()
}

fn gpt_image() -> Vec<u8> {
    let arguments = [
        "-n14:2048:8191",
        "-t14:ef02",
        "-n15:8192:40959",
        "-t15:ef00",
        "-c15:EFI füür",
        "-n1:40960:0",
        "-c1:root",
        "-A1:set:2",
        "-u1:6bb9b61e-7b56-4d1f-a7a4-5f7e5d5e1c01",
        "-U8b7a6f52-0f0e-4b6b-9c0a-111213141516",
    ];
    made_by("gdisk", "sgdisk", &arguments, "")
}

fn read(image: Vec<u8>) -> Result<PartitionTable, Error> {
    partitions(&MemoryBlock::read_only(image))
}

fn message(image: Vec<u8>) -> String {
    let error = read(image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    error.to_string()
}

/// Changes the primary or backup header and sets its checksums right again.
fn edit_gpt(image: &mut [u8], header_lba: usize, change: impl FnOnce(&mut [u8])) {
    change(image);
    let at = header_lba * 512;
    let lba = u64::from_le_bytes(image[at + 72..at + 80].try_into().unwrap());
    if lba == 2 {
        let entries = &image[1024..1024 + 128 * 128];
        let crc = gpt::crc32(entries);
        image[at + 88..at + 92].copy_from_slice(&crc.to_le_bytes());
    }
    image[at + 16..at + 20].fill(0);
    let crc = gpt::crc32(&image[at..at + 92]);
    image[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn gpt_gives_numbers_names_types_and_uuids() {
    let table = read(gpt_image()).unwrap();
    assert_eq!((table.scheme, table.from_backup), (Scheme::Gpt, false));
    assert_eq!(table.disk_id.as_deref(), Some("8b7a6f52-0f0e-4b6b-9c0a-111213141516"));
    let [root, bios, esp] = &table.partitions[..] else { panic!("{table:?}") };
    assert_eq!((root.number, bios.number, esp.number), (1, 14, 15));
    assert_eq!((bios.offset, bios.len), (1 << 20, 3 << 20));
    assert_eq!((esp.offset, esp.len), (4 << 20, 16 << 20));
    assert_eq!(root.offset, 20 << 20);
    assert_eq!(root.uuid.as_deref(), Some("6bb9b61e-7b56-4d1f-a7a4-5f7e5d5e1c01"));
    assert_eq!((root.name.as_deref(), root.attributes), (Some("root"), 4));
    assert_eq!(esp.name.as_deref(), Some("EFI füür"));
    assert!(esp.kind.is_efi_system() && !root.kind.is_efi_system());
    assert_eq!(bios.kind.to_string(), "21686148-6449-6e6f-744e-656564454649");
}

#[test]
fn gpt_backup_is_read_when_the_primary_is_damaged() {
    let intact = gpt_image();
    let expected = read(intact.clone()).unwrap();
    for damaged in [512 + 60, 1024 + 10] {
        let mut image = intact.clone();
        image[damaged] ^= 1;
        let table = read(image).unwrap();
        assert!(table.from_backup);
        assert_eq!(table.partitions, expected.partitions);
    }
    let mut image = intact;
    image[512 + 60] ^= 1;
    image[SIZE - 512 + 60] ^= 1;
    let message = message(image);
    assert!(message.contains("sector 1: checksum"), "{message}");
    assert!(message.contains("sector 131071: checksum"), "{message}");
}

#[test]
fn hostile_gpt_is_refused_with_the_reason() {
    let entry = 1024;
    let edited = |change: &dyn Fn(&mut [u8])| {
        let mut image = gpt_image();
        image[SIZE - 512..].fill(0);
        edit_gpt(&mut image, 1, change);
        message(image)
    };
    let text = edited(&|image| image[entry + 40..entry + 48].copy_from_slice(&[0xff; 8]));
    assert!(text.contains("partition 1 has sectors 40960 to 18446744073709551615"), "{text}");
    let text =
        edited(&|image| image[entry + 32..entry + 40].copy_from_slice(&9000u64.to_le_bytes()));
    assert!(text.contains("partitions 15 and 1 overlap"), "{text}");
    let text = edited(&|image| image[512 + 80..512 + 84].copy_from_slice(&[0xff; 4]));
    assert!(text.contains("4294967295 entries of 128 bytes"), "{text}");
    let text = edited(&|image| image[512 + 72..512 + 80].copy_from_slice(&[0xff; 8]));
    assert!(text.contains("entries lie beyond the disk"), "{text}");
    let text = edited(&|image| {
        image[512 + 48..512 + 56].copy_from_slice(&[0xff; 8]);
        image[entry + 40..entry + 48].copy_from_slice(&200_000u64.to_le_bytes());
    });
    assert!(text.contains("ends at sector 200000, the disk has 131072"), "{text}");
    let mut image = gpt_image();
    image[512..520].fill(0);
    image[SIZE - 512..].fill(0);
    assert!(message(image).contains("no GPT header where the protective MBR promises one"));
}

#[test]
fn mbr_gives_primary_and_logical_partitions() {
    let script = "label: dos\nlabel-id: 0x1a2b3c4d\n\
        2048,20480,83,*\n22528,20480,ef\n43008,,5\n45056,8192,83\n55296,8192,82\n65536,,8e\n";
    let table = read(made_by("fdisk", "sfdisk", &["-q"], script)).unwrap();
    assert_eq!((table.scheme, table.disk_id.as_deref()), (Scheme::Mbr, Some("1a2b3c4d")));
    let found: Vec<_> = table
        .partitions
        .iter()
        .map(|part| (part.number, part.offset / 512, part.len / 512, part.kind.to_string()))
        .collect();
    let kind = |text: &str| text.to_string();
    assert_eq!(
        found,
        [
            (1, 2048, 20480, kind("0x83")),
            (2, 22528, 20480, kind("0xef")),
            (5, 45056, 8192, kind("0x83")),
            (6, 55296, 8192, kind("0x82")),
            (7, 65536, 65536, kind("0x8e")),
        ]
    );
    assert_eq!(table.partitions[0].attributes, 1);
    assert_eq!(table.partitions[3].uuid.as_deref(), Some("1a2b3c4d-06"));
}

#[test]
fn hostile_mbr_is_refused_with_the_reason() {
    let script = "label: dos\n2048,20480,83\n43008,,5\n45056,8192,83\n55296,8192,83\n";
    let image = made_by("fdisk", "sfdisk", &["-q"], script);
    let changed = |at: usize, value: u32| {
        let mut image = image.clone();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        message(image)
    };
    // The first logical record links to itself, then out of the extended partition.
    let link = 43008 * 512 + 462 + 8;
    assert!(changed(link, 0).contains("does not end"));
    assert!(changed(link, u32::MAX).contains("outside the extended partition"));
    let text = changed(446 + 12, u32::MAX);
    assert!(
        text.contains("partition 1 has sectors 2048 to 4294969342, the disk has 131072"),
        "{text}"
    );
    assert!(changed(446 + 8, 44000).contains("overlap"));
}

#[test]
fn a_disk_without_a_table_is_one_partition() {
    let fat = made_by("dosfstools", "mkfs.vfat", &["-F16"], "");
    let ext4 = made_by("e2fsprogs", "mkfs.ext4", &["-q"], "");
    for image in [fat, ext4, vec![0; 4096], vec![1; 100], Vec::new()] {
        let len = image.len() as u64;
        let table = read(image).unwrap();
        assert_eq!(table.scheme, Scheme::Whole);
        let [whole] = &table.partitions[..] else { panic!("{table:?}") };
        assert_eq!((whole.number, whole.offset, whole.len), (0, 0, len));
    }
}

#[test]
fn a_slice_is_a_read_only_window() {
    let mut bytes = vec![0; 5 * 4096];
    bytes[4096] = 1;
    bytes[2 * 4096 + 7] = 2;
    bytes[4 * 4096] = 3;
    let disk: Arc<dyn Block> = Arc::new(MemoryBlock::writable(bytes));
    let slice = Slice::new(disk.clone(), 2 * 4096, 2 * 4096).unwrap();
    let mut byte = [0];
    slice.read_at(&mut byte, 7).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(slice.read_at(&mut byte, 8192).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(slice.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    let extent = slice.next_data(0).unwrap().unwrap();
    assert_eq!((extent.offset, extent.len), (0, 4096));
    assert_eq!(slice.next_data(4096).unwrap(), None);
    assert!(Slice::new(disk, 4096, 5 * 4096).is_err());
}
