//! Whole images, from the partition table to the kernel's bytes.

use kvmbake_disk::MemoryBlock;

use super::*;
use crate::boot::fixture::{BOOT_UUID, Part, ROOT_UUID, disk, esp, file_system, root, vmlinux};

const DEBIAN: &[u8] = include_bytes!("fixtures/debian.cfg");

fn defaults() -> BootOverrides {
    BootOverrides::default()
}

fn message(disk: Arc<dyn Block>, overrides: &BootOverrides) -> String {
    match discover(disk, overrides) {
        Ok(kernel) => panic!("found {kernel:?}"),
        Err(error) => error.to_string(),
    }
}

/// A Debian disk: root with kernel and initrd, and an ESP with GRUB's stub.
fn debian(kernel: &[u8]) -> Arc<dyn Block> {
    let stub = format!(
        "search.fs_uuid {ROOT_UUID} root hd0,gpt1 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    disk(&[
        esp(&[("/EFI/debian/grub.cfg", stub.as_bytes()), ("/EFI/BOOT/BOOTX64.EFI", b"MZ")]),
        root(&[
            ("/boot/grub/grub.cfg", DEBIAN),
            ("/boot/vmlinuz-6.1.0-35-amd64", kernel),
            ("/boot/initrd.img-6.1.0-35-amd64", b"an initrd"),
            ("/boot/other.img", b"another"),
        ]),
    ])
}

#[test]
fn debian_gives_kernel_initrd_and_command_line() {
    let vmlinux = vmlinux(0x3000);
    let kernel = discover(debian(&vmlinux), &defaults()).unwrap();
    let mut unpacked = Vec::new();
    let mut take = |bytes: &[u8]| {
        unpacked.extend_from_slice(bytes);
        Ok(())
    };
    kernel.image.unpack(&mut take).unwrap();
    assert!(unpacked == vmlinux);
    assert_eq!(kernel.initrd.unwrap(), b"an initrd");
    assert_eq!(
        kernel.cmdline,
        format!(
            "BOOT_IMAGE=/boot/vmlinuz-6.1.0-35-amd64 root=UUID={ROOT_UUID} ro quiet console=ttyS0"
        )
    );
    assert_eq!(
        kernel.origin,
        "/boot/vmlinuz-6.1.0-35-amd64, by grub.cfg entry 'Debian GNU/Linux' on partition 1"
    );
}

#[test]
fn overrides_replace_each_part() {
    let vmlinux = vmlinux(0x3000);
    let disk = debian(&vmlinux);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &vmlinux).unwrap();
    let host = FileSource::Host(file.path().into());

    let overrides = BootOverrides {
        append: Some("net.ifnames=0".into()),
        verbose: true,
        initrd: vec![
            FileSource::Image("/boot/initrd.img-6.1.0-35-amd64".into()),
            FileSource::Image("/boot/other.img".into()),
        ],
        ..defaults()
    };
    let kernel = discover(disk.clone(), &overrides).unwrap();
    assert!(kernel.cmdline.ends_with(" ro net.ifnames=0 console=ttyS0"), "{}", kernel.cmdline);
    assert_eq!(kernel.initrd.unwrap(), b"an initrd\0\0\0another");

    let overrides = BootOverrides { kernel: Some(host.clone()), ..defaults() };
    let kernel = discover(disk.clone(), &overrides).unwrap();
    assert!(kernel.initrd.is_none() && kernel.cmdline.contains("root=UUID="));
    let name = file.path().display();
    assert_eq!(
        kernel.origin,
        format!(
            "kernel {name} of the host; no initrd; command line of grub.cfg entry 'Debian GNU/Linux' on partition 1"
        )
    );

    // With kernel and command line given, the image needs no boot configuration, nor a table.
    let overrides = BootOverrides {
        kernel: Some(host.clone()),
        cmdline: Some("root=/dev/vda".into()),
        ..defaults()
    };
    let empty: Arc<dyn Block> = Arc::new(MemoryBlock::zeroes(1 << 20));
    let kernel = discover(empty.clone(), &overrides).unwrap();
    assert_eq!(kernel.cmdline, "root=/dev/vda console=ttyS0");
    let overrides = BootOverrides { kernel: Some(host), ..defaults() };
    assert!(message(empty, &overrides).starts_with("No command line for"));

    let overrides =
        BootOverrides { kernel: Some(FileSource::Image("/vmlinuz".into())), ..defaults() };
    let text = message(disk.clone(), &overrides);
    assert!(
        text.starts_with(
            "the boot override names /vmlinuz, which cannot be read from partition 1 (ext4"
        ),
        "{text}"
    );
    let overrides = BootOverrides { entry: Some("none".into()), ..defaults() };
    let text = message(disk, &overrides);
    assert!(text.starts_with("No boot entry 'none' in /boot/grub/grub.cfg on partition 1; it has 'Debian GNU/Linux', 'Advanced"), "{text}");
}

#[test]
fn a_boot_partition_is_found_through_the_stub() {
    let vmlinux = vmlinux(0x3000);
    let stub = format!(
        "search --no-floppy --root-dev-only --fs-uuid --set=dev {BOOT_UUID}\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n"
    );
    let config =
        b"search --label --set=root boot\nmenuentry 'On boot' {\n linuxefi /vmlinuz root=/dev/vda3\n initrdefi /initrd\n}\n";
    // A configuration on the root partition that the firmware would never come to.
    let other = b"menuentry 'Left over' { linux /vmlinuz }\n";
    let boot = Part {
        number: 2,
        kind: "ext4",
        label: "boot",
        uuid: BOOT_UUID,
        files: &[("/grub2/grub.cfg", config), ("/vmlinuz", &vmlinux), ("/initrd", b"initrd")],
    };
    let files: &[(&str, &[u8])] = &[("/boot/grub/grub.cfg", other), ("/vmlinuz", &vmlinux)];
    let disk = disk(&[root(files), boot, esp(&[("/EFI/fedora/grub.cfg", stub.as_bytes())])]);
    let kernel = discover(disk, &defaults()).unwrap();
    assert_eq!(kernel.origin, "/vmlinuz, by grub.cfg entry 'On boot' on partition 2");
    assert_eq!(kernel.cmdline, "BOOT_IMAGE=/vmlinuz root=/dev/vda3 console=ttyS0");
}

#[test]
fn systemd_boot_entries_come_from_the_efi_system_partition() {
    let vmlinux = vmlinux(0x3000);
    let arch = b"title Arch Linux\nlinux /vmlinuz-linux\ninitrd /ucode.img\ninitrd /initramfs.img\noptions root=LABEL=arch rw\noptions cost=$5\n";
    let lts = b"title Arch Linux LTS\nlinux /vmlinuz-linux\noptions lts\n";
    let files: &[(&str, &[u8])] = &[
        ("/EFI/systemd/systemd-bootx64.efi", b"MZ"),
        ("/loader/loader.conf", b"timeout 3\ndefault arch.conf\n"),
        ("/loader/entries/arch.conf", arch),
        ("/loader/entries/lts.conf", lts),
        ("/vmlinuz-linux", &vmlinux),
        ("/ucode.img", b"micro"),
        ("/initramfs.img", b"initramfs"),
    ];
    let other: &[(&str, &[u8])] =
        &[("/boot/grub/grub.cfg", b"menuentry x { linux /vmlinuz }"), ("/vmlinuz", &vmlinux)];
    let disk = disk(&[esp(files), root(other)]);
    let kernel = discover(disk.clone(), &defaults()).unwrap();
    assert_eq!(kernel.origin, "/vmlinuz-linux, by loader entry 'Arch Linux' on partition 15");
    assert_eq!(kernel.cmdline, "root=LABEL=arch rw cost=$5 console=ttyS0");
    assert_eq!(kernel.initrd.unwrap(), b"micro\0\0\0initramfs");
    let overrides = BootOverrides { entry: Some("lts".into()), ..defaults() };
    assert_eq!(discover(disk, &overrides).unwrap().cmdline, "lts console=ttyS0");
}

#[test]
fn loader_entries_without_a_grub_cfg_use_its_environment() {
    let vmlinux = vmlinux(0x3000);
    let entry = b"title Fedora\nlinux /boot/vmlinuz\noptions $kernelopts $tuned_params\n";
    let files: &[(&str, &[u8])] = &[
        ("/boot/loader/entries/a.conf", entry),
        ("/boot/loader/entries/b.conf", b"title Newer\nlinux /vmlinuz\noptions b\n"),
        (
            "/boot/grub2/grubenv",
            b"# GRUB Environment Block\nsaved_entry=a\nkernelopts=root=/dev/vda ro\n####",
        ),
        ("/boot/vmlinuz", &vmlinux),
    ];
    // A disk that is one file system, without a table.
    let whole: Arc<dyn Block> = Arc::new(MemoryBlock::read_only(file_system(&root(files))));
    let kernel = discover(whole.clone(), &defaults()).unwrap();
    assert_eq!(kernel.origin, "/boot/vmlinuz, by loader entry 'Fedora' on the whole disk");
    assert_eq!(kernel.cmdline, "root=/dev/vda ro console=ttyS0");
    let overrides = BootOverrides { entry: Some("b".into()), ..defaults() };
    let kernel = discover(whole, &overrides).unwrap();
    assert_eq!(kernel.origin, "/boot/vmlinuz, by loader entry 'Newer' on the whole disk");
}

#[test]
fn failures_say_what_was_looked_at() {
    let files: &[(&str, &[u8])] = &[("/etc/hostname", b"x")];
    let text = message(disk(&[root(files), esp(&[])]), &defaults());
    assert_eq!(
        text,
        "No grub.cfg or boot loader entries in the image: partition 1 (ext4 'cloudimg-rootfs'), \
         partition 15 (FAT 'UEFI')"
    );
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let text = message(Arc::new(MemoryBlock::read_only(xfs)), &defaults());
    assert!(text.contains("the whole disk (XFS, not read"), "{text}");

    let files: &[(&str, &[u8])] = &[("/boot/grub/grub.cfg", DEBIAN)];
    let text = message(disk(&[root(files)]), &defaults());
    assert_eq!(
        text,
        "No kernel found by the image's boot configuration: grub.cfg entry 'Debian GNU/Linux' on \
         partition 1 names /boot/vmlinuz-6.1.0-35-amd64, which is not there (partition 1 (ext4 \
         'cloudimg-rootfs'))"
    );
    let with = |config: &str| {
        let files: &[(&str, &[u8])] = &[("/boot/grub/grub.cfg", config.as_bytes())];
        message(disk(&[root(files)]), &defaults())
    };
    let text = with("menuentry Windows { chainloader +1 }");
    assert!(
        text.contains(
            "entry 'Windows' on partition 1 loads no kernel: it loads with 'chainloader'"
        ),
        "{text}"
    );
    let text =
        with("menuentry x { search --fs-uuid --set=root 1234-ABCD\n linux (hd3,1)/vmlinuz }");
    assert!(text.contains("'search' finds no file system by fs-uuid 1234-ABCD; the kernel (hd3,1)/vmlinuz is on no partition"), "{text}");
    let text = with("set timeout=5\n");
    assert!(text.contains("/boot/grub/grub.cfg on partition 1 gives no menu entries"), "{text}");
    let text = with("if true; then\n");
    assert!(text.contains("expected 'fi'"), "{text}");
    let text = message(debian(b"not a kernel"), &defaults());
    assert_eq!(text, "Cannot boot /boot/vmlinuz-6.1.0-35-amd64");
}
