//! Images that are wrong on purpose: an error that names the file and the reason, or a disk that
//! reads without one; never a panic, never without end.

mod disks;

use std::fs;
use std::path::Path;

use disks::{Random, Workshop, damaged, read_all, succeed, text, three_places};
use kvmbake_convert::{Error, Format, OpenOptions, info, open, probe};
use kvmbake_disk::ErrorKind;

const OWN: [Format; 3] = [Format::Vdi, Format::Vhd, Format::Vmdk];

/// A small disk in the three formats whose readers are ours.
fn images() -> Workshop {
    let workshop = three_places();
    workshop.export(&OWN, "good");
    workshop
}

fn good(workshop: &Workshop, format: Format) -> Vec<u8> {
    fs::read(workshop.path(&format!("good.{}", format.extension()))).unwrap()
}

/// Where the metadata of the images above lies.
fn metadata(format: Format, bytes: &[u8]) -> Vec<usize> {
    match format {
        Format::Vdi => (64..560).collect(),
        Format::Vhd => (0..1600).chain(bytes.len() - 512..bytes.len()).collect(),
        _ => (0..2048).chain(21 * 512..40 * 512).collect(),
    }
}

/// Makes the checksums of a VHD right again, so that what they protect is reached.
fn seal_vhd(bytes: &mut [u8]) {
    let len = bytes.len();
    for (start, length, at) in [(0, 512, 64), (len - 512, 512, 64), (512, 1024, 36)] {
        let part = &mut bytes[start..start + length];
        part[at..at + 4].fill(0);
        let sum = !part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn flipped_bytes_are_survived() {
    let workshop = images();
    for format in OWN {
        let bytes = good(&workshop, format);
        let metadata = metadata(format, &bytes);
        let mut random = Random::new(format as u64 + 100);
        for round in 0..200 {
            let mut bytes = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = metadata[random.below(metadata.len() as u64) as usize];
                bytes[at] = random.next() as u8;
            }
            if format == Format::Vhd && round % 2 == 0 {
                // The copy follows the footer, or nothing behind it would be reached.
                let end = bytes.len() - 512;
                bytes.copy_within(end.., 0);
                seal_vhd(&mut bytes);
            }
            let _ = read_all(&damaged(&workshop, &bytes), format);
        }
    }
}

#[test]
fn extreme_fields_are_survived() {
    let workshop = images();
    for format in OWN {
        let bytes = good(&workshop, format);
        let fields: Vec<usize> = match format {
            Format::Vdi => (64..480).step_by(4).chain(512..540).collect(),
            Format::Vhd => {
                (0..100).step_by(4).chain((512..560).step_by(4)).chain(1536..1552).collect()
            }
            _ => (0..80)
                .chain((21 * 512..21 * 512 + 8).step_by(4))
                .chain((26 * 512..27 * 512).step_by(64))
                .collect(),
        };
        for at in fields {
            for value in [
                [0; 4],
                [0xff; 4],
                [0x7f, 0xff, 0xff, 0xff],
                [0x80, 0, 0, 0],
                [1, 0, 0, 0],
                [0, 0, 0, 1],
            ] {
                let mut bytes = bytes.clone();
                bytes[at..at + 4].copy_from_slice(&value);
                if format == Format::Vhd {
                    let end = bytes.len() - 512;
                    bytes.copy_within(..512, end);
                    seal_vhd(&mut bytes);
                }
                let _ = read_all(&damaged(&workshop, &bytes), format);
            }
        }
    }
}

#[test]
fn truncated_files_are_refused() {
    let workshop = images();
    for format in OWN {
        let bytes = good(&workshop, format);
        for len in [0, 1, 100, 511, 512, 1024, 4096, bytes.len() / 2, bytes.len() - 70_000] {
            let error = read_all(&damaged(&workshop, &bytes[..len]), format).unwrap_err();
            let Error::Disk(error) = error else { panic!("{error}") };
            assert!(
                matches!(error.kind(), ErrorKind::Truncated | ErrorKind::Corrupt),
                "{format} {len}: {error}"
            );
        }
    }
}

/// Damages one place of a good image and returns the refusal.
fn refusal(format: Format, at: usize, value: &[u8]) -> String {
    let workshop = images();
    let mut bytes = good(&workshop, format);
    bytes[at..at + value.len()].copy_from_slice(value);
    if format == Format::Vhd {
        let end = bytes.len() - 512;
        bytes.copy_within(..512, end);
        seal_vhd(&mut bytes);
    }
    let error = read_all(&damaged(&workshop, &bytes), format).unwrap_err();
    let Error::Disk(error) = error else { panic!("{error}") };
    error.to_string()
}

#[test]
fn blocks_that_overlap_are_refused() {
    assert!(refusal(Format::Vdi, 512 + 4, &[0; 4]).contains("overlaps"));
    // The disk's first and second block are stored at one place.
    let workshop = images();
    let vhd = good(&workshop, Format::Vhd);
    let first: [u8; 4] = vhd[1536..1540].try_into().unwrap();
    assert!(refusal(Format::Vhd, 1540, &first).contains("overlaps"));
    let near = (u32::from_be_bytes(first) + 1).to_be_bytes();
    assert!(refusal(Format::Vhd, 1540, &near).contains("overlaps"));
    assert!(refusal(Format::Vhd, 1540, &1u32.to_be_bytes()).contains("overlaps the headers"));
    let vmdk = good(&workshop, Format::Vmdk);
    let directory = u64::from_le_bytes(vmdk[56..64].try_into().unwrap()) as usize * 512;
    let table =
        u32::from_le_bytes(vmdk[directory..directory + 4].try_into().unwrap()) as usize * 512;
    let grain: [u8; 4] = vmdk[table..table + 4].try_into().unwrap();
    assert!(refusal(Format::Vmdk, table + 4, &grain).contains("overlaps"));
    assert!(refusal(Format::Vmdk, table, &[2, 0, 0, 0]).contains("overlaps the metadata"));
    assert!(refusal(Format::Vmdk, directory, &[1, 0, 0, 0]).contains("overlap"));
}

#[test]
fn tables_and_blocks_beyond_the_file_are_refused() {
    assert!(refusal(Format::Vdi, 512, &[0xff, 0, 0, 0]).contains("beyond the file"));
    assert!(refusal(Format::Vhd, 1536, &[0x7f, 0, 0, 0]).contains("beyond the file"));
    assert!(refusal(Format::Vhd, 512 + 16, &[0, 0, 0, 1]).contains("beyond the file"));
    assert!(refusal(Format::Vmdk, 56, &[0, 0, 0, 1]).contains("beyond the file"));
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let text = refusal(Format::Vmdk, 12, &[0, 0xff]);
    assert!(text.contains("capacity"), "{text}");
    let text = refusal(Format::Vhd, 512 + 28, &[0, 0, 0, 1]);
    assert!(text.contains("do not make up"), "{text}");
    let text = refusal(Format::Vdi, 384, &[1, 0, 0, 0]);
    assert!(text.contains("do not make up"), "{text}");
}

#[test]
fn wrong_checksums_are_refused() {
    let workshop = images();
    for at in [40, 512 + 300] {
        let mut bytes = good(&workshop, Format::Vhd);
        bytes[at] ^= 1;
        let error = read_all(&damaged(&workshop, &bytes), Format::Vhd).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

#[test]
fn children_and_multi_file_images_are_refused() {
    assert!(refusal(Format::Vdi, 76, &[4, 0, 0, 0]).contains("child"));
    assert!(refusal(Format::Vdi, 440, &[1]).contains("parent"));
    assert!(refusal(Format::Vhd, 60, &[0, 0, 0, 4]).contains("child"));
    let workshop = Workshop::new(1 << 20);
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
                      createType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n";
    let path = damaged(&workshop, format!("{descriptor:<1024}").as_bytes());
    let error = open(&path, &OpenOptions::default()).err().unwrap();
    let Error::Disk(error) = &error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::NamesOtherFile);
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let workshop = Workshop::new(0);
    let fifo = workshop.path("fifo");
    succeed("mkfifo", "coreutils", &[text(&fifo)]);
    for path in [fifo.as_path(), workshop.directory.path(), Path::new("/dev/zero")] {
        assert!(probe(path).is_err());
        for format in OWN {
            assert!(info(path, &OpenOptions::with_format(format)).is_err());
        }
    }
}

#[test]
fn a_file_that_looks_like_two_formats_is_not_guessed() {
    let workshop = images();
    let mut bytes = good(&workshop, Format::Vdi);
    bytes[..4].copy_from_slice(b"QFI\xfb");
    let path = damaged(&workshop, &bytes);
    let error = probe(&path).unwrap_err();
    assert!(matches!(error, Error::Ambiguous { first: Format::Qcow2, second: Format::Vdi, .. }));
    assert!(error.hint().is_some());
    open(&path, &OpenOptions::with_format(Format::Vdi)).unwrap();
}

#[test]
fn sparse_giants_take_no_time() {
    let workshop = images();
    for format in OWN {
        let bytes = good(&workshop, format);
        let path = damaged(&workshop, &bytes[..4096]);
        fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
        // What counts is how soon this returns, which `read_all` checks.
        let _ = read_all(&path, format);
    }
}
