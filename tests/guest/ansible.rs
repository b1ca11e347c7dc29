//! A playbook with a role, run by the host's Ansible: the example of a cluster's nodes, on a first boot that drops a
//! connection.

use crate::project::{BINARY, LIMIT, Project, manifest, root_offset, unless_dropped};

const EXAMPLE: &str = include_str!("../../examples/coreos-dcos.toml");

/// Ends the first session of the login, which waits for cloud-init then.
const RUNCMD: &str =
    "runcmd:\n  - for i in $(seq 600); do pkill -u debian sshd && break; sleep 1; done\n";

/// The image is Debian's, which has a Python of its own and another login; its initramfs stays as it is, for
/// minutes' sake.
fn profile() -> String {
    [
        ("\"/opt/pypy/bin/pypy3\"", "\"/usr/bin/python3\""),
        ("[ -x /opt/pypy/bin/pypy3 ]", "[ -x /usr/bin/python3 ]"),
        ("user        = \"core\"", "user = \"debian\"\ntimeout = \"10m\""),
        ("eth0_names = true", "eth0_names = false"),
    ]
    .iter()
    .fold(EXAMPLE.to_string(), |profile, (ours, debian)| {
        assert!(profile.contains(ours), "{ours}");
        profile.replace(ours, debian)
    })
    .replace("ssh_authorized_keys:", &format!("{RUNCMD}ssh_authorized_keys:"))
}

#[test]
#[ignore = "bakes a full Debian with Ansible, a dozen minutes in the rig; `make guest-long` runs it"]
fn the_example_of_a_cluster_s_nodes_runs_its_role_with_sudo() {
    let project = Project::with_profile("nodes", &profile());
    project.shell("mkdir -p dcos/roles/node/tasks; ssh-keygen -q -t ed25519 -N '' -f key");
    project.write("dcos/site.yml", include_str!("../../examples/dcos/site.yml"));
    let role = include_str!("../../examples/dcos/roles/node/tasks/main.yml");
    project.write("dcos/roles/node/tasks/main.yml", role);
    let line = format!(
        "export IMAGE_PATH=/images/debian-12.qcow2 IMAGE_NAME=dcos-master BUILD_TYPE=master \
         SSH_PRIVATE_KEY=key SSH_PUBLIC_KEY=\"$(cat key.pub)\"; exec {BINARY} run --no-cache p.toml"
    );
    let command = || project.rig.command(line.clone()).folder(&project.folder).timeout(LIMIT);
    let output = unless_dropped(|| command().run().unwrap()).expect(0);
    for said in ["the connection was lost; logging in again", "changed=2"] {
        assert!(output.stderr.contains(said), "{said}: {}", output.stderr);
    }
    let folder = project.finished();
    let steps = &manifest(&project, &folder)["steps"];
    assert_eq!(steps.as_array().map(Vec::len), Some(3), "{steps}");
    // Not Ansible, not the guest: the image's own file system says what the role has left.
    let image = format!("{folder}/dcos-master");
    project.judge(&format!("qemu-img convert -O raw {image}.vmdk judged.raw"));
    project.judge(&format!("qemu-img compare {image}.qcow2 judged.raw"));
    let offset = root_offset(&project.judge("sfdisk -d judged.raw"));
    project.judge(&format!(
        "loop=$(losetup -r -f --show -o {offset} judged.raw); e2fsck -fn $loop; \
         debugfs -R 'cat /var/lib/dcos/role' $loop | grep -x master; \
         debugfs -R 'stat /opt/mesosphere' $loop | grep -E 'Type: directory +Mode: +0755'; \
         debugfs -R 'stat /opt/mesosphere' $loop | grep -E 'User: +0 +Group: +0'; \
         debugfs -R 'stat /etc/systemd/system/docker.service' $loop | grep /dev/null; losetup -d $loop"
    ));
}
