//! On a file system that can, an image shares the disk's data instead of copying them. Needs root, a
//! loop device and a kernel with btrfs; where there is no such thing, it says so and judges nothing.

mod disks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use disks::{Random, Workshop, qemu_img, succeed, text};
use kvmbake_convert::{Format, OpenOptions, Options, Silent, Target, export_with, open};

const MIB: u64 = 1 << 20;

/// A btrfs in a file; unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn new(folder: &Path) -> Option<Mounted> {
        let (image, at) = (folder.join("btrfs.img"), folder.join("btrfs"));
        fs::File::create(&image).unwrap().set_len(512 * MIB).unwrap();
        succeed("mkfs.btrfs", "btrfs-progs", &["-q", text(&image)]);
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output();
        let mounted = mounted.unwrap();
        if !mounted.status.success() {
            eprintln!("not judged, no btrfs: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Mounted(at))
    }

    /// The bytes that files on it take, once they are written.
    fn used(&self) -> u64 {
        succeed("sync", "coreutils", &["-f", text(&self.0)]);
        let told = succeed("df", "coreutils", &["--output=used", "-B1", text(&self.0)]);
        told.lines().last().unwrap().trim().parse().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn convert(source: &Path, format: Format, target: &Path) {
    let folder = source.parent().unwrap().to_path_buf();
    let allowed = OpenOptions { allow_backing: vec![folder], ..OpenOptions::default() };
    let image = open(source, &allowed).unwrap();
    let options = Options { digest: false, checksums: false, sync: true, verify: true };
    let targets = [Target::new(format, target)];
    let never = std::sync::atomic::AtomicBool::new(false);
    export_with(image.as_ref(), &targets, &options, &Silent, &never).unwrap();
}

#[test]
fn images_on_one_file_system_share_their_data() {
    let workshop = Workshop::new(90 * MIB + 512);
    let mut random = Random::new(7);
    workshop.put(0, &random.bytes(40 << 20));
    // Pieces and ends that no block of a file system fits.
    workshop.put(50 * MIB + 512, &random.bytes(3 << 20));
    workshop.put(60 * MIB, &random.bytes(4096));
    workshop.put(90 * MIB - 4096, &random.bytes(4096 + 512));
    let Some(mounted) = Mounted::new(workshop.directory.path()) else { return };
    let at = |name: &str| mounted.0.join(name);
    let disk = at("disk.raw");
    fs::copy(&workshop.raw, &disk).unwrap();
    convert(&disk, Format::Qcow2, &at("disk.qcow2"));
    // A chain: what is below is found through the image above.
    let overlay = at("overlay.qcow2");
    let below = at("disk.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&below)];
    qemu_img(&[create.as_slice(), &[text(&overlay)]].concat());
    let io = |format, command, image: &Path| {
        succeed("qemu-io", "qemu-utils", &["-f", format, "-c", command, text(image)]);
    };
    io("qcow2", "write -q -P 9 10M 2M", &overlay);
    let before = mounted.used();
    let mut made = 0;
    for source in ["disk.raw", "disk.qcow2", "overlay.qcow2"] {
        for (format, extension) in [
            (Format::Raw, "raw"),
            (Format::Qcow2, "qcow2"),
            (Format::Vdi, "vdi"),
            (Format::Vhdx, "vhdx"),
            (Format::Vmdk, "vmdk"),
        ] {
            let target = at(&format!("of-{source}.{extension}"));
            convert(&at(source), format, &target);
            qemu_img(&["compare", text(&at(source)), text(&target)]);
            made += 1;
        }
    }
    // What a file still has behind the disk's end stays there.
    let long = at("long.qcow2");
    let zstd = "cluster_size=2M,compression_type=zstd";
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", zstd, text(&long), "4M"]);
    io("qcow2", "write -q -P 9 0 4M", &long);
    qemu_img(&["resize", "-q", "--shrink", text(&long), "3277312"]);
    convert(&long, Format::Qcow2, &at("of-long.qcow2"));
    let shown = at("of-long.qcow2");
    qemu_img(&["resize", "-q", text(&shown), "4M"]);
    io("qcow2", "read -q -P 9 0 3277312", &shown);
    io("qcow2", "read -q -P 0 3277312 916992", &shown);
    // Each has 43 MiB of data, of which all but the ragged ends is shared.
    let taken = mounted.used() - before;
    assert!(taken < made * 6 * MIB, "{} MiB for {made} images", taken / MIB);
    // VHD has its data where nothing can be shared; and what is written to one image is in no other.
    convert(&disk, Format::Vhd, &at("of.vhd"));
    qemu_img(&["compare", "-f", "raw", "-F", "vpc", text(&disk), text(&at("of.vhd"))]);
    io("raw", "write -q -P 5 0 1M", &at("of-disk.raw.raw"));
    succeed("cmp", "diffutils", &[text(&disk), text(&workshop.raw)]);
}
