//! `convert`: outputs, options, and what is left of a killed one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{done, folder, kvmbake, listed, misused, refused, tool};

#[test]
fn several_outputs_are_written_in_one_pass() {
    let folder = folder();
    let folder = folder.path();
    let told = done(
        folder,
        &[
            "convert",
            "-c",
            "-o",
            "vmdk:level=9",
            "-o",
            "vhd:subformat=fixed",
            "disk.qcow2",
            "a.qcow2",
            "a.vmdk",
            "a.vhd",
            "a.vhdx",
            "a.vdi",
            "a.raw",
            "a.ova",
        ],
    );
    assert!(told.contains("disk.qcow2 is taken for qcow2"), "{told}");
    for (file, format) in [
        ("a.qcow2", "qcow2"),
        ("a.vmdk", "vmdk"),
        ("a.vhd", "vpc"),
        ("a.vhdx", "vhdx"),
        ("a.vdi", "vdi"),
        ("a.raw", "raw"),
    ] {
        tool(folder, &format!("qemu-img compare -f qcow2 -F {format} disk.qcow2 {file}"));
    }
    assert!(tool(folder, "qemu-img info a.vmdk").contains("streamOptimized"));
    assert!(tool(folder, "qemu-img map --output=json a.qcow2").contains("\"compressed\": true"));
    done(folder, &["compare", "disk.qcow2", "a.ova"]);
    let parts: Vec<_> = listed(folder).into_iter().filter(|name| name.contains(".part")).collect();
    assert!(parts.is_empty(), "{parts:?}");
}

#[test]
fn formats_may_be_named_once_for_each_output() {
    let folder = folder();
    let folder = folder.path();
    done(
        folder,
        &["convert", "-p", "-m", "8", "-W", "-O", "vpc", "-O", "vmdk", "disk.qcow2", "one", "two"],
    );
    tool(folder, "qemu-img compare -f qcow2 -F vpc disk.qcow2 one");
    tool(folder, "qemu-img compare -f qcow2 -F vmdk disk.qcow2 two");
    let two = ["convert", "-O", "vdi", "-O", "vmdk", "disk.qcow2", "x"];
    misused(folder, &two, &["2 output formats for 1 outputs"]);
    misused(folder, &["convert", "disk.qcow2", "x.xyz"], &["x.xyz"]);
}

#[test]
fn wrong_options_are_wrong_usage_and_name_key_and_values() {
    let folder = folder();
    let folder = folder.path();
    for (option, output, parts) in [
        ("level=1", "x.vdi", &["vdi", "\"level\"", "static"][..]),
        ("subformat=fixd", "x.vhd", &["subformat", "dynamic or fixed", "fixd"]),
        ("level=12", "x.qcow2", &["level", "1 to 9 with zlib", "12"]),
        ("cluster_size=3K", "x.qcow2", &["cluster_size", "a power of two from 512 to 2M"]),
        ("backing_file=disk.qcow2", "x.qcow2", &["backing_file", "needs backing_fmt"]),
        ("static", "x.vdi", &["\"static\"", "key=value"]),
        ("vmdk:level=1", "x.vdi", &["vmdk:level=1"]),
        ("vdmk:level=1", "x.vmdk", &["vdmk", "known are"]),
    ] {
        misused(folder, &["convert", "-o", option, "disk.qcow2", output], parts);
    }
    misused(folder, &["convert", "-c", "disk.qcow2", "x.raw"], &["raw", "no compressed form"]);
    for kind in ["subformat=monolithicFlat", "subformat=monolithicSparse"] {
        misused(folder, &["convert", "-c", "-o", kind, "disk.qcow2", "x.vmdk"], &[kind]);
    }
}

#[test]
fn compressed_raw_images_are_read() {
    let folder = folder();
    let folder = folder.path();
    done(folder, &["convert", "disk.qcow2", "disk.raw"]);
    for (program, extension) in [("gzip", "gz"), ("xz", "xz"), ("bzip2", "bz2"), ("zstd", "zst")] {
        let packed = format!("disk.raw.{extension}");
        tool(folder, &format!("{program} -c disk.raw > {packed}"));
        done(folder, &["compare", "-s", "disk.qcow2", &packed]);
        done(folder, &["convert", &packed, "back.qcow2"]);
        tool(folder, "qemu-img compare disk.qcow2 back.qcow2");
        let info = done(folder, &["info", &packed]);
        assert!(info.contains(program) && info.contains("20971520 bytes"), "{info}");
        tool(
            folder,
            &format!("head -c $(($(stat -c %s {packed}) - 20)) {packed} > short.{extension}"),
        );
        let short = format!("short.{extension}");
        refused(folder, &["convert", &short, "never.vdi"], &[&short, program]);
        tool(
            folder,
            &format!("cp {packed} bad; printf XXXX | dd of=bad bs=1 seek=60 conv=notrunc"),
        );
        refused(folder, &["convert", "bad", "never.vdi"], &["bad", program]);
    }
    // They are written too, by the name or as an option asks.
    for (program, extension) in [("gzip", "gz"), ("xz", "xz"), ("bzip2", "bz2"), ("zstd", "zst")] {
        let packed = format!("own.img.{extension}");
        done(folder, &["convert", "disk.qcow2", &packed, "plain.vdi"]);
        tool(folder, &format!("{program} -dc {packed} | cmp - disk.raw"));
        let option = format!("raw:compression={program}");
        done(
            folder,
            &["convert", "-O", "raw", "-o", &option, "-o", "level=9", "disk.qcow2", "own"],
        );
        tool(folder, &format!("{program} -dc < own | cmp - disk.raw"));
    }
    misused(folder, &["convert", "disk.qcow2", "own.qcow2.gz"], &["own.qcow2.gz"]);
    // Named as raw it is not unpacked.
    let info = done(folder, &["info", "-f", "raw", "disk.raw.gz"]);
    assert!(!info.contains("20971520"), "{info}");
    tool(folder, "gzip -c disk.qcow2 > disk.qcow2.gz");
    refused(folder, &["info", "disk.qcow2.gz"], &["qcow2 image packed with gzip"]);
}

#[test]
fn the_same_input_and_options_give_the_same_bytes() {
    let folder = folder();
    let folder = folder.path();
    let files = ["q.qcow2", "v.vdi", "v.vhd", "v.vhdx", "v.vmdk", "v.ova"];
    let convert = |input: &str| {
        let mut arguments = vec!["convert", input];
        arguments.extend(files);
        done(folder, &arguments);
        files.map(|file| fs::read(folder.join(file)).unwrap())
    };
    let first = convert("disk.qcow2");
    done(folder, &["convert", "disk.qcow2", "other.raw"]);
    assert!(first == convert("other.raw"));
    let uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    done(folder, &["convert", "--uuid", uuid, "disk.qcow2", "u.vdi"]);
    let info = tool(folder, "dd if=u.vdi bs=1 skip=392 count=16 2>/dev/null | od -An -tx1");
    assert_eq!(info.replace([' ', '\n'], ""), uuid.replace('-', ""));
    let wrong = kvmbake(folder, &["convert", "--uuid", "1234", "disk.qcow2", "u.vdi"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn sizes_that_a_format_cannot_express_are_rounded_up_and_told() {
    let folder = folder();
    let folder = folder.path();
    tool(
        folder,
        "truncate -s 1000001 odd.raw; printf z | dd of=odd.raw bs=1 seek=1000000 conv=notrunc",
    );
    let told = done(folder, &["convert", "-o", "subformat=fixed", "odd.raw", "odd.vhd"]);
    assert!(told.contains("1000001 bytes are rounded up to 1048576"), "{told}");
    assert!(done(folder, &["info", "odd.vhd"]).contains("1048576 bytes"));
    let info = done(folder, &["info", "odd.raw"]);
    let sizes = "1000448 bytes in all formats but raw, 1048576 bytes in a fixed VHD";
    assert!(info.contains("rounded up to") && info.contains(sizes), "{info}");
    let json = done(folder, &["info", "--json", "-f", "raw", "odd.raw"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sizes = serde_json::json!({ "all_but_raw": 1_000_448, "fixed_vhd": 1 << 20 });
    assert_eq!(json["rounded_up"], sizes);
    assert!(!done(folder, &["info", "disk.qcow2"]).contains("rounded up"));
    done(folder, &["compare", "odd.raw", "odd.vhd"]);
}

#[test]
fn what_a_killed_convert_left_goes_with_the_next() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "head -c 200M /dev/urandom > random.raw");
    let parts = |folder: &Path| {
        let names = listed(folder).into_iter().filter(|name| name.ends_with(".part"));
        names.collect::<Vec<_>>()
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(["convert", "-c", "-f", "raw", "random.raw", "out.qcow2"])
        .current_dir(folder)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while parts(folder).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(parts(folder).len(), 1);
    done(folder, &["convert", "disk.qcow2", "other.qcow2"]);
    assert_eq!(parts(folder).len(), 1, "another output's is not touched");
    done(folder, &["convert", "disk.qcow2", "out.qcow2"]);
    assert!(parts(folder).is_empty());
}

#[test]
fn an_overlay_of_what_differs_from_a_base_is_written() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("bases")).unwrap();
    done(folder, &["convert", "disk.qcow2", "bases/base.raw"]);
    tool(
        folder,
        "qemu-io -f qcow2 -c 'write -P 3 5M 64k' -c 'write -z 19M 64k' disk.qcow2 >/dev/null",
    );
    let options = "backing_file=bases/base.raw,backing_fmt=raw";
    done(folder, &["convert", "-o", options, "disk.qcow2", "diff.qcow2"]);
    assert!(fs::metadata(folder.join("diff.qcow2")).unwrap().len() < 1 << 20);
    tool(folder, "qemu-img compare disk.qcow2 diff.qcow2");
    let info = tool(folder, "qemu-img info diff.qcow2");
    assert!(info.contains("backing file: bases/base.raw"), "{info}");
    refused(folder, &["convert", "diff.qcow2", "x.raw"], &["diff.qcow2", "bases/base.raw"]);
    done(folder, &["compare", "--allow-backing", "bases", "diff.qcow2", "disk.qcow2"]);
    for compression in ["compression_type=zlib", "compression_type=zstd"] {
        let base = ["-B", "bases/base.raw", "-F", "raw"];
        let packed = ["convert", "-c", "-o", compression, "disk.qcow2", "small.qcow2"];
        done(folder, &[&packed[..], &base].concat());
        let check = tool(folder, "qemu-img check small.qcow2");
        assert!(check.contains("100.00% compressed"), "{check}");
        tool(folder, "qemu-img compare disk.qcow2 small.qcow2");
    }
    let no_base = ["convert", "-o", "backing_file=none,backing_fmt=raw", "disk.qcow2", "x.qcow2"];
    refused(folder, &no_base, &["none"]);
}

#[test]
fn command_lines_for_qemu_img_work_or_are_refused_by_name() {
    let folder = folder();
    let folder = folder.path();
    let line =
        "convert -q -p -f qcow2 -O raw -m 16 -W -C -t none -T writeback -S 4k disk.qcow2 a.raw";
    assert_eq!(done(folder, &line.split(' ').collect::<Vec<_>>()), "");
    tool(folder, "qemu-img compare -q -f qcow2 -F raw disk.qcow2 a.raw");
    assert_eq!(done(folder, &["compare", "-q", "-F", "raw", "disk.qcow2", "a.raw"]), "");
    tool(folder, "qemu-io -f raw -c 'write -P 1 5M 1M' a.raw >/dev/null");
    let differing = kvmbake(folder, &["compare", "-q", "-f", "raw", "a.raw", "disk.qcow2"]);
    assert_eq!(differing.status.code(), Some(1));
    assert!(differing.stdout.is_empty() && differing.stderr.is_empty());
    assert_eq!(done(folder, &["check", "-q", "disk.qcow2"]), "");
    for command in [&["info", "--backing-chain"][..], &["check"], &["measure", "-O", "vdi"]] {
        let told = |option| done(folder, &[command, &["-fqcow2", option, "disk.qcow2"]].concat());
        assert_eq!(told("--output=json"), told("--json"));
        assert!(!told("--output=human").starts_with('{'));
    }
    for (options, part) in [
        (&["convert", "-n"][..], "always new files"),
        (&["convert", "-l", "before"], "current state"),
        (&["convert", "-S", "0"], "-S 0"),
        (&["convert", "-S", "x"], "not a size"),
        (&["convert", "-t", "fast"], "fast"),
    ] {
        misused(folder, &[options, &["disk.qcow2", "b.raw"]].concat(), &[part]);
    }
    misused(folder, &["check", "-r", "all", "disk.qcow2"], &["repairs nothing"]);
}
