//! A small FAT file system in memory, with a label: the carrier of a seed.
//!
//! FAT, because everything that reads seeds reads it: cloud-init looks for `vfat` and `iso9660` with the label in lower
//! or upper case, older versions and BSD's readers only in lower case, so the label is written as given. It stands both
//! in the boot sector and in the root directory, which is where `blkid` looks first. Equal files give equal bytes: all
//! times are 1 January 2000 and the volume number comes from the content.
//!
//! Microsoft's "FAT32 File System Specification" 1.03, sections on the BPB and on volume labels.

use std::io::{Cursor, Write};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use super::SeedError;

/// The largest sum of file sizes that a seed takes, in bytes.
pub const MAX_SIZE: u64 = 64 << 20;

/// What the file system itself takes, at least, and the step in which the disk grows.
const STEP: u64 = 256 << 10;

/// One file of a seed.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// The name, case kept; folders before it, with `/` between them, are made.
    pub name: &'a str,
    /// The content.
    pub content: &'a [u8],
}

#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 2000, month: 1, day: 1 }
    }
    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time { hour: 0, min: 0, sec: 0, millis: 0 },
        }
    }
}

static FIXED_TIME: FixedTime = FixedTime;

/// Returns the bytes of a disk that is one FAT file system (no partition table) with these files.
///
/// `label` is at most 11 bytes and is written as it is, lower case included.
///
/// # Errors
/// When the files are larger than [`MAX_SIZE`] together, the label is none, or a name is none that FAT can hold.
pub fn image(label: &str, files: &[File<'_>]) -> Result<Vec<u8>, SeedError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !(1..=11).contains(&label.len()) || !label.bytes().all(plain) {
        return Err(SeedError::Label { label: label.into() });
    }
    for File { name, .. } in files {
        let leads_away = |part: &str| matches!(part, "" | "." | "..") || part.contains('\\');
        if name.split('/').any(leads_away) || name.len() > 255 {
            return Err(SeedError::FileName { name: (*name).into() });
        }
    }
    let size: u64 = files.iter().map(|file| file.content.len() as u64).sum();
    if size > MAX_SIZE {
        return Err(SeedError::TooLarge { size, limit: MAX_SIZE });
    }
    // Room for the tables and half-used clusters: an eighth, and a step for the smallest.
    let bytes = (size + size / 8 + STEP).next_multiple_of(STEP);
    let mut field = [b' '; 11];
    for (place, byte) in field.iter_mut().zip(label.bytes()) {
        *place = byte;
    }
    let mut disk = Cursor::new(vec![0u8; bytes as usize]);
    let format = FormatVolumeOptions::new().volume_label(field).volume_id(volume_number(files));
    fatfs::format_volume(&mut disk, format).map_err(SeedError::FileSystem)?;
    disk.set_position(0);
    make_folders(&mut disk, files).map_err(SeedError::FileSystem)?;
    mend_folders(disk.get_mut());
    disk.set_position(0);
    write_files(&mut disk, files).map_err(SeedError::FileSystem)?;
    Ok(disk.into_inner())
}

fn options() -> FsOptions {
    FsOptions::new().time_provider(&FIXED_TIME).update_accessed_date(false)
}

fn make_folders(disk: &mut Cursor<Vec<u8>>, files: &[File<'_>]) -> std::io::Result<()> {
    let system = FileSystem::new(disk, options())?;
    for (folders, _) in files.iter().filter_map(|file| file.name.rsplit_once('/')) {
        let mut folder = system.root_dir();
        for part in folders.split('/') {
            folder = folder.create_dir(part)?;
        }
    }
    system.unmount()
}

/// Puts `.` and `..` into the first two entries of every folder, where the specification wants them:
/// fatfs writes a long name before each. There is nothing on the disk yet but folders.
fn mend_folders(disk: &mut [u8]) {
    const ENTRY: usize = 32;
    const LONG_NAME: u8 = 0x0f;
    const DELETED: u8 = 0xe5;
    for sector in disk.chunks_exact_mut(512) {
        let is = |at: usize, name: &[u8; 11]| sector[at * ENTRY..].starts_with(name);
        let is_long = |at: usize| sector[at * ENTRY + 11] == LONG_NAME;
        if is_long(0) && is(1, b".          ") && is_long(2) && is(3, b"..         ") {
            sector.copy_within(ENTRY..2 * ENTRY, 0);
            sector.copy_within(3 * ENTRY..4 * ENTRY, ENTRY);
            sector[2 * ENTRY] = DELETED;
            sector[3 * ENTRY] = DELETED;
        }
    }
}

fn write_files(disk: &mut Cursor<Vec<u8>>, files: &[File<'_>]) -> std::io::Result<()> {
    let system = FileSystem::new(disk, options())?;
    for file in files {
        let mut entry = system.root_dir().create_file(file.name)?;
        entry.write_all(file.content)?;
        entry.flush()?;
    }
    system.unmount()
}

/// FNV-1a over names and contents: stable, and different for different seeds, which is all a volume number must be.
fn volume_number(files: &[File<'_>]) -> u32 {
    let bytes =
        files.iter().flat_map(|file| file.name.as_bytes().iter().chain([&0]).chain(file.content));
    bytes.fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(program: &str, package: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
            panic!("{program}: {error}: install the Debian package {package}")
        });
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn blkid_fsck_and_mtools_read_the_image() {
        let long = vec![b'#'; 3 << 20];
        for (files, label) in [
            (
                vec![
                    File { name: "meta-data", content: b"a: b\n" },
                    File { name: "user-data", content: b"" },
                ],
                "cidata",
            ),
            (
                vec![
                    File { name: "user-data", content: &long },
                    File { name: "openstack/latest/user_data", content: b"x" },
                    File { name: "openstack/latest/meta_data.json", content: b"{}" },
                ],
                "CONFIG-2",
            ),
        ] {
            let image = image(label, &files).expect("image");
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join("seed.img");
            std::fs::write(&path, &image).expect("write");
            let path = path.to_str().expect("path");
            let seen = run("blkid", "util-linux", &["-p", "-o", "export", path]);
            assert!(seen.lines().any(|line| line == format!("LABEL={label}")), "{seen}");
            assert!(seen.lines().any(|line| line == format!("LABEL_FATBOOT={label}")), "{seen}");
            assert!(seen.lines().any(|line| line == "TYPE=vfat"), "{seen}");
            run("fsck.fat", "dosfstools", &["-n", "-v", path]);
            for file in files {
                let name = format!("::{}", file.name);
                let output = Command::new("mtype").args(["-i", path, &name]).output();
                let output = output.expect("mtype is missing: install the Debian package mtools");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(output.stdout.len(), file.content.len());
                assert!(output.stdout == file.content);
            }
        }
    }

    #[test]
    fn equal_files_give_equal_bytes_and_others_another_volume() {
        let one = image("cidata", &[File { name: "meta-data", content: b"a" }]).expect("image");
        let same = image("cidata", &[File { name: "meta-data", content: b"a" }]).expect("image");
        let other = image("cidata", &[File { name: "meta-data", content: b"b" }]).expect("image");
        assert!(one == same);
        assert!(one[..512] != other[..512]);
        assert!(one.len() <= 512 << 10, "{}", one.len());
    }

    #[test]
    fn too_much_is_refused() {
        let huge = vec![0; MAX_SIZE as usize + 1];
        let refused = image("cidata", &[File { name: "user-data", content: &huge }]);
        assert!(matches!(refused, Err(SeedError::TooLarge { .. })));
    }

    #[test]
    fn labels_and_names_that_no_disk_can_have_are_refused() {
        for label in ["", "twelve-chars", "a b", "é"] {
            assert!(matches!(image(label, &[]), Err(SeedError::Label { .. })), "{label}");
        }
        for name in ["", "/a", "a/", "../a", "a/../b", "a//b", "a\\b"] {
            let refused = image("seed", &[File { name, content: b"" }]);
            assert!(matches!(refused, Err(SeedError::FileName { .. })), "{name}");
        }
        assert!(image("seed", &[File { name: "a:b", content: b"" }]).is_err());
    }
}
