//! An image that is made to be copied: sysprep, trim and the agent of the first boot in one build, judged from outside by
//! reading the sealed disk, and by what `kvmbake test` says of it.

use crate::project::{LIGHT, Project, root_offset};

/// Fills the guest with what must not remain.
const TRACES: &str = "
set -e
mkdir -p /etc/cron.d /var/lib/dhcp /var/cache/apt/archives /var/lib/dbus /var/lib/cloud/instances/i /var/log/journal/x
mkdir -p /var/lib/systemd /etc/udev/rules.d
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
cp /etc/machine-id /var/lib/dbus/machine-id
useradd --create-home builder
echo 'builder ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/builder
for path in /root/.bash_history /home/debian/.python_history /var/lib/dhcp/dhclient.leases /var/cache/apt/archives/a.deb \\
    /var/lib/cloud/instances/i/user-data.txt /var/log/journal/x/system.journal /var/log/old.log.1 /tmp/left /var/tmp/left \\
    /var/lib/systemd/random-seed /etc/udev/rules.d/70-persistent-net.rules /var/log/current; do
    echo 'a trace' >$path
done
yes 'what was deleted' | head -c 32M >/home/debian/deleted
sync
rm /home/debian/deleted
";

const GONE: [&str; 16] = [
    "/root/.bash_history",
    "/home/debian/.python_history",
    "/var/lib/dhcp/dhclient.leases",
    "/var/cache/apt/archives/a.deb",
    "/var/lib/cloud/instances",
    "/var/log/journal/x",
    "/var/log/old.log.1",
    "/tmp/left",
    "/var/tmp/left",
    "/var/lib/systemd/random-seed",
    "/etc/udev/rules.d/70-persistent-net.rules",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_ed25519_key.pub",
    "/home/builder",
    "/etc/sudoers.d/builder",
    "/home/debian/.ssh/authorized_keys",
];

fn profile() -> String {
    format!(
        r#"{LIGHT}
[[step]]
shell = {{ script = "traces.sh", sudo = true }}

[[step]]
breakpoint = "never seen"

[[step]]
wait = {{ port = 22, timeout = "30s" }}

[[step]]
shell = "exit 9"
name = "may fail"
on_error = "ignore"

[[step]]
vm_bootstrap = {{ max_retry = 5 }}

[[step]]
sysprep = {{ user = "builder" }}

[[step]]
trim = true

[[output]]
format = "qcow2"

[[test]]
bootstrap = {{ fails = 3 }}

[[test]]
shell = "id -un"
contains = "debian"

[[test]]
file = "/etc/ssh/ssh_host_ed25519_key"
mode = "0600"

[[test]]
absent = "/root/.bash_history"
sudo = true

[[test]]
port = 22

[[test]]
service = "sshd"
"#
    )
}

#[test]
fn an_image_is_made_fit_to_be_copied_and_keeps_the_contract_of_its_first_boot() {
    let project = Project::with_profile("sysprep", &profile());
    project.write("traces.sh", TRACES);
    // Without a terminal nobody could be asked.
    let refused = project.kvmbake("run p.toml").expect(1);
    assert!(refused.stderr.contains("no terminal to stop at a breakpoint"), "{}", refused.stderr);
    let output = project.warm("run --no-breakpoints p.toml").expect(0);
    eprintln!("{}", output.stderr);
    let mut waited = output.stderr.lines().filter_map(|line| line.split_once("| waited "));
    assert!(waited.any(|(_, rest)| {
        let seconds = rest.strip_suffix(" s for port 22");
        seconds.is_some_and(|seconds| seconds.parse::<u64>().is_ok())
    }));
    assert!(output.stderr.contains("| package caches: 1 files, 8 bytes"));
    assert!(output.stderr.contains("SSH host keys: 2 files"));
    let folder = project.finished();
    let manifest = crate::project::manifest(&project, &folder);
    assert!(manifest["steps"][2]["ignored"].as_str().unwrap().contains("exit code 9"));

    let image = format!("{folder}/light.qcow2");
    let raw = "judged.raw";
    project.judge(&format!("qemu-img convert -O raw {image} {raw}"));
    let offset = root_offset(&project.judge(&format!("sfdisk -d {raw}")));
    let left = project.judge(&format!(
        "loop=$(losetup -r -f --show -o {offset} {raw}); e2fsck -fn $loop >&2; \
         for path in {}; do debugfs -R \"stat $path\" $loop 2>&1 | grep -q 'not found' || echo \"left: $path\"; done; \
         debugfs -R 'cat /etc/machine-id' $loop 2>/dev/null; debugfs -R 'cat /var/log/current' $loop 2>/dev/null; \
         debugfs -R 'cat /etc/passwd' $loop 2>/dev/null | grep builder || true; \
         debugfs -R 'stat /var/lib/dbus/machine-id' $loop 2>&1 | grep -q 'link dest: \"/etc/machine-id\"' || echo 'no link'; \
         debugfs -R 'stat /root/bootstrap/start-bootstrap' $loop 2>&1 | grep -q 'not found' && echo 'not armed'; \
         losetup -d $loop",
        GONE.join(" ")
    ));
    assert_eq!(left, "", "what must not remain");
    let kept = project.judge(&format!("grep -caF 'what was deleted' {raw} || true; rm {raw}"));
    // Of two million lines; at the edges of what is discarded, parts of a qcow2 cluster stay.
    let kept: u64 = kept.trim().parse().unwrap();
    assert!(kept < 10_000, "{kept} lines of a file that was deleted before `trim`");

    let before = project.judge(&format!("sha256sum {image}"));
    let tested = project.kvmbake("test p.toml").expect(0);
    eprintln!("{}", tested.stdout);
    assert!(tested.stdout.contains("ok      vm_bootstrap after 3 failures"));
    assert!(tested.stdout.ends_with("6 of 6 tests passed\n"), "{}", tested.stdout);
    assert_eq!(project.judge(&format!("sha256sum {image}")), before, "never written");
}
