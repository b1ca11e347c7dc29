//! Every format written here, read by programs of other hands, by content hash: qemu-img, 7-Zip,
//! dissect.hypervisor, and the libyal tools for what they know.

mod disks;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop, qemu_img, qemu_name, run, succeed, text};
use kvmbake_convert::{Encoding, Format, Silent, Target, export};

const MIB: u64 = 1 << 20;

/// What is written, and the judges that know it besides qemu-img: `7` 7-Zip, `d` dissect.
const WRITTEN: [(Format, &str, &str); 14] = [
    (Format::Qcow2, "", "7d"),
    (Format::Qcow2, "cluster_size=512", "7d"),
    (Format::Qcow2, "cluster_size=2M", "7d"),
    (Format::Qcow2, "-c", "7d"),
    (Format::Qcow2, "-c,cluster_size=4K,level=9", "7d"),
    (Format::Qcow2, "-c,compression_type=zstd", "d"),
    (Format::Vdi, "", "7d"),
    (Format::Vdi, "static=on", "7d"),
    (Format::Vhd, "", "7d"),
    (Format::Vhd, "subformat=fixed", "7d"),
    (Format::Vhdx, "", "7d"),
    (Format::Vmdk, "", "7d"),
    (Format::Vmdk, "-c", "7d"),
    (Format::Vmdk, "subformat=monolithicFlat", "d"),
];

fn encoding(format: Format, settings: &str) -> Encoding {
    let mut encoding = Encoding::from(format);
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        match setting.split_once('=') {
            Some((key, value)) => encoding.set(key, value).unwrap(),
            None => encoding.compress().unwrap(),
        }
    }
    encoding
}

/// The Python of the readers from PyPI.
pub fn judges() -> PathBuf {
    let home = std::env::var_os("KVMBAKE_JUDGES").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        cache.unwrap_or_default().join("kvmbake-judges")
    });
    let python = home.join("bin/python");
    let setup = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/judges/setup.sh");
    assert!(python.exists(), "dissect.hypervisor and cot (PyPI) are missing: run {setup}");
    home.join("bin")
}

fn sha256(path: &Path) -> String {
    succeed("sha256sum", "coreutils", &[text(path)])[..64].to_owned()
}

fn by_qemu(workshop: &Workshop, path: &Path, format: Format) -> String {
    let raw = workshop.path("theirs.raw");
    qemu_img(&["convert", "-f", qemu_name(format), "-O", "raw", text(path), text(&raw)]);
    sha256(&raw)
}

fn by_7zip(path: &Path, format: Format) -> String {
    let kind = format!("-t{}", format.name().replace("qcow2", "qcow"));
    let mut unpacking = Command::new("7z")
        .args(["x", "-so", &kind, text(path)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("7z (Debian package p7zip-full): {error}"));
    let output = unpacking.stdout.take().unwrap();
    let hashed = Command::new("sha256sum").stdin(output).output().unwrap();
    assert!(unpacking.wait().unwrap().success(), "7z cannot read {}", path.display());
    String::from_utf8(hashed.stdout).unwrap()[..64].to_owned()
}

/// Returns the size and the hash.
fn by_dissect(path: &Path, format: Format) -> (u64, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/judges/read.py");
    let python = judges().join("python");
    let printed = succeed(text(&python), "tests/judges", &[script, format.name(), text(path)]);
    let (size, hash) = printed.trim().split_once(' ').unwrap();
    (size.parse().unwrap(), hash.to_owned())
}

fn write(workshop: &Workshop) -> Vec<PathBuf> {
    let targets: Vec<_> = WRITTEN
        .iter()
        .enumerate()
        .map(|(index, (format, settings, _))| {
            let path = workshop.path(&format!("{index}.{}", format.extension()));
            Target::new(encoding(*format, settings), path)
        })
        .collect();
    let written = export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap();
    written.artifacts.into_iter().map(|artifact| artifact.path).collect()
}

/// Writes every variant and lets every judge read it.
fn judge(workshop: &Workshop) {
    let expected = sha256(&workshop.raw);
    let size = workshop.source().len();
    for (path, (format, settings, judges)) in write(workshop).iter().zip(WRITTEN) {
        assert_eq!(by_qemu(workshop, path, format), expected, "qemu-img: {format} {settings}");
        if judges.contains('7') {
            assert_eq!(by_7zip(path, format), expected, "7-Zip: {format} {settings}");
        }
        let theirs = by_dissect(path, format);
        assert_eq!(theirs, (size, expected.clone()), "dissect: {format} {settings}");
    }
}

#[test]
fn everything_is_read_the_same_by_three_other_programs() {
    // Whole mebibytes, so that the fixed VHD is not longer than the disk.
    let workshop = Workshop::new(21 * MIB);
    let mut random = Random::new(21);
    for index in 0..24 {
        let offset = random.below(20 * MIB);
        let len = 1 + random.below(300_000) as usize;
        let bytes = if index % 2 == 0 { random.bytes(len) } else { vec![index as u8; len] };
        workshop.put(offset, &bytes);
    }
    workshop.put(21 * MIB - 1, b"z");
    judge(&workshop);
}

#[test]
fn disks_with_nothing_and_with_everything_are_read_the_same() {
    judge(&Workshop::new(3 * MIB));
    let full = Workshop::new(4 * MIB);
    full.put(0, &Random::new(2).bytes(4 << 20));
    judge(&full);
}

#[test]
fn the_libyal_tools_see_the_same_kind_and_size() {
    let workshop = Workshop::new(9 * MIB);
    workshop.put(MIB, &[1; 5000]);
    for (path, (format, settings, _)) in write(&workshop).iter().zip(WRITTEN) {
        let (program, package, kind) = match (format, settings) {
            // They know neither zstd nor an image in VDI.
            (_, "-c,compression_type=zstd") | (Format::Vdi, _) => continue,
            (Format::Qcow2, _) => ("qcowinfo", "libqcow-utils", "3"),
            (Format::Vhd, "") => ("vhdiinfo", "libvhdi-utils", "Dynamic"),
            (Format::Vhd, _) => ("vhdiinfo", "libvhdi-utils", "Fixed"),
            (Format::Vhdx, _) => ("vhdiinfo", "libvhdi-utils", "VHDX"),
            (_, "") => ("vmdkinfo", "libvmdk-utils", "Monolithic sparse"),
            (_, "-c") => ("vmdkinfo", "libvmdk-utils", "Stream optimized"),
            _ => ("vmdkinfo", "libvmdk-utils", "Monolithic flat"),
        };
        let printed = succeed(program, package, &[text(path)]);
        assert!(printed.contains("(9437184 bytes)"), "{format} {settings}: {printed}");
        assert!(printed.contains(kind), "{format} {settings}: {printed}");
    }
}

#[test]
fn an_appliance_passes_cot_and_holds_the_disk() {
    let workshop = Workshop::new(10 * MIB);
    workshop.put(2 * MIB, &Random::new(6).bytes(700_000));
    let settings = "name=Web <1> & co,memory=2G,cpus=3,nic=VmxNet3,controller=VirtualSCSI,\
                    system=vmx-19,vendor=Acme,version=1.2,product=Web";
    let sha256_path = workshop.path("web.ova");
    let sha1_path = workshop.path("old.ova");
    let targets = [
        Target::new(encoding(Format::Ova, settings), &sha256_path),
        Target::new(encoding(Format::Ova, &format!("{settings},manifest=sha1")), &sha1_path),
    ];
    export(&*workshop.source(), &targets, &Silent, &AtomicBool::new(false)).unwrap();

    // COT takes SHA-1 for granted in OVF 1.0, so only that manifest can satisfy it.
    let cot = judges().join("cot");
    let output = run(text(&cot), "tests/judges", &["info", text(&sha1_path), "--verbose"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !complaints.contains("ERROR"), "{printed}{complaints}");
    assert!(!complaints.contains("WARNING"), "{complaints}");
    for part in ["vmx-19", "VirtualSCSI", "VmxNet3", "Acme", "1.2", "2 GiB", "10 MiB"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }

    // Members in the order that DSP0243 demands, and the manifest's sums.
    let listed = succeed("tar", "tar", &["-tf", text(&sha256_path)]);
    assert_eq!(listed, "web.ovf\nweb-disk1.vmdk\nweb.mf\n");
    let folder = workshop.path("unpacked");
    std::fs::create_dir(&folder).unwrap();
    succeed("tar", "tar", &["-xf", text(&sha256_path), "-C", text(&folder)]);
    let check = "sed 's/^SHA256(\\(.*\\))= \\(.*\\)$/\\2  \\1/' web.mf | sha256sum --strict -c";
    let line = format!("cd {} && {check}", text(&folder));
    let checked = succeed("sh", "coreutils", &["-c", &line]);
    assert_eq!(checked, "web.ovf: OK\nweb-disk1.vmdk: OK\n");

    let descriptor = std::fs::read_to_string(folder.join("web.ovf")).unwrap();
    let disk = folder.join("web-disk1.vmdk");
    let size = std::fs::metadata(&disk).unwrap().len();
    assert!(descriptor.contains(&format!("ovf:size=\"{size}\"")), "{descriptor}");
    assert!(descriptor.contains("ovf:capacity=\"10485760\""), "{descriptor}");
    assert!(descriptor.contains("Web &lt;1&gt; &amp; co"), "{descriptor}");
    assert_eq!(by_qemu(&workshop, &disk, Format::Vmdk), sha256(&workshop.raw));
    assert_eq!(by_dissect(&disk, Format::Vmdk).1, sha256(&workshop.raw));
    let python = judges().join("python");
    let parse = "import sys, xml.dom.minidom as m; m.parse(sys.argv[1])";
    succeed(text(&python), "tests/judges", &["-c", parse, text(&folder.join("web.ovf"))]);
}
