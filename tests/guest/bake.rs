//! The main job: the example profile on a Debian cloud image, and what a profile can say.

use crate::project::{LIGHT, Project, manifest, root_offset, unless_dropped, until_kept};

const EXAMPLE: &str = include_str!("../../examples/debian.toml");
/// Extensions and qemu-img's names of the formats that are compared with the raw image.
const FORMATS: [(&str, &str); 4] =
    [("qcow2", "qcow2"), ("vdi", "vdi"), ("vhd", "vpc"), ("vmdk", "vmdk")];

#[test]
fn the_example_is_baked_from_a_debian_cloud_image_and_others_agree() {
    let project = Project::new("example");
    project.write("debian.toml", EXAMPLE);
    project.write("user-data.yaml", include_str!("../../examples/user-data.yaml"));
    project.write("setup.sh", include_str!("../../examples/setup.sh"));
    project.judge("ln -s /images/debian-12.qcow2 debian-12.qcow2");
    let before = project.judge("sha256sum /images/debian-12.qcow2");
    assert_eq!(
        project.rig.command("command -v qemu-img qemu-system-x86_64; true").run().unwrap().stdout,
        ""
    );

    let mut peak = 0;
    let output = unless_dropped(|| {
        let mut build = project.start("run debian.toml");
        peak = peak_memory(&project, &mut build);
        build.wait(crate::project::LIMIT)
    });
    let output = output.expect(0);
    eprintln!("{}", output.stderr);
    assert!(output.stderr.contains("| role: web"), "the step's output is shown");
    assert!(peak > 0 && peak < 64 << 10, "{peak} KiB beyond guest memory at the peak");
    eprintln!("peak beyond guest memory: {peak} KiB");

    let folder = project.finished();
    assert_eq!(project.judge("sha256sum /images/debian-12.qcow2"), before);
    // Not the raw one, over which the rig's processor takes minutes.
    let sums = "grep -v raw SHA512SUM.txt | sha512sum -c & other=$!; grep -v raw MD5SUM.txt | md5sum -c; wait $other";
    project.judge(&format!("cd {folder}; {sums}"));
    for (extension, format) in FORMATS {
        let image = format!("{folder}/debian-web.{extension}");
        project
            .judge(&format!("qemu-img compare -f {format} -F raw {image} {folder}/debian-web.raw"));
        if matches!(format, "qcow2" | "vdi") {
            project.judge(&format!("qemu-img check -f {format} {image}"));
        }
        if matches!(extension, "vdi" | "vhd" | "vmdk") {
            let listed = project.judge(&format!("7z l -slt {image}"));
            assert!(
                listed.contains("Type = GPT") || listed.matches(".img").count() >= 2,
                "{listed}"
            );
        }
    }
    let raw = format!("{folder}/debian-web.raw");
    let table = project.judge(&format!("sfdisk -d {raw}"));
    assert!(table.contains("label: gpt"), "{table}");
    let offset = root_offset(&table);
    project.judge(&format!(
        "loop=$(losetup -r -f --show -o {offset} {raw}); \
         e2fsck -fn $loop; debugfs -R 'cat /etc/motd' $loop | grep -x hello; \
         debugfs -R 'cat /etc/role' $loop | grep -x web; \
         debugfs -R 'stat /home/debian/.ssh/authorized_keys' $loop 2>&1 | grep -q 'not found'; losetup -d $loop"
    ));
    assert_manifest(&project, &folder);
    assert_eq!(boots_again(&project, &folder), "hello");
}

/// Watches a build and returns the most memory that it took beyond its guest's, in KiB: the resident
/// part of every mapping smaller than the guest's memory of 1 GiB.
fn peak_memory(project: &Project, build: &mut kvmbake_rig::Process<'_>) -> u64 {
    let watch = "while ! pid=$(pgrep -x kvmbake); do sleep 0.1; done; peak=0; \
         while now=$(awk '/^Size:/ { guest = $2 >= 1000000 } /^Rss:/ && !guest { sum += $2 } END { print sum + 0 }' \
                     /proc/$pid/smaps 2>/dev/null) && [ \"$now\" -gt 0 ]; do \
           [ $now -gt $peak ] && peak=$now; sleep 1; done; echo $peak";
    assert!(build.wait_for("base", std::time::Duration::from_secs(60)), "{:?}", build.so_far());
    let watched =
        project.rig.command(watch).timeout(crate::project::LIMIT).run().unwrap().expect(0);
    watched.stdout.trim().parse().unwrap()
}

fn assert_manifest(project: &Project, folder: &str) {
    let manifest = manifest(project, folder);
    let base = project.judge("sha256sum /images/debian-12.qcow2");
    let expected = format!("sha256:{}", base.split(' ').next().unwrap());
    assert_eq!(manifest["source"]["digest"], expected);
    assert_eq!(manifest["steps"][0]["exit_code"], 0);
    assert!(manifest["steps"][1]["seconds"].as_f64().unwrap() > 0.0);
    let sums = project.judge(&format!("cat {folder}/SHA512SUM.txt"));
    for artifact in manifest["artifacts"].as_array().unwrap() {
        let line = format!(
            "{}  {}",
            artifact["sha512"].as_str().unwrap(),
            artifact["file"].as_str().unwrap()
        );
        assert!(sums.contains(&line), "{line}");
    }
    assert!(manifest["disk"]["digest"].as_str().unwrap().starts_with("blake3-sparse:"));
}

/// Boots the baked qcow2 under QEMU, with the base's kernel and initrd given to it directly, and
/// returns what `/etc/motd` says there: a shell stands in for init, so that only the disk answers.
fn boots_again(project: &Project, folder: &str) -> String {
    let line = format!(
        "qemu-img create -q -f qcow2 -F qcow2 -b {folder}/debian-web.qcow2 again.qcow2; \
         cmdline=$(sed -n 's/.*\"cmdline\": \"\\(.*\\)\".*/\\1/p' {folder}/manifest.json); \
         timeout 300 qemu-system-x86_64 -enable-kvm -cpu host -M q35 -m 512 -nodefaults -display none -no-reboot \
           -kernel /images/debian-12.vmlinuz -initrd /images/debian-12.initrd \
           -append \"$cmdline init=/bin/sh panic=-1 -- -c \\\"mount -t proc proc /proc; echo MOTD:\\$(cat /etc/motd):; echo o > /proc/sysrq-trigger; sleep 60\\\"\" \
           -drive file=again.qcow2,if=virtio,format=qcow2 -serial stdio </dev/null | tr -d '\\r'; rm again.qcow2"
    );
    fn answer(console: &str) -> Option<&str> {
        console.lines().find_map(|line| line.strip_prefix("MOTD:"))
    }
    // This guest ends at its first reset.
    let console = until_kept(|| project.judge(&line), |console: &String| answer(console).is_none());
    let said = answer(&console).unwrap_or_else(|| panic!("no answer:\n{console}"));
    said.trim_end_matches(':').to_string()
}

#[test]
fn a_profile_of_all_shell_settings_and_the_web_service_works() {
    let profile = format!(
        r#"{LIGHT}
[net]
serve = "www"

[[step]]
name = "settings"
shell = {{ inline = ["test $(pwd) = /tmp", 'test "$ROLE" = "w e b"', "test $(id -u) = 0", "exit 7"], env = {{ ROLE = "w e b" }}, sudo = true, workdir = "/tmp", expect = [0, 7], timeout = "60s" }}

[[step]]
shell = "busybox wget -q -O - http://10.0.2.100/hello.txt"

[[step]]
shell = {{ script = "who.sh" }}

[[output]]
format = "qcow2"
"#
    );
    let project = Project::with_profile("settings", &profile);
    project.judge("mkdir www; echo 'hello over HTTP' > www/hello.txt");
    project.write("who.sh", "#!/bin/bash\necho \"I am $(whoami) under ${BASH_VERSION:+bash}\"\n");
    let output = project.kvmbake("run p.toml --json").expect(0);
    let lines: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let printed: Vec<&str> = lines
        .iter()
        .filter(|event| event["event"] == "output")
        .map(|event| event["line"].as_str().unwrap())
        .collect();
    assert_eq!(printed, ["hello over HTTP", "I am debian under bash"]);
    let fetched = |event: &&serde_json::Value| event["stage"] == "http";
    let fetched = lines.iter().find(fetched).expect("the request is told live");
    assert_eq!(fetched["text"], "GET /hello.txt 200, 16 B");
    let folder = project.finished();
    assert_eq!(manifest(&project, &folder)["steps"][0]["exit_code"], 7);
    project.judge(&format!("qemu-img check {folder}/light.qcow2"));
}

#[test]
#[ignore = "boots from a large initrd, minutes in the rig; `make guest-long` runs it"]
fn the_generic_kernel_boots_with_its_own_initrd() {
    let profile =
        LIGHT.replace("light.qcow2", "light-generic.qcow2").replace("cpus = 1", "cpus = 2")
            + "[[step]]\nshell = [\"uname -r\", \"nproc\"]\n[[output]]\nformat = \"qcow2\"\n";
    let project = Project::with_profile("generic", &profile);
    let output = project.kvmbake("run p.toml").expect(0);
    let printed: Vec<&str> =
        output.stderr.lines().filter_map(|line| line.split("| ").nth(1)).collect();
    assert!(printed[0].ends_with("-amd64") && !printed[0].contains("cloud"), "{printed:?}");
    assert_eq!(printed[1], "2");
}
