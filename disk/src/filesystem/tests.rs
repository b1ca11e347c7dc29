//! File systems made by mkfs.ext4, mkfs.vfat and mtools.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::memory::MemoryBlock;

fn run(package: &str, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

fn memory(image: Vec<u8>) -> Arc<dyn Block> {
    Arc::new(MemoryBlock::read_only(image))
}

/// Bytes that no two blocks share.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 4) >> (at % 4 * 8)) as u8).collect()
}

fn names(fs: &dyn FileSystem, path: &str) -> Vec<String> {
    let mut names: Vec<_> =
        fs.list_dir(path).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

fn kind_of(result: Result<impl Sized, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.kind(),
    }
}

/// An ext image of a small tree with links, good and bad.
fn ext_image(kind: &str) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    let path = |name: &str| tree.path().join(name);
    std::fs::create_dir_all(path("boot/grub")).unwrap();
    std::fs::create_dir_all(path("usr/lib")).unwrap();
    std::fs::write(path("boot/grub/grub.cfg"), "set default=0\n").unwrap();
    std::fs::write(path("boot/initrd.img-6.1"), pattern(5 << 20)).unwrap();
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, path(name)).unwrap();
    link("boot/initrd.img-6.1", "initrd.img");
    link("../../../boot/./grub//grub.cfg", "usr/lib/up");
    link("/usr/lib/up", "absolute");
    link("loop-b", "loop-a");
    link("loop-a", "loop-b");
    link("nowhere", "dangling");
    link("usr/lib", "lib");
    for number in 0..600 {
        std::fs::write(path(&format!("usr/lib/module-number-{number}.ko")), "x").unwrap();
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    let file = image.path().to_str().unwrap();
    let uuid = "6bb9b61e-7b56-4d1f-a7a4-5f7e5d5e1c01";
    let tree = tree.path().to_str().unwrap();
    let program = format!("mkfs.{kind}");
    run(
        "e2fsprogs",
        &program,
        &["-q", "-L", "cloudimg-rootfs", "-U", uuid, "-d", tree, file, "24M"],
    );
    std::fs::read(image.path()).unwrap()
}

#[test]
fn ext_of_every_age_gives_its_files() {
    for (program, kind) in [("ext2", Kind::Ext2), ("ext3", Kind::Ext3), ("ext4", Kind::Ext4)] {
        let fs = open(memory(ext_image(program))).unwrap();
        assert_eq!((fs.kind(), fs.label()), (kind, Some("cloudimg-rootfs")));
        assert_eq!(fs.uuid(), "6bb9b61e-7b56-4d1f-a7a4-5f7e5d5e1c01");
        assert!(fs.read("/boot/initrd.img-6.1", 5 << 20).unwrap() == pattern(5 << 20));
        assert_eq!(names(&*fs, "/boot"), ["grub", "initrd.img-6.1"]);
        assert_eq!(fs.list_dir("/usr/lib").unwrap().len(), 601);
        let directory = fs.metadata("/boot/").unwrap();
        assert_eq!(directory.file_type, FileType::Directory);
    }
}

#[test]
fn ext_links_stay_inside_and_loops_end() {
    let fs = open(memory(ext_image("ext4"))).unwrap();
    assert_eq!(fs.metadata("/initrd.img").unwrap().len, 5 << 20);
    for path in ["/absolute", "/usr/lib/up", "/lib/up", "/lib/../boot/grub/grub.cfg"] {
        // `..` behind a link is the parent of the link's target.
        let found = fs.read(path, 100);
        match path {
            "/lib/../boot/grub/grub.cfg" => assert_eq!(kind_of(found), ErrorKind::NotFound),
            _ => assert_eq!(found.unwrap(), b"set default=0\n"),
        }
    }
    assert!(fs.read("/loop-a", 100).unwrap_err().to_string().contains("symbolic links"));
    assert_eq!(kind_of(fs.read("/dangling", 100)), ErrorKind::NotFound);
    assert_eq!(kind_of(fs.read("/boot", 100)), ErrorKind::Invalid);
    assert_eq!(kind_of(fs.read("/boot/grub/grub.cfg/x", 100)), ErrorKind::Invalid);
    assert_eq!(kind_of(fs.list_dir("/initrd.img")), ErrorKind::Invalid);
    let error = fs.read("/initrd.img", 1000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cannot read /initrd.img: it has 5242880 bytes, at most 1000 are read"
    );
}

#[test]
fn damaged_ext_is_an_error_not_a_panic() {
    let image = ext_image("ext4");
    assert_eq!(kind_of(open(memory(image[..20 << 20].to_vec()))), ErrorKind::Truncated);
    let changed = |at: usize, value: u32| {
        let mut image = image.clone();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        kind_of(open(memory(image)))
    };
    assert_eq!(changed(1024 + 0x18, 21), ErrorKind::Corrupt);
    assert_eq!(changed(1024 + 0x20, 0), ErrorKind::Corrupt);
    assert_eq!(changed(1024 + 0x54, 7), ErrorKind::Corrupt);
    // Any sector of the metadata may hold anything, checksums or not.
    let old = ext_image("ext2");
    for (image, byte) in [(image, 0xff), (old, 0x5a)] {
        let disk = Arc::new(MemoryBlock::writable(image.clone()));
        for sector in (4..400).step_by(3) {
            let range = sector * 512..(sector + 1) * 512;
            disk.write_at(&[byte; 512], range.start as u64).unwrap();
            if let Ok(fs) = open(disk.clone()) {
                let _ = fs.read("/absolute", 1 << 20);
                let _ = fs.list_dir("/boot");
                let _ = fs.read("/boot/initrd.img-6.1", 8 << 20);
            }
            disk.write_at(&image[range.clone()], range.start as u64).unwrap();
        }
    }
}

/// A FAT image with long names, nested directories and a fragmented file.
fn fat_image(bits: &str, size: u64) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let (image, big, small) = (path("fat.img"), path("big"), path("small"));
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    std::fs::write(&big, pattern(700_000)).unwrap();
    std::fs::write(&small, vec![7; 40_000]).unwrap();
    run("dosfstools", "mkfs.vfat", &["-F", bits, "-n", "UEFI", "-i", "1a2b3c4d", &image]);
    let mtools = |program: &str, arguments: &[&str]| {
        run("mtools", program, &[&["-i", &image], arguments].concat());
    };
    mtools("mmd", &["::/EFI", "::/EFI/debian", "::/loader", "::/loader/entries"]);
    for number in 0..8 {
        mtools("mcopy", &[&small, &format!("::/FILL{number}")]);
    }
    for number in [1, 3, 5, 7] {
        mtools("mdel", &[&format!("::/FILL{number}")]);
    }
    mtools("mcopy", &[&big, "::/EFI/debian/A rather long name für Kernel.img"]);
    mtools("mcopy", &[&small, "::/EFI/debian/grub.cfg"]);
    std::fs::read(Path::new(&image)).unwrap()
}

#[test]
fn fat_of_every_width_gives_its_files() {
    for (bits, size) in [("12", 1_474_560), ("16", 16 << 20), ("32", 40 << 20)] {
        let fs = open(memory(fat_image(bits, size))).unwrap();
        assert_eq!((fs.kind(), fs.label(), fs.uuid()), (Kind::Fat, Some("UEFI"), "1A2B-3C4D"));
        let long = "/efi/DEBIAN/a RATHER long name FÜR kernel.img";
        assert!(fs.read(long, 1 << 20).unwrap() == pattern(700_000), "FAT{bits}");
        assert_eq!(fs.read("/EFI/debian/../DEBIAN/GRUB.CFG", 1 << 20).unwrap(), vec![7; 40_000]);
        assert_eq!(names(&*fs, "/EFI/debian"), ["A rather long name für Kernel.img", "grub.cfg"]);
        assert_eq!(names(&*fs, "/"), ["EFI", "FILL0", "FILL2", "FILL4", "FILL6", "loader"]);
        assert_eq!(fs.metadata(long).unwrap().len, 700_000);
        assert_eq!(fs.metadata("/").unwrap().file_type, FileType::Directory);
        assert_eq!(kind_of(fs.read("/EFI", 100)), ErrorKind::Invalid);
        assert_eq!(kind_of(fs.read("/EFI/none", 100)), ErrorKind::NotFound);
        assert_eq!(kind_of(fs.read(long, 100)), ErrorKind::Invalid);
        assert_eq!(kind_of(fs.list_dir("/FILL0")), ErrorKind::Invalid);
    }
}

#[test]
fn damaged_fat_is_an_error_not_a_panic() {
    let image = fat_image("32", 40 << 20);
    assert_eq!(kind_of(open(memory(image[..30 << 20].to_vec()))), ErrorKind::Truncated);
    let disk = Arc::new(MemoryBlock::writable(image.clone()));
    for at in 11..90 {
        for value in [0, 1, 0x7f, 0xff] {
            disk.write_at(&[value], at).unwrap();
            if let Ok(fs) = open(disk.clone()) {
                let _ = fs.read("/EFI/debian/grub.cfg", 1 << 20);
            }
        }
        disk.write_at(&[image[at as usize]], at).unwrap();
    }
    // A chain that loops, leads outside, or ends too soon.
    let fat = usize::from(u16::from_le_bytes([image[14], image[15]])) * 512;
    for value in [2u32, 3, 0x0fff_0000, 0, 1, 0x0fff_ffff] {
        let mut image = image.clone();
        for entry in 2..4000 {
            image[fat + entry * 4..fat + entry * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(fs) = open(memory(image)) {
            let result = fs.read("/EFI/debian/A rather long name für Kernel.img", 1 << 20);
            assert!(result.is_err(), "FAT entries of {value:#x}");
        }
    }
}

#[test]
fn what_is_not_read_is_named() {
    let message = |image: Vec<u8>| match open(memory(image)) {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    };
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    assert_eq!(message(xfs), "Cannot open the file system: XFS is not read");
    assert_eq!(message(vec![0; 1 << 20]), "Cannot open the file system: no known file system");
    assert_eq!(message(Vec::new()), "Cannot open the file system: no known file system");
}
