//! Steps that move files between the host and the guest, and that run on the host.

use crate::project::{LIGHT, Project, manifest};

/// The unprivileged login has sudo, at first without a password; root's home is not its to read.
const STEPS: &str = r#"
[vars]
port = 8080
token = { secret = true, file = "token" }
password = { secret = true, file = "password" }

[[step]]
upload = [
  { source = "app/", to = "/opt/app", sudo = true, owner = "root:debian", mode = "0640" },
  { source = "app/*.sh", to = "bin/", mode = "0755" },
  { source = "app.conf.in", to = "/etc/app.conf", sudo = true, template = true },
]

[[step]]
shell = [
  "test \"$(stat -c '%U:%G %a' /opt/app/data/numbers)\" = 'root:debian 640'",
  "test \"$(readlink /opt/app/current)\" = data/numbers",
  "seq 200000 | cmp - /opt/app/data/numbers",
  "./bin/hello.sh",
  "sudo grep -qx 'port = 8080' /etc/app.conf",
  "sudo grep -qx 'token = hunter2-hunter2' /etc/app.conf",
  "test \"$(ls /opt/app/many | wc -l)\" = 500",
  "test -z \"$(find / -xdev -name '.kvmbake-*' 2>/dev/null)\"",
  "echo private | sudo tee /root/report >/dev/null && sudo chmod 600 /root/report",
]

[[step]]
download = [
  { source = "/opt/app", to = "taken/" },
  { source = "/root/report", to = "report.txt", sudo = true },
]

[[step]]
host = { inline = [
  "ssh -F $KVMBAKE_SSH_CONFIG guest cat /opt/app/data/numbers | tail -n 1",
  "printf 'host wrote this' | ssh -F $KVMBAKE_SSH_CONFIG guest 'cat > from-host'",
], timeout = "3m" }

[[step]]
shell = "grep -x 'host wrote this' from-host"

[[step]]
shell = { sudo = true, inline = [
  "echo 'debian:{{ password }}' | chpasswd",
  "rm -f /etc/sudoers.d/*",
  "echo 'debian ALL=(ALL) PASSWD: ALL' > /etc/sudoers.d/asks",
] }

[[step]]
shell = "! sudo -n true"

[[step]]
upload = { source = "app/hello.sh", to = "/root/hello", sudo = true, mode = "0700" }

[[step]]
shell = { sudo = true, inline = "/root/hello && echo by $(id -un)" }

[[step]]
shell = { user = "nobody", inline = "echo by $(id -un)" }

[[output]]
format = "qcow2"
"#;

#[test]
fn files_go_both_ways_and_the_host_logs_in() {
    let login = "user = \"debian\"";
    let head = LIGHT.replace(login, &format!("{login}\nsudo_password = \"{{{{ password }}}}\""));
    let project = Project::with_profile("steps", &format!("{head}{STEPS}"));
    project.judge(
        "mkdir -p app/data app/many && seq 200000 > app/data/numbers && ln -s data/numbers app/current && \
         for i in $(seq 500); do echo $i > app/many/$i; done && \
         printf '#!/bin/sh\necho hello from the host\n' > app/hello.sh && \
         printf 'port = {{ port }}\ntoken = {{ token }}\n' > app.conf.in && \
         echo hunter2-hunter2 > token && echo 'hunter2 rides again' > password && chown -R builder:builder .",
    );
    let output = project.warm("run p.toml").expect(0);
    for line in
        ["| hello from the host", "| 200000", "| host wrote this", "| by root", "| by nobody"]
    {
        assert!(output.stderr.contains(line), "{line}: {}", output.stderr);
    }
    assert!(!output.stderr.contains("hunter2"), "{}", output.stderr);
    let folder = project.finished();
    assert_eq!(manifest(&project, &folder)["steps"].as_array().map(Vec::len), Some(10));
    project.judge(&format!(
        "cd {folder}; cmp taken/app/data/numbers ../../app/data/numbers; test \"$(ls taken/app/many | wc -l)\" = 500; \
         test \"$(readlink taken/app/current)\" = data/numbers; grep -qx private report.txt; \
         ! grep -r hunter2 --include='*.json' --include='*.log' ."
    ));
}
