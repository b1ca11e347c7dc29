//! A QEMU builder as `[image]`, `[machine]`, `[seed]`, `[ssh]`, `[net]` and `[[output]]`.

use std::path::Path;

use serde_json::Value;

use super::draft::Draft;
use super::settings::Settings;
use super::text::quoted;
use crate::checksum::Checksum;

/// Settings of a builder that have no counterpart and need none: they are of QEMU itself, or the default.
const NEEDLESS: [&str; 28] = [
    "accelerator",
    "headless",
    "qemu_binary",
    "machine_type",
    "net_device",
    "net_bridge",
    "disk_interface",
    "disk_cache",
    "disk_discard",
    "disk_detect_zeroes",
    "skip_compaction",
    "display",
    "use_default_display",
    "vnc_bind_address",
    "vnc_port_min",
    "vnc_port_max",
    "vnc_use_password",
    "host_port_min",
    "host_port_max",
    "ssh_host_port_min",
    "ssh_host_port_max",
    "http_port_min",
    "http_port_max",
    "http_bind_address",
    "boot_wait",
    "disk_image",
    "use_backing_file",
    "iso_skip_cache",
];

impl Draft {
    pub(super) fn builder(&mut self, mut qemu: Settings) {
        let is_disk = qemu.is("disk_image");
        for key in NEEDLESS {
            qemu.take(key);
        }
        let vm_name = qemu.text("vm_name").or_else(|| qemu.text("name"));
        let format = qemu.text("format").unwrap_or_else(|| "qcow2".into());
        let format = self.translated(&format);
        self.name(vm_name, &format);
        self.source(&mut qemu, is_disk);
        if let Some(size) = qemu.text("disk_size").and_then(|text| self.size(&text)) {
            self.image.push(format!("size = {size}"));
        }
        if let Some(cpus) = qemu.text("cpus") {
            let cpus = self.translated(&cpus);
            let cpus = if cpus.parse::<u8>().is_ok() { cpus } else { quoted(&cpus) };
            self.machine.push(format!("cpus = {cpus}"));
        }
        if let Some(memory) = qemu.text("memory").and_then(|text| self.size(&text)) {
            self.machine.push(format!("memory = {memory}"));
        }
        self.seed(&mut qemu);
        self.login(&mut qemu);
        self.http(&mut qemu);
        let compress = if qemu.is("disk_compression") { "\ncompress = true" } else { "" };
        self.outputs.push(format!("format = {}{compress}", quoted(&format)));
        if let Some(folder) = qemu.text("output_directory") {
            let folder = self.translated(&folder);
            self.note(format!(
                "`output_directory`: run with `-o {folder}`, below which each build has a folder"
            ));
        }
        if let Some(Value::Array(keys)) = qemu.take("boot_command") {
            let keys = keys.len();
            self.note(format!("`boot_command` ({keys} lines): the kernel is booted without a boot loader; words for its command line go to [boot] append"));
        }
        if qemu.take("shutdown_command").is_some() | qemu.take("shutdown_timeout").is_some() {
            self.note("`shutdown_command`: the guest is always shut down cleanly".into());
        }
        self.leftovers(&qemu);
    }

    fn name(&mut self, vm_name: Option<String>, format: &str) {
        let name = vm_name.unwrap_or_else(|| "image".into());
        let mut name = self.translated(&name);
        for extension in [format, "qcow2", "img", "raw"] {
            if let Some(stem) = name.strip_suffix(&format!(".{extension}")) {
                name = stem.to_string();
            }
        }
        let resolved = self.resolved(&name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        if !name.contains("{{")
            && (!resolved.chars().all(plain) || resolved.starts_with(['.', '-']))
        {
            let tidy: String = name.chars().map(|c| if plain(c) { c } else { '-' }).collect();
            self.note(format!("The name `{name}` holds what no file name here may"));
            name = tidy.trim_start_matches(['.', '-']).to_string();
        }
        self.image.push(format!("name = {}", quoted(&name)));
    }

    fn source(&mut self, qemu: &mut Settings, is_disk: bool) {
        let mut urls = qemu.texts("iso_url");
        urls.extend(qemu.texts("iso_urls"));
        let urls: Vec<String> =
            urls.iter().map(|url| url.strip_prefix("file://").unwrap_or(url).to_string()).collect();
        if urls.is_empty() {
            self.note("The base image: the template names none".into());
            self.image.push("source = \"base.qcow2\"".into());
        } else if is_disk {
            let urls = self.strings(&urls);
            self.image.push(format!("source = {urls}"));
        } else {
            let iso = self.translated(&urls[0]);
            self.note(format!("The installer {iso}: `source` must be a disk, e.g. the distribution's cloud image; there is no boot from an ISO yet"));
            self.image.push("source = \"base.qcow2\"    # instead of the installer".into());
        }
        let kind = qemu.text("iso_checksum_type");
        let checksum = qemu.text("iso_checksum_url").or_else(|| qemu.text("iso_checksum"));
        if !is_disk {
            return;
        }
        let checksum = match (kind.as_deref(), checksum) {
            (Some("none"), _) | (_, None) => {
                urls.iter().any(|url| url.contains("://")).then(|| "none".into())
            }
            (kind, Some(checksum)) => Some(self.checksum(kind, &checksum)),
        };
        if let Some(checksum) = checksum {
            self.image.push(format!("checksum = {}", quoted(&checksum)));
        }
    }

    fn checksum(&mut self, kind: Option<&str>, checksum: &str) -> String {
        let checksum = self.translated(checksum.strip_prefix("file:").unwrap_or(checksum));
        let resolved = self.resolved(&checksum);
        let is_bare = resolved != "none" && !resolved.contains([':', '/']);
        match kind {
            Some(kind) if is_bare => format!("{}:{checksum}", self.translated(kind)),
            _ => match Checksum::from_digits(&resolved).filter(|_| is_bare) {
                Some(known) => {
                    let known = known.to_string();
                    format!("{}:{checksum}", known.split(':').next().unwrap_or_default())
                }
                None => checksum,
            },
        }
    }

    /// CD and floppy: cloud-init's seed by its label, else plain files.
    fn seed(&mut self, qemu: &mut Settings) {
        let mut files = qemu.texts("cd_files");
        files.extend(qemu.texts("floppy_files"));
        let mut content = qemu.table("cd_content");
        content.extend(qemu.table("floppy_content"));
        let label = qemu.text("cd_label").or_else(|| qemu.text("floppy_label"));
        if qemu.take("floppy_dirs").is_some() {
            self.note("`floppy_dirs`".into());
        }
        let is_glob = |file: &&String| file.contains('*') || file.ends_with('/');
        for glob in files.iter().filter(is_glob) {
            self.note(format!("The files `{glob}` of the seed: each is to be named"));
        }
        let named: Vec<(String, String)> = files
            .iter()
            .filter(|file| !is_glob(file))
            .map(|file| {
                let name = Path::new(file).file_name().unwrap_or_default();
                (name.to_string_lossy().into_owned(), file.clone())
            })
            .chain(content)
            .map(|(name, text)| (name.trim_start_matches('/').to_string(), text))
            .collect();
        if named.is_empty() {
            return;
        }
        let is_cloud = named.iter().any(|(name, _)| name == "user-data" || name == "meta-data");
        if label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case("cidata")) || is_cloud {
            self.seed.push("kind = \"nocloud\"".into());
            for (name, text) in named {
                let key = match name.as_str() {
                    "user-data" => "user_data",
                    "vendor-data" => "vendor_data",
                    "network-config" => "network_config",
                    // The build writes its own.
                    "meta-data" if text.trim().is_empty() => continue,
                    _ => {
                        self.note(format!(
                            "`{name}` of the seed: `hostname` is what [seed] has of it"
                        ));
                        continue;
                    }
                };
                let text = self.string(&text);
                self.seed.push(format!("{key} = {text}"));
            }
            return;
        }
        self.seed.push("kind = \"files\"".into());
        if let Some(label) = label {
            let label = self.string(&label);
            self.seed.push(format!("label = {label}"));
        }
        let files = self.table(&named);
        self.seed.push(format!("files = {files}"));
        self.note("A seed of plain files brings no key: [ssh] private_key names one that the guest lets in".into());
    }

    fn login(&mut self, qemu: &mut Settings) {
        match qemu.text("communicator").as_deref() {
            None | Some("ssh") => {}
            Some(other) => {
                self.note(format!("The communicator `{other}`: guests are reached over SSH"))
            }
        }
        if let Some(user) = qemu.text("ssh_username") {
            let user = self.string(&user);
            self.ssh.push(format!("user = {user}"));
        }
        if let Some(key) = qemu.text("ssh_private_key_file") {
            let key = self.string(&key);
            self.ssh.push(format!("private_key = {key}"));
        }
        let timeout = qemu.text("ssh_timeout").or_else(|| qemu.text("ssh_wait_timeout"));
        qemu.take("ssh_wait_timeout");
        if let Some(timeout) = timeout.and_then(|text| self.duration("ssh_timeout", &text)) {
            self.ssh.push(format!("timeout = {timeout}"));
        }
        if qemu.take("ssh_password").is_some() {
            self.note("`ssh_password`: the build logs in with a key, which cloud-init brings into the guest, or with [ssh] private_key".into());
        }
    }

    fn http(&mut self, qemu: &mut Settings) {
        if let Some(folder) = qemu.text("http_directory") {
            let folder = self.string(&folder);
            self.net.push(format!("serve = {folder}    # at http://10.0.2.100/"));
        }
        let content = qemu.table("http_content");
        if !content.is_empty() {
            let content = self.table(&content);
            self.forwards.push(format!("at = \"10.0.2.100:80\"\ncontent = {content}"));
        }
    }
}
