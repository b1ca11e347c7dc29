//! `info`, `check`, `compare` and `measure`.

use std::fs;
use std::process::Command;

use crate::{done, folder, kvmbake, misused, refused, tool};

#[test]
fn info_tells_the_chain_and_speaks_json() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "qemu-img create -q -f qcow2 -F qcow2 -b disk.qcow2 top.qcow2");
    let text = done(folder, &["info", "--json", "--allow-backing", ".", "top.qcow2"]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&info["format"], &info["virtual_size"]), (&"qcow2".into(), &(20 << 20).into()));
    assert_eq!(info["data"], 4 << 20);
    assert!(info["chain"][0]["file"].as_str().unwrap().ends_with("disk.qcow2"), "{info}");
    assert_eq!(info["details"]["cluster_size"], 65536);
    assert_eq!(info["details"]["extended_l2"], false);
    assert_eq!(info["details"]["backing_file"], "disk.qcow2");
    tool(folder, "qemu-img convert -O vmdk -o subformat=twoGbMaxExtentSparse disk.qcow2 s.vmdk");
    let text = done(folder, &["info", "--json", "--allow-backing", ".", "s.vmdk"]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["details"]["extents"], serde_json::json!(["s-s001.vmdk"]));
    tool(
        folder,
        "qemu-img bitmap --add disk.qcow2 one
         qemu-img bitmap --add --disable -g 4096 disk.qcow2 two",
    );
    let info = done(folder, &["info", "disk.qcow2"]);
    let line = "2: one (granularity 65536), two (granularity 4096, disabled)";
    assert!(
        info.lines().any(|told| told.starts_with("bitmaps ") && told.ends_with(line)),
        "{info}"
    );
    let copied = ["convert", "--bitmaps", "disk.qcow2", "x.qcow2"];
    misused(folder, &copied, &["Persistent bitmaps are not copied"]);
}

#[test]
fn what_an_image_says_of_itself_cannot_drive_the_terminal() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "qemu-img convert -O vpc -o subformat=fixed,force_size=on disk.qcow2 a.vhd");
    let path = folder.join("a.vhd");
    let mut image = fs::read(&path).unwrap();
    let start = image.len() - 512;
    let footer = &mut image[start..];
    // The creator, and the checksum: the complement of the sum of all other bytes.
    footer[28..32].copy_from_slice(b"\x1b[2J");
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    fs::write(&path, image).unwrap();
    let told = done(folder, &["info", "-f", "vhd", "a.vhd"]);
    let creator = told.lines().find_map(|line| line.strip_prefix("creator")).unwrap();
    assert_eq!(creator.trim(), "\u{fffd}[2J");
    assert!(!told.contains('\x1b'));
}

#[test]
fn check_tells_leaks_and_damage() {
    let folder = folder();
    let folder = folder.path();
    let all = ["a.qcow2", "a.vdi", "a.vhd", "a.vhdx", "a.vmdk", "a.ova"];
    let mut arguments = vec!["convert", "disk.qcow2"];
    arguments.extend(all);
    done(folder, &arguments);
    for file in all {
        let told = done(folder, &["check", file]);
        assert!(told.contains("nothing wrong"), "{file}: {told}");
    }
    for (file, grow) in [("a.vdi", "1M"), ("a.vhdx", "1M"), ("a.vmdk", "64K")] {
        tool(folder, &format!("truncate -s +{grow} {file}"));
        assert!(done(folder, &["check", file]).contains("nothing refers to"), "{file}");
    }
    // A second allocated block in a VDI's header.
    tool(folder, "printf '\\002' | dd of=a.vdi bs=1 seek=388 conv=notrunc 2>/dev/null");
    let output = kvmbake(folder, &["check", "a.vdi"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("counts 2 allocated blocks"));
    // A byte of the OVA's descriptor: the manifest knows.
    tool(folder, "printf X | dd of=a.ova bs=1 seek=700 conv=notrunc 2>/dev/null");
    let output = kvmbake(folder, &["check", "a.ova"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("a.ovf does not have the sum"));
    tool(folder, "qemu-img create -q -f qcow2 leak.qcow2 1M; truncate -s +64K leak.qcow2");
    // A cluster counted at the end of the file that nothing uses.
    tool(
        folder,
        "printf '\\001' | dd of=leak.qcow2 bs=1 seek=$((131072+9)) conv=notrunc 2>/dev/null",
    );
    let told = done(folder, &["check", "leak.qcow2"]);
    let theirs = Command::new("qemu-img")
        .args(["check", "leak.qcow2"])
        .current_dir(folder)
        .output()
        .unwrap();
    let leaks = String::from_utf8_lossy(&theirs.stdout).contains("leaked");
    assert_eq!(told.contains("nothing refers to"), leaks, "{told}");
}

#[test]
fn compare_names_the_first_difference() {
    let folder = folder();
    let folder = folder.path();
    done(folder, &["convert", "disk.qcow2", "a.vhdx", "b.raw"]);
    done(folder, &["compare", "a.vhdx", "b.raw"]);
    tool(folder, "printf X | dd of=b.raw bs=1 seek=5000001 conv=notrunc 2>/dev/null");
    refused(folder, &["compare", "a.vhdx", "b.raw"], &["a.vhdx", "b.raw", "byte 5000001"]);
    tool(folder, "cp disk.qcow2 longer.qcow2; qemu-img resize -q longer.qcow2 30M");
    done(folder, &["compare", "disk.qcow2", "longer.qcow2"]);
    refused(folder, &["compare", "-s", "disk.qcow2", "longer.qcow2"], &["31457280"]);
}

#[test]
fn measure_is_what_convert_then_writes() {
    let folder = folder();
    let folder = folder.path();
    for (format, options) in [
        ("qcow2", "cluster_size=64K"),
        ("qcow2", "cluster_size=4K"),
        ("vdi", "static=off"),
        ("vhd", "subformat=dynamic"),
        ("vhd", "subformat=fixed"),
        ("vhdx", "block_size=1M"),
        ("vmdk", "subformat=monolithicSparse"),
    ] {
        let measure =
            ["measure", "-f", "qcow2", "--json", "-O", format, "-o", options, "disk.qcow2"];
        let text = done(folder, &measure);
        let measured: serde_json::Value = serde_json::from_str(&text).unwrap();
        done(folder, &["convert", "-O", format, "-o", options, "disk.qcow2", "out"]);
        let len = fs::metadata(folder.join("out")).unwrap().len();
        assert_eq!(measured["required"], len, "{format} {options}");
        assert!(measured["fully_allocated"].as_u64().unwrap() >= len.max(20 << 20), "{format}");
    }
    let size = ["measure", "-O", "qcow2", "-o", "cluster_size=1", "disk.qcow2"];
    misused(folder, &size, &["cluster_size"]);
    tool(folder, "truncate -s 25G empty.raw");
    for format in ["raw", "qcow2", "vdi", "vhdx"] {
        done(folder, &["convert", "-f", "raw", "-O", format, "empty.raw", "empty.img"]);
        let told = done(folder, &["measure", "--json", "--size", "25G", "-O", format]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["required"], fs::metadata(folder.join("empty.img")).unwrap().len());
        assert_eq!(told["virtual_size"], 25u64 << 30);
    }
    misused(folder, &["measure", "--size", "25X"], &["25X"]);
    misused(folder, &["measure"], &["required"]);
    refused(
        folder,
        &["measure", "--size", "3T", "-O", "vhd"],
        &["A disk of 3 TiB does not fit vhd"],
    );
    tool(folder, "truncate -s 3T huge.raw");
    let huge = ["measure", "-O", "vhd", "huge.raw"];
    refused(folder, &huge, &["huge.raw does not fit vhd", "2040 GiB"]);
}

#[test]
fn what_is_probed_is_said() {
    let folder = folder();
    let folder = folder.path();
    for command in [&["compare", "disk.qcow2", "disk.qcow2"][..], &["measure", "disk.qcow2"]] {
        let told = done(folder, command);
        assert!(told.contains("disk.qcow2 is taken for qcow2"), "{told}");
    }
    assert!(done(folder, &["info", "disk.qcow2"]).contains("qcow2 (probed)"));
    let told = done(folder, &["compare", "-f", "qcow2", "-F", "qcow2", "disk.qcow2", "disk.qcow2"]);
    assert!(!told.contains("is taken for"), "{told}");
}
