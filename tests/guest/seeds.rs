//! What the first boot is told, as the guest has taken it; secrets on their way there and back.

use kvmbake_rig::quote;

use crate::project::{LIGHT, Project, root_offset};

const SECRET: &str = "hunter2-correct-horse";

/// What cloud-init itself makes of a config drive, and what becomes of a secret in the user-data, in a
/// step's environment, and in what a step prints.
#[test]
#[ignore = "takes minutes of a full Debian's boot in the rig; `make guest-long` runs it"]
fn cloud_init_takes_a_config_drive_and_a_secret_is_shown_nowhere() {
    let profile = r##"
[vars]
token = { secret = true, env = "TOKEN" }

[image]
name = "drive"
source = "/images/debian-12.qcow2"

[machine]
cpus = 2
memory = "1G"

[seed]
kind = "config-drive"
hostname = "from-the-drive"
user_data = """#cloud-config
write_files:
  - path: /run/user-data-token
    content: "{{ token }}"
"""
# Another key than the user-data's, which would stand in its place.
vendor_data = """#cloud-config
bootcmd:
  - printf vendor > /etc/from-vendor-data
"""

[ssh]
user = "debian"
timeout = "10m"

[[step]]
name = "what cloud-init did"
shell = ["hostname", "cloud-init query subplatform", "sudo cat /etc/from-vendor-data && echo", "sudo cat /run/user-data-token && echo"]

[[step]]
name = "the secret"
shell = { inline = 'echo "it is $TOKEN"; test "$TOKEN" = "$(sudo cat /run/user-data-token)"', env = { TOKEN = "{{ token }}" } }

# cloud-init keeps the user-data with the rest of its instance.
[[step]]
sysprep = true

[[step]]
trim = true

[[output]]
format = "qcow2"
"##;
    let project = Project::with_profile("drive", profile);
    let output = project.kvmbake(&format!("run p.toml --json --var-file {}", secrets(&project)));
    let output = output.expect(0);
    let printed: Vec<String> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["event"] == "output")
        .map(|event| event["line"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(printed[0], "from-the-drive");
    assert!(printed[1].starts_with("config-disk ("), "{printed:?}");
    assert_eq!(printed[2], "vendor");
    assert_eq!(printed[3..5], ["***", "it is ***"]);
    for said in [&output.stdout, &output.stderr] {
        assert!(!said.contains(SECRET), "{said}");
    }
    let folder = project.finished();
    // Free space of the image may still hold what sealing has deleted (docs/limits.md).
    let search = format!("grep -rlaF --exclude=drive.qcow2 {} {folder} || true", quote(SECRET));
    let files = project.judge(&search);
    assert_eq!(files, "", "the secret is in the build's files");
    project.judge(&format!("qemu-img convert -O raw {folder}/drive.qcow2 drive.raw"));
    let offset = root_offset(&project.judge("sfdisk -d drive.raw"));
    let held = project.judge(&format!(
        "mkdir -p root; mount -o ro,noload,loop,offset={offset} drive.raw root; \
         test -s root/etc/from-vendor-data; grep -rlF {} root || true; umount root; rm drive.raw",
        quote(SECRET)
    ));
    assert_eq!(held, "", "the secret is in the image's files");
}

/// Writes the file with the secret's value, readable by its owner alone.
fn secrets(project: &Project) -> &'static str {
    project.write("secrets.toml", &format!("token = \"{SECRET}\"\n"));
    project.judge("chmod 600 secrets.toml; chown builder: secrets.toml");
    "secrets.toml"
}

#[test]
#[ignore = "takes minutes to make an initramfs in the rig; `make guest-long` runs it"]
fn interfaces_keep_the_kernels_names_when_the_image_moves_to_another_platform() {
    let profile = format!(
        "{LIGHT}\n[seed]\nkind = \"nocloud\"\nhostname = \"moved\"\neth0_names = true\n\
         [[step]]\nshell = \"hostname; ls /sys/class/net\"\n[[output]]\nformat = \"qcow2\"\n"
    );
    let project = Project::with_profile("eth0", &profile);
    let output = project.kvmbake("run p.toml").expect(0);
    for line in ["| moved", "| eth0"] {
        assert!(output.stderr.contains(line), "{}", output.stderr);
    }
    let folder = project.finished();
    let image = format!("{folder}/light.qcow2");
    project.judge(&format!("qemu-img convert -O raw {image} moved.raw"));
    let table = project.judge("sfdisk -d moved.raw");
    let offset = root_offset(&table);
    // Its own initrd, as its boot loader would load it, on a machine with another network card.
    let console = project.judge(&format!(
        "loop=$(losetup -r -f --show -o {offset} moved.raw); \
         for name in vmlinuz initrd.img; do \
           path=$(debugfs -R 'ls -p /boot' $loop 2>/dev/null | cut -d/ -f6 | grep ^$name- | head -n 1); \
           debugfs -R \"dump /boot/$path $name\" $loop 2>/dev/null; done; \
         debugfs -R 'stat /etc/udev/rules.d/80-net-setup-link.rules' $loop 2>/dev/null | grep -a 'dest:'; losetup -d $loop; \
         timeout 300 qemu-system-x86_64 -enable-kvm -cpu host -M q35 -m 512 -nodefaults -display none -no-reboot \
           -kernel vmlinuz -initrd initrd.img -netdev user,id=n -device virtio-net-pci,netdev=n \
           -append \"root=/dev/vda1 console=ttyS0 init=/bin/sh panic=-1 -- -c \\\"mount -t sysfs s /sys; mount -t proc p /proc; echo NAMES:\\$(ls /sys/class/net):; echo o > /proc/sysrq-trigger; sleep 60\\\"\" \
           -drive file=moved.raw,if=virtio,format=raw -serial stdio </dev/null | tr -d '\\r'; rm moved.raw"
    ));
    assert!(console.contains("dest: \"/dev/null\""), "{console}");
    assert!(console.lines().any(|line| line == "NAMES:eth0 lo:"), "{console}");
}

#[test]
#[ignore = "bakes an image to boot it, minutes in the rig; `make guest-long` runs it"]
fn plain_files_come_on_a_disk_with_their_label() {
    // The build's key is on no such disk: a key of the user's own, which an earlier image lets in.
    let project = Project::new("files");
    project
        .judge("ssh-keygen -q -t ed25519 -N '' -f own; chown builder: own own.pub; chmod 600 own");
    let key = project.judge("cat own.pub");
    let step = format!(
        "[[step]]\nshell = \"echo '{}' >> /home/debian/.ssh/authorized_keys\"\n",
        key.trim()
    );
    project.write("first.toml", &format!("{LIGHT}{step}[[output]]\nformat = \"qcow2\"\n"));
    project.warm("run first.toml -o first").expect(0);
    let image = project.judge("ls -d first/*/light.qcow2");
    let profile = LIGHT.replace("/images/light.qcow2", image.trim())
        + r#"private_key = "own"

[seed]
kind = "files"
label = "ANSWERS"
files = { "answers.cfg" = "answers.cfg", "deep/er.txt" = """one
two
""" }

[[step]]
shell = ["sudo mount -o ro LABEL=ANSWERS /mnt", "cat /mnt/answers.cfg /mnt/deep/er.txt", "sudo umount /mnt"]

[[output]]
format = "qcow2"
"#;
    project.write("p.toml", &profile);
    project.write("answers.cfg", "network --bootproto=dhcp\n");
    let output = project.kvmbake("run p.toml").expect(0);
    for line in ["| network --bootproto=dhcp", "| one", "| two"] {
        assert!(output.stderr.contains(line), "{}", output.stderr);
    }
}
