//! The commands on images as a person meets them: converting, describing, checking, comparing,
//! measuring, and refusing what is hostile, judged by qemu-img, exit codes and what is left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn kvmbake(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvmbake"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .unwrap()
}

/// Runs a shell line that must succeed and returns what it printed.
fn tool(folder: &Path, line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "`{line}` failed; it needs the Debian packages qemu-utils, xz-utils, zstd and bzip2: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with `disk.qcow2` of 20 MiB with some data.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tool(
        folder.path(),
        "qemu-img create -q -f qcow2 disk.qcow2 20M
         qemu-io -f qcow2 -c 'write -P 7 1M 3M' -c 'write -P 9 19M 1M' disk.qcow2 >/dev/null",
    );
    folder
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = kvmbake(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}

fn listed(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Runs a command that must refuse: exit code 1, one line with every part, soon, nothing left.
#[track_caller]
fn refused(folder: &Path, arguments: &[&str], parts: &[&str]) -> String {
    ended(folder, arguments, 1, parts)
}

/// Runs a command whose arguments are wrong: as [`refused`], but with the exit code of wrong usage.
#[track_caller]
fn misused(folder: &Path, arguments: &[&str], parts: &[&str]) -> String {
    ended(folder, arguments, 2, parts)
}

#[track_caller]
fn ended(folder: &Path, arguments: &[&str], code: i32, parts: &[&str]) -> String {
    let before = listed(folder);
    let begun = Instant::now();
    let output = kvmbake(folder, arguments);
    assert!(begun.elapsed() < Duration::from_secs(10), "{arguments:?}: {:?}", begun.elapsed());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    let line = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "{arguments:?}: {part:?} is not in {text}");
    }
    assert!(!text.contains("  because:"), "{arguments:?}: more than one line: {text}");
    assert_eq!(listed(folder), before, "{arguments:?}: something was left behind");
    text
}

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
    misused(folder, &["convert", "-c", "disk.qcow2", "x.raw"], &["raw", "compression"]);
    for kind in ["subformat=monolithicFlat", "subformat=monolithicSparse"] {
        misused(folder, &["convert", "-c", "-o", kind, "disk.qcow2", "x.vmdk"], &[kind]);
    }
}

#[test]
fn an_image_in_two_files_needs_leave_to_be_read() {
    let folder = folder();
    let folder = folder.path();
    done(folder, &["convert", "-o", "subformat=monolithicFlat", "disk.qcow2", "a.vmdk"]);
    assert!(listed(folder).contains(&"a-flat.vmdk".to_owned()));
    tool(folder, "qemu-img compare -f qcow2 -F vmdk disk.qcow2 a.vmdk");
    refused(folder, &["info", "a.vmdk"], &["a.vmdk", "a-flat.vmdk", "no other file is allowed"]);
    done(folder, &["compare", "--allow-backing", ".", "disk.qcow2", "a.vmdk"]);
    let flat = ["convert", "-f", "raw", "-o", "subformat=monolithicFlat", "a-flat.vmdk", "a.vmdk"];
    refused(folder, &flat, &["a-flat.vmdk", "is the input and the output"]);
    // The split kinds that VMware Workstation makes.
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        tool(folder, &format!("qemu-img convert -O vmdk -o subformat={kind} disk.qcow2 s.vmdk"));
        refused(folder, &["info", "s.vmdk"], &["s.vmdk"]);
        done(folder, &["compare", "--allow-backing", ".", "disk.qcow2", "s.vmdk"]);
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
fn info_tells_the_chain_and_speaks_json() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "qemu-img create -q -f qcow2 -F qcow2 -b disk.qcow2 top.qcow2");
    let text = done(folder, &["info", "--json", "--allow-backing", ".", "top.qcow2"]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&info["format"], &info["virtual_size"]), (&"qcow2".into(), &(20 << 20).into()));
    assert_eq!(info["data"], 4 << 20);
    assert!(info["chain"][0]["file"].as_str().unwrap().ends_with("disk.qcow2"), "{info}");
    assert_eq!(info["details"]["cluster_size"], "65536");
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
    tool(folder, "truncate -s 3T huge.raw");
    let huge = ["measure", "-O", "vhd", "huge.raw"];
    refused(folder, &huge, &["huge.raw does not fit vhd", "2040 GiB"]);
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
    assert!(!done(folder, &["info", "disk.qcow2"]).contains("rounded up"));
    done(folder, &["compare", "odd.raw", "odd.vhd"]);
}

#[test]
fn other_files_are_never_read_nor_shown() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("secret"), "TOPSECRET".repeat(100)).unwrap();
    fs::create_dir(folder.join("inside")).unwrap();
    tool(folder, "ln -s ../secret inside/link; mkfifo inside/fifo");
    let names = [
        ("/etc/passwd", "/etc/passwd"),
        ("secret", "secret"),
        ("../secret", "../secret"),
        ("link", "link"),
        ("/dev/zero", "/dev/zero"),
        ("fifo", "fifo"),
        ("json:{\\\"file.filename\\\":\\\"secret\\\"}", "json:"),
        ("nbd:localhost:1", "nbd:"),
        ("http://localhost/", "http:"),
    ];
    for (name, part) in names {
        let make = format!(
            "rm -f inside/x.qcow2; qemu-img create -q -u -f qcow2 -F raw -b \"{name}\" inside/x.qcow2 1M"
        );
        tool(folder, &make);
        for allow in [&["--allow-backing", "inside"][..], &[]] {
            let mut arguments = vec!["convert"];
            arguments.extend(allow);
            arguments.extend(["inside/x.qcow2", "out.raw"]);
            let text = refused(folder, &arguments, &["inside/x.qcow2"]);
            assert!(text.contains(part) && !text.contains("TOPSECRET"), "{text}");
            let allowed = allow.first().copied().unwrap_or("--json");
            let value = allow.get(1).copied();
            let mut arguments = vec!["info", allowed];
            arguments.extend(value);
            arguments.push("inside/x.qcow2");
            refused(folder, &arguments, &[]);
        }
        let vmdk = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\nRW 1 FLAT \"{}\" 0\n",
            name.replace("\\\"", "'")
        );
        fs::write(folder.join("inside/x.vmdk"), vmdk).unwrap();
        let allow = ["info", "--allow-backing", "inside", "inside/x.vmdk"];
        let text = refused(folder, &allow, &[]);
        assert!(!text.contains("TOPSECRET"), "{text}");
    }
}

#[test]
fn loops_and_self_reference_end() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "qemu-img create -q -u -f qcow2 -F qcow2 -b ./self.qcow2 self.qcow2 1M");
    tool(folder, "qemu-img create -q -u -f qcow2 -F qcow2 -b b.qcow2 a.qcow2 1M");
    tool(folder, "qemu-img create -q -u -f qcow2 -F qcow2 -b a.qcow2 b.qcow2 1M");
    for image in ["self.qcow2", "a.qcow2"] {
        for command in [&["info"][..], &["check"]] {
            let mut arguments = command.to_vec();
            arguments.extend(["--allow-backing", ".", image]);
            refused(folder, &arguments, &["backing files follow each other"]);
        }
        let convert = ["convert", "--allow-backing", ".", image, "out.raw"];
        refused(folder, &convert, &["backing files follow each other"]);
    }
    fs::write(
        folder.join("self.vmdk"),
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentSparse\"\nRW 1 SPARSE \"self.vmdk\"\n",
    )
    .unwrap();
    let arguments = ["info", "--allow-backing", ".", "self.vmdk"];
    refused(folder, &arguments, &["names itself"]);
}

#[test]
fn an_output_that_is_needed_for_reading_is_refused() {
    let folder = folder();
    let folder = folder.path();
    tool(
        folder,
        "qemu-img create -q -f qcow2 -F qcow2 -b disk.qcow2 top.qcow2; ln disk.qcow2 hard",
    );
    let same = ["convert", "disk.qcow2", "disk.qcow2"];
    refused(folder, &same, &["is the input and the output"]);
    let hard = ["convert", "-O", "raw", "disk.qcow2", "hard"];
    refused(folder, &hard, &["is the input and the output"]);
    let base = ["convert", "--allow-backing", ".", "top.qcow2", "disk.qcow2"];
    refused(folder, &base, &["is a file of the input and the output"]);
    refused(folder, &["convert", "disk.qcow2", "x.vdi", "./x.vdi"], &["two of the outputs"]);
    tool(folder, "qemu-img convert -O raw disk.qcow2 base.raw");
    let options = "backing_file=base.raw,backing_fmt=raw";
    let own = ["convert", "-O", "qcow2", "-o", options, "disk.qcow2", "base.raw"];
    refused(folder, &own, &["base.raw is the backing file of an output and the output"]);
}

#[test]
fn inputs_that_are_no_files_are_refused_at_once() {
    let folder = folder();
    let folder = folder.path();
    tool(folder, "mkfifo fifo; mkdir dir; ln -s /dev/zero zero");
    for input in ["fifo", "dir", "zero", "/dev/zero", "/dev/null", "none"] {
        for format in [&["-f", "raw"][..], &["-f", "qcow2"], &["-f", "vmdk"], &[]] {
            let arguments = [&["convert"], format, &[input, "out.raw"]].concat();
            refused(folder, &arguments, &[input]);
        }
        refused(folder, &["compare", "disk.qcow2", input], &[input]);
        refused(folder, &["check", input], &[input]);
    }
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("closed")).unwrap();
    refused(folder, &["convert", "disk.qcow2", "none/x.vdi"], &["none/x.vdi"]);
    refused(folder, &["convert", "disk.qcow2", "-O", "vdi", "closed"], &["closed"]);
    refused(folder, &["convert", "disk.qcow2", "-O", "vdi", "/dev/null"], &["/dev/null"]);
    tool(folder, "truncate -s 3T huge.raw");
    refused(folder, &["convert", "huge.raw", "ok.vdi", "no.vhd"], &["2040 GiB", "no.vhd"]);
}

#[test]
fn probing_does_not_guess_between_two_formats() {
    let folder = folder();
    let folder = folder.path();
    done(folder, &["convert", "disk.qcow2", "a.vdi"]);
    tool(folder, "printf 'QFI\\373' | dd of=a.vdi conv=notrunc 2>/dev/null");
    let text = refused(folder, &["convert", "a.vdi", "x.raw"], &["a.vdi", "qcow2", "vdi"]);
    assert!(text.contains("-f"), "{text}");
    done(folder, &["convert", "-f", "vdi", "a.vdi", "x.raw"]);
}

#[test]
fn encrypted_and_corrupt_images_are_refused_by_name() {
    let folder = folder();
    let folder = folder.path();
    tool(
        folder,
        "qemu-img create -q -f qcow2 --object secret,id=s,data=x \
         -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 1M",
    );
    refused(folder, &["convert", "luks.qcow2", "x.raw"], &["luks.qcow2", "LUKS encryption"]);
    for (bits, part) in [("\\002", "corrupt"), ("\\003", "corrupt"), ("\\040", "feature bits 0x20")]
    {
        tool(folder, "cp disk.qcow2 bad.qcow2");
        let patch =
            format!("printf '{bits}' | dd of=bad.qcow2 bs=1 seek=79 conv=notrunc 2>/dev/null");
        tool(folder, &patch);
        refused(folder, &["convert", "bad.qcow2", "x.raw"], &["bad.qcow2", part]);
    }
    tool(folder, "cp disk.qcow2 short.qcow2; truncate -s 700K short.qcow2");
    refused(folder, &["convert", "short.qcow2", "x.raw"], &["short.qcow2", "truncated"]);
}

#[test]
fn a_dirty_image_is_read_and_what_is_wrong_with_it_is_said() {
    let folder = folder();
    let folder = folder.path();
    // QEMU is killed before it writes the refcounts.
    tool(
        folder,
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 8M
         qemu-io -c 'write -P 5 1M 3M' -c flush -c 'sigraise 9' dirty.qcow2 >/dev/null || true
         qemu-img create -q -f qcow2 -F qcow2 -b dirty.qcow2 top.qcow2",
    );
    let told = done(folder, &["convert", "dirty.qcow2", "out.raw"]);
    assert!(told.contains("dirty.qcow2: it is marked as dirty"), "{told}");
    let info = done(folder, &["info", "dirty.qcow2"]);
    assert!(info.contains("note") && info.contains("marked as dirty"), "{info}");
    let json = done(folder, &["info", "--json", "--allow-backing", ".", "top.qcow2"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let note = json["notes"][0].as_str().unwrap();
    assert!(note.contains("/dirty.qcow2 is marked as dirty"), "{note}");
    let output = kvmbake(folder, &["check", "dirty.qcow2"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("marked as dirty") && said.contains("clusters are used"), "{said}");
    fs::write(
        folder.join("p.toml"),
        "[image]\nname = \"a\"\nsource = \"dirty.qcow2\"\n[[output]]\nformat = \"raw\"\n",
    )
    .unwrap();
    refused(folder, &["validate", "p.toml"], &["dirty.qcow2", "marked as dirty"]);
    tool(folder, "qemu-img check -q -r all dirty.qcow2");
    tool(folder, "qemu-img compare -f qcow2 -F raw dirty.qcow2 out.raw");
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
