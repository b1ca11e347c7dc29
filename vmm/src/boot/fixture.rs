//! Disks for the tests of this folder, made by sgdisk, mkfs.ext4, mkfs.vfat and mtools.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kvmbake_disk::{Block, MemoryBlock};

/// One partition to make.
pub struct Part<'a> {
    /// Its number in the table.
    pub number: u32,
    /// `ext4` or `vfat`.
    pub kind: &'a str,
    pub label: &'a str,
    /// The ext4 UUID, or the FAT serial number without its dash.
    pub uuid: &'a str,
    pub files: &'a [(&'a str, &'a [u8])],
}

pub const ROOT_UUID: &str = "6bb9b61e-7b56-4d1f-a7a4-5f7e5d5e1c01";
pub const BOOT_UUID: &str = "0b1c2d3e-1111-4222-8333-944455566677";

/// An ext4 root partition with number 1.
pub fn root<'a>(files: &'a [(&'a str, &'a [u8])]) -> Part<'a> {
    Part { number: 1, kind: "ext4", label: "cloudimg-rootfs", uuid: ROOT_UUID, files }
}

/// An EFI system partition with number 15.
pub fn esp<'a>(files: &'a [(&'a str, &'a [u8])]) -> Part<'a> {
    Part { number: 15, kind: "vfat", label: "UEFI", uuid: "1A2B3C4D", files }
}

fn run(package: &str, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// A file system of 4 MiB.
pub fn file_system(part: &Part) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let image = image.to_str().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (path, contents) in part.files {
        let path = tree.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
    let tree = tree.to_str().unwrap();
    match part.kind {
        "vfat" => {
            std::fs::File::create(image).unwrap().set_len(4 << 20).unwrap();
            run("dosfstools", "mkfs.vfat", &["-n", part.label, "-i", part.uuid, image]);
            for entry in std::fs::read_dir(tree).unwrap() {
                let entry = entry.unwrap().path();
                run("mtools", "mcopy", &["-s", "-i", image, entry.to_str().unwrap(), "::/"]);
            }
        }
        _ => {
            let arguments = ["-q", "-L", part.label, "-U", part.uuid, "-d", tree, image, "4M"];
            run("e2fsprogs", "mkfs.ext4", &arguments);
        }
    }
    std::fs::read(Path::new(image)).unwrap()
}

/// A GPT disk of the partitions, in this order on the disk.
pub fn disk(parts: &[Part]) -> Arc<dyn Block> {
    const PART: usize = 4 << 20;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(((parts.len() * 4 + 2) << 20) as u64).unwrap();
    let mut arguments = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let start = 2048 + index * PART / 512;
        arguments.push(format!("-n{}:{start}:{}", part.number, start + PART / 512 - 1));
        if part.kind == "vfat" {
            arguments.push(format!("-t{}:ef00", part.number));
        }
    }
    arguments.push(file.path().to_str().unwrap().into());
    run("gdisk", "sgdisk", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut image = std::fs::read(file.path()).unwrap();
    for (index, part) in parts.iter().enumerate() {
        let start = (1 << 20) + index * PART;
        image[start..start + PART].copy_from_slice(&file_system(part));
    }
    Arc::new(MemoryBlock::read_only(image))
}

/// A tiny ELF64 executable with one segment: data that compresses like code does, then zeroes.
pub fn vmlinux(size: usize) -> Vec<u8> {
    let mut elf = vec![0; size];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    elf[0x10..0x14].copy_from_slice(&[2, 0, 62, 0]);
    elf[0x20] = 64;
    elf[0x36] = 56;
    elf[0x38] = 1;
    elf[64] = 1;
    elf[64 + 8..64 + 16].copy_from_slice(&0x1000u64.to_le_bytes());
    elf[64 + 32..64 + 40].copy_from_slice(&(size as u64 - 0x1000).to_le_bytes());
    let mut state = 1u32;
    for (at, byte) in elf.iter_mut().enumerate().take(1 << 19).skip(0x1000) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Relative calls now and then, which the x86 BCJ filter rewrites.
        *byte = if at % 37 == 0 { 0xe8 } else { (state >> 28) as u8 };
    }
    elf
}
