//! Templates in the shapes that public projects have, and what becomes of them.

use std::path::Path;

use kvmbake_provision::Privilege;
use serde_json::json;

use super::*;
use crate::profile::{BaseSource, Expected, Given, Profile, Run, SeedKind, Source, Text, schema};

/// A profile made of a template, which must be a sound one.
#[track_caller]
fn imported(name: &str, text: &str) -> (Profile, String, Vec<String>) {
    let Imported { profile: text, notes } = import(Path::new(name), text).unwrap();
    for note in &notes {
        assert!(text.contains(&format!("# - {note}\n")), "{note}\n{text}");
    }
    let mut given = Given::default();
    given.environment = |name| Some(format!("value-of-{name}"));
    let profile = Profile::parse_with(Source::new("/p/made.toml", text.clone()), &given);
    (profile.unwrap_or_else(|faults| panic!("{faults:#?}\n{text}")), text, notes)
}

#[track_caller]
fn noted(notes: &[String], part: &str) {
    assert!(notes.iter().any(|note| note.contains(part)), "{part} is not in {notes:#?}");
}

/// Whether a step of this kind is one: its lines are there, as a step or as a comment.
#[track_caller]
fn has_step(text: &str, key: &str, line: &str) {
    let comment = if schema::has_key("[[step]]", key) { "" } else { "# " };
    let expected = format!("{comment}[[step]]\n{comment}{line}");
    assert!(text.contains(&expected), "{expected}\nis not in\n{text}");
}

/// A cluster's nodes: everything from the environment, a config drive, playbooks of the host.
#[test]
fn a_template_of_a_cluster_s_nodes_by_environment_and_ansible() {
    let template = json!({
        "variables": {
            "image_path": "{{env `IMAGE_PATH`}}",
            "image_name": "{{env `IMAGE_NAME`}}",
            "private_key": "{{env `SSH_PRIVATE_KEY`}}",
            "build_type": "agent",
            "proxy": "",
            "token": "hush"
        },
        "sensitive-variables": ["token"],
        "builders": [{
            "type": "qemu", "accelerator": "kvm", "headless": true, "disk_image": true,
            "iso_url": "{{user `image_path`}}",
            "iso_checksum": "0123456789abcdef0123456789abcdef", "iso_checksum_type": "md5",
            "vm_name": "{{user `image_name`}}.qcow2", "output_directory": "out/{{user `build_type`}}",
            "disk_size": "12000M", "format": "qcow2", "disk_compression": true,
            "ssh_username": "core", "ssh_private_key_file": "{{user `private_key`}}",
            "ssh_wait_timeout": "20m", "shutdown_command": "sudo poweroff",
            "floppy_files": ["openstack/user_data"], "floppy_label": "config-2",
            "qemuargs": [["-m", "2048M"]]
        }],
        "provisioners": [
            { "type": "shell", "inline": ["sudo mkdir -p /opt/bin", "uname -a"] },
            { "type": "shell", "script": "scripts/python.sh",
              "execute_command": "{{ .Vars }} sudo -E bash '{{ .Path }}'",
              "environment_vars": ["HTTP_PROXY={{user `proxy`}}", "A=b=c"],
              "expect_disconnect": true, "max_retries": 3, "timeout": "10m",
              "valid_exit_codes": [0, 3], "pause_before": "10s" },
            { "type": "ansible", "playbook_file": "site.yml", "groups": ["agents"],
              "extra_arguments": ["-e", "type={{user `build_type`}}"] },
            { "type": "windows-restart" }
        ],
        "post-processors": [["checksum", { "type": "manifest", "output": "m.json" }]]
    });
    let (profile, text, notes) = imported("packer.json", &template.to_string());
    assert_eq!(profile.image.name, "value-of-IMAGE_NAME");
    assert_eq!(profile.image.source.value.to_string(), "/p/value-of-IMAGE_PATH");
    let Some(Expected::Checksum(checksum)) = profile.image.checksum.map(|at| at.value) else {
        panic!("no checksum")
    };
    assert_eq!(checksum.to_string(), "md5:0123456789abcdef0123456789abcdef");
    assert_eq!(profile.image.size.unwrap().value, 12_000 << 20);
    assert_eq!((profile.ssh.user.as_str(), profile.ssh.timeout.as_secs()), ("core", 1200));
    assert_eq!(profile.ssh.private_key.unwrap().value, Path::new("/p/value-of-SSH_PRIVATE_KEY"));
    assert_eq!(profile.seed.kind, SeedKind::Files);
    assert_eq!(profile.seed.label, "config-2");
    let step = profile.steps.iter().find(|step| step.title == "python.sh").unwrap();
    let shell = step.shell();
    assert!(shell.privilege == Privilege::Root && shell.has_scripts());
    let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
    assert_eq!(shell.env, [pair("A", "b=c"), pair("HTTP_PROXY", "")]);
    assert_eq!((shell.retries, shell.expect.as_slice()), (3, &[0, 3][..]));
    assert_eq!(profile.steps[1].title, "sleep 10");
    assert_eq!(profile.outputs.len(), 1);
    assert!(text.contains("compress = true") && !text.contains("hush"), "{text}");
    has_step(&text, "ansible", "ansible.playbook = \"site.yml\"");
    assert!(text.contains("ansible.extra_args = [\"-e\", \"type={{ build_type }}\"]"), "{text}");
    for part in ["`qemuargs`", "`windows-restart`", "`-o out/{{ build_type }}`", "secret `token`"] {
        noted(&notes, part);
    }
    assert!(!notes.iter().any(|note| note.contains("headless")), "{notes:?}");
}

/// Images of one distribution in sizes, with files for cloud-init and a bootstrap over HTTP.
#[test]
fn a_template_in_hcl_with_a_cloud_init_disk_and_a_served_folder() {
    let template = r#"
packer {
  required_plugins {
    qemu = { version = ">= 1.0", source = "github.com/hashicorp/qemu" }
  }
}
variable "release" {
  type        = string
  default     = "12"
  description = "of Debian"
}
variable "disk_size" { default = 25600 }
variable "token" {
  sensitive = true
  default   = env("TOKEN")
}
locals {
  base = "https://cloud.debian.org/images/${var.release}"
}
source "qemu" "vm" {
  disk_image       = true
  iso_urls         = ["${local.base}/generic.qcow2", "https://mirror.example/${var.release}.qcow2"]
  iso_checksum     = "file:${local.base}/SHA512SUMS"
  vm_name          = "debian-${var.release}.img"
  disk_size        = var.disk_size
  memory           = 2048
  cpus             = 4
  format           = "raw"
  http_directory   = "${path.root}/http"
  cd_label         = "cidata"
  cd_content = {
    "meta-data" = ""
    "user-data" = <<-EOT
      #cloud-config
      packages: [curl]
    EOT
  }
  ssh_username     = "debian"
  ssh_timeout      = "5m"
  machine_type     = "q35"
  boot_command     = ["<wait>", "linux"]
  vtpm             = true
}
build {
  sources = ["source.qemu.vm"]
  provisioner "shell" {
    inline          = ["curl http://{{ .HTTPIP }}:{{ .HTTPPort }}/vm-bootstrap | sh", "echo ${upper(var.release)}"]
    execute_command = "sudo sh -c '{{ .Vars }} {{ .Path }}'"
    env             = { "TOKEN" = var.token, "LINE" = "a\n${var.release}" }
  }
  provisioner "file" {
    source      = "files/motd"
    destination = "/tmp/motd"
  }
  provisioner "shell-local" {
    command = "echo ${build.name}"
  }
  provisioner "breakpoint" {
    note = "look"
  }
  post-processors {
    post-processor "compress" { output = "x.gz" }
    post-processor "shell-local" { inline = ["true"] }
  }
}
"#;
    let (profile, text, notes) = imported("debian.pkr.hcl", template);
    assert_eq!(profile.image.name, "debian-12");
    let BaseSource::Urls(urls) = &profile.image.source.value else { panic!("no URLs") };
    let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let expected =
        ["https://cloud.debian.org/images/12/generic.qcow2", "https://mirror.example/12.qcow2"];
    assert_eq!(urls, expected);
    let Some(Expected::ListUrl(list)) = profile.image.checksum.map(|at| at.value) else {
        panic!("no list")
    };
    assert_eq!(list.to_string(), "https://cloud.debian.org/images/12/SHA512SUMS");
    assert_eq!(profile.image.size.unwrap().value, 25_600 << 20);
    assert_eq!((profile.machine.cpus, profile.machine.memory), (4, 2 << 30));
    assert_eq!(profile.seed.kind, SeedKind::NoCloud);
    let Some(Text::Inline(user_data)) = &profile.seed.user_data else { panic!("{text}") };
    assert_eq!(user_data, "#cloud-config\npackages: [curl]\n");
    assert!(text.contains("serve = \"{{ build.dir }}/http\""), "{text}");
    let shell = profile.steps[0].shell();
    let Run::Inline(commands) = &shell.run else { panic!("no commands") };
    assert_eq!(commands, &["curl http://10.0.2.100:80/vm-bootstrap | sh"]);
    assert_eq!(shell.privilege, Privilege::Root);
    let mut env = shell.env.clone();
    env.sort();
    let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
    assert_eq!(env, [pair("LINE", "a\n12"), pair("TOKEN", "value-of-TOKEN")]);
    has_step(&text, "upload", "upload = { source = \"files/motd\", to = \"/tmp/motd\" }");
    has_step(&text, "host", "host = \"echo {{ build.name }}\"");
    has_step(&text, "breakpoint", "breakpoint = \"look\"");
    let files: Vec<&str> = profile.outputs.iter().map(|output| output.file.as_str()).collect();
    assert_eq!(files, ["debian-12.raw", "debian-12.raw.gz"]);
    for part in ["`boot_command` (2 lines)", "upper(var.release)", "`vtpm`", "`shell-local` post"] {
        noted(&notes, part);
    }
}

/// A server from a DVD with a kickstart file: what there is today is told.
#[test]
fn a_template_of_an_installer_says_what_is_missing() {
    let template = json!({
        "variables": { "iso": "https://example.org/dvd.iso", "sum": "a".repeat(64) },
        "builders": [
            { "type": "virtualbox-iso" },
            {
                "type": "qemu", "iso_url": "{{user `iso`}}", "iso_checksum": "sha256:{{user `sum`}}",
                "boot_command": ["<tab> inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg<enter>"],
                "http_directory": "http", "ssh_username": "root", "ssh_password": "packer",
                "disk_size": 20480, "vm_name": "rhel server"
            }
        ],
        "provisioners": [{ "type": "ansible-local", "playbook_file": "local.yml" }],
        "post-processors": [{ "type": "compress", "output": "x.tar.gz" }, "vagrant"]
    });
    let (profile, text, notes) = imported("rhel.json", &template.to_string());
    assert_eq!(profile.image.name, "rhel-server");
    assert!(profile.image.checksum.is_none());
    has_step(&text, "ansible_local", "ansible_local.playbook = \"local.yml\"");
    let parts = [
        "The installer {{ iso }}",
        "`boot_command` (1 lines)",
        "`ssh_password`",
        "`virtualbox-iso`",
        "`compress` to `x.tar.gz`",
        "`vagrant`",
        "The name `rhel server`",
    ];
    parts.iter().for_each(|part| noted(&notes, part));
}

/// A small container host, for more than one hypervisor.
#[test]
fn a_template_of_a_container_host_with_several_sources() {
    let template = r#"
source "qemu" "a" {
  disk_image   = true
  iso_url      = "rancheros.img"
  iso_checksum = "none"
  cd_files     = ["cloud/user-data", "cloud/*.yml"]
  communicator = "ssh"
  ssh_username = "rancher"
}
source "vmware-iso" "b" {}
build {
  source "source.qemu.a" {
    name    = "rancheros"
    memory  = "1024"
  }
  sources = ["vmware-iso.b", "qemu.missing"]
  provisioner "shell" {
    scripts = ["a.sh", "b.sh"]
    only    = ["qemu.a"]
  }
  provisioner "file" {
    direction   = "download"
    sources     = ["/var/log/x"]
    destination = "logs/"
  }
}
"#;
    let (profile, text, notes) = imported("rancheros.pkr.hcl", template);
    assert_eq!(profile.image.name, "rancheros");
    assert_eq!(profile.machine.memory, 1 << 30);
    assert!(matches!(profile.image.checksum.map(|at| at.value), Some(Expected::Unchecked)));
    assert_eq!(profile.seed.kind, SeedKind::NoCloud);
    assert_eq!(profile.steps[0].title, "a.sh, b.sh");
    has_step(&text, "download", "download = { source = \"/var/log/x\", to = \"logs/\" }");
    for part in ["`vmware-iso`", "`qemu.missing`", "cloud/*.yml", "`only`"] {
        noted(&notes, part);
    }
}

#[test]
fn what_is_no_template_of_qemu_is_refused() {
    let refused = |name: &str, text: &str, part: &str| {
        let Err(message) = import(Path::new(name), text) else { panic!("{text} is imported") };
        assert!(message.contains(part), "{message}");
    };
    refused("a.json", "{", "no JSON");
    refused("a.json", "[]", "no JSON object");
    refused("a.json", r#"{"builders": [{"type": "amazon-ebs"}]}"#, "no QEMU builder");
    refused("a.pkr.hcl", "source \"qemu\" {", "no HCL");
    refused("a.pkr.hcl", "", "no QEMU builder");
    let deep = format!("a = {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(import(Path::new("a.pkr.hcl"), &deep).is_err());
}
