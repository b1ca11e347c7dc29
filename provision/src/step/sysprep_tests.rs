//! The script on guests that are folders, under three shells and the programs of two systems.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// A shell, and the folder of programs that it finds first.
fn shells(folder: &Path) -> Vec<(Vec<&'static str>, String)> {
    let applets = folder.join("applets");
    fs::create_dir_all(&applets).expect("folder");
    for name in ["find", "ls", "awk", "rm", "cut", "sort", "grep", "ln", "mkdir", "cat", "sync"] {
        std::os::unix::fs::symlink("/bin/busybox", applets.join(name)).expect("link");
    }
    let plain = String::from("/usr/bin:/bin");
    vec![
        (vec!["/bin/dash"], plain.clone()),
        (vec!["/bin/bash", "--posix"], plain.clone()),
        (vec!["/bin/busybox", "sh"], format!("{}:{plain}", applets.display())),
    ]
}

/// Runs the script of one phase on `root`; what it printed, when it succeeded.
fn run(
    sysprep: &Sysprep,
    phase: &str,
    root: &Path,
    shell: &(Vec<&str>, String),
) -> Result<String, String> {
    let script =
        sysprep.script(phase).replace("\nroot=\n", &format!("\nroot='{}'\n", root.display()));
    let output = Command::new(shell.0[0])
        .args(&shell.0[1..])
        .args(["-c", &script])
        .env("PATH", &shell.1)
        .output()
        .expect("shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => {
            assert_eq!(text(&output.stderr), "");
            Ok(text(&output.stdout))
        }
        false => Err(text(&output.stderr)),
    }
}

fn write(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    fs::write(path, content).expect("write");
}

/// What must not remain, each with the words of the line that tells of it.
const GONE: [(&str, &str); 31] = [
    ("etc/ssh/ssh_host_rsa_key", "SSH host keys"),
    ("etc/ssh/ssh_host_rsa_key.pub", "SSH host keys"),
    ("etc/udev/rules.d/70-persistent-net.rules", "names of network cards"),
    ("etc/netplan/50-cloud-init.yaml", "cloud-init state"),
    ("var/lib/cloud/instances/i-1/obj.pkl", "cloud-init state"),
    ("var/lib/cloud/instance", "cloud-init state"),
    ("var/lib/cloud/data/instance-id", "cloud-init state"),
    ("var/log/cloud-init-output.log", "cloud-init state"),
    ("var/lib/dhcp/dhclient.eth0.leases", "DHCP leases"),
    ("var/lib/dhclient/a.lease", "DHCP leases"),
    ("var/lib/NetworkManager/internal-1-eth0.lease", "DHCP leases"),
    ("var/lib/NetworkManager/secret_key", "DHCP leases"),
    ("var/lib/dbus/machine-id.before", ""),
    ("root/.bash_history", "shell history"),
    ("home/o ther/.python_history", "shell history"),
    ("var/cache/apt/archives/a b.deb", "package caches"),
    ("var/cache/apt/pkgcache.bin", "package caches"),
    ("var/lib/apt/lists/deb_main_Packages", "package caches"),
    ("var/cache/dnf/repo/x.rpm", "package caches"),
    ("var/cache/apk/APKINDEX.1.tar.gz", "package caches"),
    ("var/cache/zypp/packages/a.rpm", "package caches"),
    ("tmp/a b/c", "temporary files"),
    ("tmp/.hidden", "temporary files"),
    ("var/tmp/systemd-private-1/tmp/x", "temporary files"),
    ("var/lib/systemd/random-seed", "random seed"),
    ("var/lib/systemd/credential.secret", "random seed"),
    ("boot/efi/loader/random-seed", "random seed"),
    ("var/log/journal/0123/system.journal", "logs"),
    ("var/log/syslog.2.gz", "logs"),
    ("var/log/messages-20260101", "logs"),
    ("var/lib/systemd/coredump/core.x", "logs"),
];

/// What must remain with its content.
const KEPT: [&str; 12] = [
    "etc/ssh/sshd_config",
    "etc/ssh/moduli",
    "etc/udev/rules.d/60-mine.rules",
    "etc/netplan/01-mine.yaml",
    "var/lib/cloud/seed/nocloud/user-data",
    "root/.bashrc",
    "home/o ther/notes",
    "var/cache/apt/archives/lock",
    "var/lib/NetworkManager/NetworkManager.state",
    "var/lib/systemd/timers/stamp",
    "etc/init.d/sshd",
    "outside",
];

/// What must remain, empty.
const EMPTIED: [&str; 3] = ["var/log/syslog", "var/log/apt/history.log", "var/log/wtmp"];

fn guest(root: &Path) {
    for (name, _) in GONE {
        write(root, name, "secret");
    }
    for name in KEPT.iter().chain(&EMPTIED) {
        write(root, name, "content");
    }
    write(root, "etc/init.d/sshd", "content\nssh-keygen -A");
    write(root, "usr/bin/cloud-init", "");
    fs::create_dir_all(root.join("var/log/empty")).expect("folder");
    // A log that leads out of the folder is no file of it.
    std::os::unix::fs::symlink("../../outside", root.join("var/log/link")).expect("link");
    write(
        root,
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\no:x:1:1::/home/o ther:/bin/sh\nn:x:2:2::/:/bin/sh\nd:x:3:3::/none:/bin/sh\n",
    );
    write(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    write(root, "var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n");
    fs::remove_file(root.join("var/lib/dbus/machine-id.before")).expect("remove");
}

fn content(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn nothing_of_the_list_remains_and_everything_else_does() {
    let folder = tempfile::tempdir().expect("folder");
    for (index, shell) in shells(folder.path()).iter().enumerate() {
        let root = folder.path().join(index.to_string());
        guest(&root);
        let sysprep = Sysprep::default();
        let first = run(&sysprep, "step", &root, shell).expect("step");
        assert!(first.contains("package caches: 6 files, 36 bytes\n"), "{shell:?}: {first}");
        // A session after a reboot needs them; a running service its folder.
        assert!(root.join("etc/ssh/ssh_host_rsa_key").exists());
        assert!(root.join("var/tmp/systemd-private-1/tmp/x").exists());
        assert!(root.join("var/lib/cloud/instance").exists());
        assert_eq!(content(&root, "etc/machine-id").len(), 33);
        // What came back until the seal goes again.
        write(&root, "var/cache/apt/pkgcache.bin", "again");
        let second = run(&sysprep, "seal", &root, shell).expect("seal");
        for (name, told) in GONE {
            assert!(!root.join(name).exists(), "{shell:?}: {name} is left");
            assert!(first.contains(told) || second.contains(told), "{name}: {first}{second}");
        }
        for name in KEPT {
            assert!(content(&root, name).starts_with("content"), "{shell:?}: {name}");
        }
        for name in EMPTIED {
            assert_eq!(content(&root, name), "", "{shell:?}: {name}");
        }
        assert!(root.join("var/log/empty").is_dir());
        assert_eq!(content(&root, "etc/machine-id"), "");
        let link = fs::read_link(root.join("var/lib/dbus/machine-id")).expect("link");
        assert_eq!(link.to_str(), Some("/etc/machine-id"));
        assert!(second.contains("machine ID: 2 files, 66 bytes\n"), "{second}");
        assert!(second.contains("package caches: 1 files, 5 bytes\n"), "{second}");
        // Nothing is left to tell of.
        assert_eq!(run(&sysprep, "seal", &root, shell).expect("again"), "", "{shell:?}");
    }
}

#[test]
fn what_is_switched_off_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let shell = &shells(folder.path())[0];
    for kind in KINDS {
        let root = folder.path().join(kind);
        guest(&root);
        let kinds = KINDS.into_iter().filter(|other| *other != kind).collect();
        let sysprep = Sysprep { machine_id: MachineId::Kept, kinds, user: None };
        run(&sysprep, "step", &root, shell).expect("step");
        run(&sysprep, "seal", &root, shell).expect("seal");
        assert_eq!(content(&root, "etc/machine-id").len(), 33);
        let words = match kind {
            "ssh_host_keys" => "SSH host keys",
            "logs" => "logs",
            "dhcp_leases" => "DHCP leases",
            "cloud_init" => "cloud-init state",
            "history" => "shell history",
            "package_caches" => "package caches",
            "tmp" => "temporary files",
            "random_seed" => "random seed",
            _ => "names of network cards",
        };
        for (name, told) in GONE.into_iter().filter(|(name, _)| !name.ends_with(".before")) {
            // cloud-init's logs are logs, too.
            let stays = told == words && !name.starts_with("var/log/cloud-init");
            if !name.starts_with("var/log/cloud-init") {
                assert_eq!(root.join(name).exists(), stays, "{name} without {kind}");
            }
        }
    }
}

#[test]
fn the_machine_id_can_ask_for_a_first_boot() {
    let folder = tempfile::tempdir().expect("folder");
    let shell = &shells(folder.path())[0];
    let root = folder.path().join("guest");
    guest(&root);
    let sysprep = Sysprep { machine_id: MachineId::Uninitialized, kinds: vec![], user: None };
    let said = run(&sysprep, "seal", &root, shell).expect("seal");
    assert_eq!(said, "machine ID: 2 files, 66 bytes\n");
    assert_eq!(content(&root, "etc/machine-id"), "uninitialized\n");
    // A guest without systemd has none, and gets none.
    let bare = folder.path().join("bare");
    write(&bare, "etc/passwd", "");
    write(&bare, "var/lib/dbus/machine-id", "0123\n");
    run(&sysprep, "seal", &bare, shell).expect("seal");
    assert!(!bare.join("etc/machine-id").exists());
    assert!(fs::symlink_metadata(bare.join("var/lib/dbus/machine-id")).is_err());
}

#[test]
fn host_keys_go_only_where_something_makes_them_again() {
    let folder = tempfile::tempdir().expect("folder");
    let sysprep = Sysprep { machine_id: MachineId::Kept, kinds: vec!["ssh_host_keys"], user: None };
    for (index, shell) in shells(folder.path()).iter().enumerate() {
        let root = folder.path().join(index.to_string());
        guest(&root);
        fs::remove_file(root.join("etc/init.d/sshd")).expect("remove");
        let refused = run(&sysprep, "step", &root, shell).expect_err("refused");
        assert!(refused.contains("`ssh_host_keys = false`"), "{refused}");
        run(&sysprep, "seal", &root, shell).expect_err("refused");
        assert!(root.join("etc/ssh/ssh_host_rsa_key").exists());
        // A boot script that inittab names, as busybox's init has them.
        write(&root, "etc/inittab", "::sysinit:/sbin/up\n::respawn:/usr/sbin/sshd -D\n");
        write(&root, "sbin/up", "[ -e /etc/ssh/k ] || ssh-keygen -A\n");
        assert_eq!(run(&sysprep, "step", &root, shell).expect("known"), "");
        fs::remove_file(root.join("sbin/up")).expect("remove");
        // Debian has nobody for it: its package makes them when it is installed.
        fs::create_dir_all(root.join("run/systemd/system")).expect("folder");
        let told = run(&sysprep, "step", &root, shell).expect("unit");
        assert!(told.contains("ssh-host-keys.service"), "{told}");
        let wants = root.join("etc/systemd/system/multi-user.target.wants/ssh-host-keys.service");
        assert!(fs::read_to_string(wants).expect("unit").contains("ssh-keygen -A"));
        run(&sysprep, "seal", &root, shell).expect("seal");
        assert!(!root.join("etc/ssh/ssh_host_rsa_key").exists());
    }
}

#[test]
fn two_steps_take_out_what_either_does() {
    let logs = Sysprep { machine_id: MachineId::Kept, kinds: vec!["logs"], user: None };
    let user = Sysprep { kinds: vec!["tmp"], user: Some("build".into()), ..Sysprep::default() };
    let both = logs.and(&user);
    assert_eq!(both.kinds, ["logs", "tmp"]);
    assert_eq!((both.machine_id, both.user.as_deref()), (MachineId::Empty, Some("build")));
}
