//! What is hostile, damaged, or cannot be written: refused in one line, at once, with nothing left behind.

use std::fs;

use crate::{done, folder, kvmbake, listed, refused, tool};

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
