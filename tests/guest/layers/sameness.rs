//! A profile baked cold and warm: the same files in the images.

use std::collections::BTreeSet;

use super::five::{Five, LOG};

/// Paths that may differ between two builds of one profile, and why.
const EXPLAINED: &[(&str, &str)] = &[
    ("/etc/ssh/ssh_host_ed25519_key", "random: made at the first boot"),
    ("/etc/ssh/ssh_host_ed25519_key.pub", "random: made at the first boot"),
    (
        "/var/log/wtmp",
        "time: a record of each log-in with its moment, and of one more after a restore",
    ),
];

/// Lists the root file system of an image: type, mode, owner, size or target, digest, path.
fn tree(five: &Five, folder: &str, name: &str) {
    five.project.judge(&format!(
        "qemu-img convert -O raw {folder}/five.qcow2 {name}.raw; mkdir -p mnt; \
         mount -o ro,loop,offset=$((262144 * 512)) {name}.raw mnt; cd mnt; \
         {{ find . -xdev ! -type f -printf '%y %m %U %G %l  %P\\n'; \
            find . -xdev -type f -printf '%y %m %U %G %s  %P\\n'; \
            find . -xdev -type f -printf '%P\\0' | xargs -0 sha256sum; }} | sort > ../{name}.tree; \
         cat home/debian/log > ../{name}.log; \
         ! grep -rsq 'ssh-ed25519 AAAA' root/.ssh home/debian/.ssh; \
         cd ..; umount mnt; rm {name}.raw; test $(wc -l < {name}.tree) -gt 10000"
    ));
    assert_eq!(five.project.judge(&format!("cat {name}.log")), LOG, "{name}");
}

/// The paths on which two trees differ.
fn differences(five: &Five, one: &str, other: &str) -> BTreeSet<String> {
    let lines = five.project.judge(&format!("diff {one}.tree {other}.tree | grep '^[<>]' || true"));
    let path = |line: &str| format!("/{}", line.split("  ").last().unwrap());
    lines.lines().map(path).collect()
}

#[test]
#[ignore = "bakes whole images twice, minutes in the rig; `make guest-long` runs it"]
fn images_baked_cold_and_warm_have_the_same_files() {
    let five = Five::new("sameness");
    let before = five.content();
    let cold = five.run("--no-cache -o cold");
    assert_eq!(cold.boots(), ["reading the kernel from the image"]);
    assert_eq!(five.content(), before, "a run without the cache leaves it alone");
    tree(&five, cold.folder(), "cold");

    let warm = five.run("--from 5 -o warm");
    assert_eq!((warm.planned().as_str(), warm.boots().len()), ("boot 1 2 3 4 | 5 sealed", 1));
    assert!(warm.boots()[0].starts_with("going on from memory"));
    tree(&five, warm.folder(), "warm");

    for step in 1..=5 {
        let run = five.run(&format!("--from {step} --until {step}"));
        assert_eq!(run.steps(), [step]);
        assert!(run.boots()[0].starts_with("going on from memory"));
    }
    let parts = five.run("-o parts");
    assert_eq!(parts.planned(), "boot 1 2 3 4 5 | sealed");
    tree(&five, parts.folder(), "parts");

    for warm in ["warm", "parts"] {
        let different = differences(&five, "cold", warm);
        eprintln!("cold and {warm} differ in {different:?}");
        let explained: BTreeSet<&str> = EXPLAINED.iter().map(|(path, _)| *path).collect();
        let unexplained: Vec<&String> =
            different.iter().filter(|path| !explained.contains(path.as_str())).collect();
        assert!(unexplained.is_empty(), "cold and {warm}: {unexplained:?}");
        // The host key is made anew in each first boot: two images that agree on it too are one image.
        assert!(different.contains(EXPLAINED[0].0), "{different:?}");
    }
}
