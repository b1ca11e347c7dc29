//! A template's parts as the keys of a profile.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::template::{Part, Template, Variable};
use super::text::{quoted, scalar, translated};
use crate::checksum::Checksum;
use crate::profile::schema;
use crate::profile::units::{parse_duration, parse_size};

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

/// Returns the profile, and what has no counterpart in it.
///
/// # Errors
/// The template has no QEMU builder.
pub fn profile(template: Template) -> Result<(String, Vec<String>), String> {
    let Template { variables, builders, provisioners, post_processors, notes } = template;
    let mut draft = Draft { variables, notes, ..Draft::default() };
    let (mut qemu, others): (Vec<Part>, Vec<Part>) =
        builders.into_iter().partition(|builder| builder.kind == "qemu");
    if qemu.is_empty() {
        return Err("It has no QEMU builder (`type` qemu, or `source \"qemu\"`)".into());
    }
    for other in others {
        draft.note(format!("The builder `{}`", other.kind));
    }
    if qemu.len() > 1 {
        draft.note(format!("{} more QEMU builders; this is the first", qemu.len() - 1));
    }
    draft.builder(Settings::of("qemu", qemu.remove(0)));
    for part in provisioners {
        draft.provisioner(part);
    }
    for part in post_processors {
        draft.post_processor(part);
    }
    draft.secrets();
    Ok(draft.finish())
}

/// Settings, each taken when it is understood; what is left has no counterpart.
struct Settings {
    of: String,
    left: Map<String, Value>,
}

impl Settings {
    fn of(name: &str, part: Part) -> Settings {
        let mut left = part.settings;
        left.retain(|_, value| !value.is_null());
        Settings { of: name.into(), left }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let text = self.take(key).as_ref().and_then(scalar)?;
        Some(text).filter(|text| !text.is_empty())
    }

    fn is(&mut self, key: &str) -> bool {
        self.text(key).is_some_and(|text| text == "true")
    }

    /// A list of texts, or one.
    fn texts(&mut self, key: &str) -> Vec<String> {
        match self.take(key) {
            Some(Value::Array(items)) => items.iter().filter_map(scalar).collect(),
            Some(one) => scalar(&one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn table(&mut self, key: &str) -> Vec<(String, String)> {
        let Some(Value::Object(table)) = self.take(key) else { return Vec::new() };
        table.iter().filter_map(|(name, value)| Some((name.clone(), scalar(value)?))).collect()
    }
}

/// The profile in the making: lines of TOML by their tables.
#[derive(Default)]
struct Draft {
    variables: Vec<Variable>,
    notes: Vec<String>,
    image: Vec<String>,
    machine: Vec<String>,
    seed: Vec<String>,
    ssh: Vec<String>,
    net: Vec<String>,
    forwards: Vec<String>,
    steps: Vec<String>,
    outputs: Vec<String>,
}

impl Draft {
    fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// A template's text as the profile's.
    fn translated(&mut self, text: &str) -> String {
        let mut notes = Vec::new();
        let translated = translated(text, &mut |note| notes.push(note));
        notes.into_iter().for_each(|note| self.note(note));
        translated
    }

    /// A template's text as a TOML string.
    fn string(&mut self, text: &str) -> String {
        quoted(&self.translated(text))
    }

    fn strings(&mut self, texts: &[String]) -> String {
        let texts: Vec<String> = texts.iter().map(|text| self.string(text)).collect();
        match texts.as_slice() {
            [one] => one.clone(),
            many if many.iter().map(String::len).sum::<usize>() < 70 => {
                format!("[{}]", many.join(", "))
            }
            many => format!("[\n    {},\n]", many.join(",\n    ")),
        }
    }

    /// A table of texts on one line, or with a line for each where a text has several.
    fn table(&mut self, entries: &[(String, String)]) -> String {
        let entries: Vec<String> = entries
            .iter()
            .map(|(name, text)| format!("{} = {}", quoted(name), self.string(text)))
            .collect();
        format!("{{ {} }}", entries.join(", "))
    }

    /// What a text comes to when every variable has its default, for a look at its form.
    fn resolved(&self, text: &str) -> String {
        let mut resolved = text.to_string();
        for variable in &self.variables {
            let reference = format!("{{{{ {} }}}}", variable.name);
            let default = variable.default.as_deref().unwrap_or_default();
            resolved = resolved.replace(&reference, default);
        }
        resolved
    }

    /// A number of mebibytes, or a size with its unit.
    fn size(&mut self, text: &str) -> Option<String> {
        let text = self.translated(text);
        let resolved = self.resolved(&text);
        let with_unit =
            if resolved.chars().all(|c| c.is_ascii_digit()) { format!("{text}M") } else { text };
        let resolved = self.resolved(&with_unit);
        if parse_size(&resolved).is_err() && !with_unit.contains("{{") {
            self.note(format!("The size `{resolved}`"));
            return None;
        }
        Some(quoted(&with_unit))
    }

    fn duration(&mut self, key: &str, text: &str) -> Option<String> {
        let text = self.translated(text);
        if parse_duration(&self.resolved(&text)).is_err() {
            self.note(format!("`{key} = {text}`"));
            return None;
        }
        Some(quoted(&text))
    }

    fn leftovers(&mut self, settings: &Settings) {
        for (key, value) in &settings.left {
            let value = scalar(value).unwrap_or_else(|| value.to_string());
            let cut: String = value.chars().take(60).collect();
            let dots = if cut.len() < value.len() { "…" } else { "" };
            self.note(format!("`{key}` of {}: {cut}{dots}", settings.of));
        }
    }

    fn builder(&mut self, mut qemu: Settings) {
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

    fn provisioner(&mut self, part: Part) {
        let kind = part.kind.clone();
        let mut settings = Settings::of(&format!("the `{kind}` provisioner"), part);
        let pause = settings.text("pause_before");
        if let Some(pause) = pause.filter(|pause| parse_duration(pause).is_ok()) {
            let seconds = parse_duration(&pause).map_or(0, |pause| pause.as_secs());
            self.step("shell", &format!("shell = \"sleep {seconds}\""));
        }
        for key in ["only", "except", "override"] {
            if settings.take(key).is_some() {
                self.note(format!(
                    "`{key}` of {}: steps have `only`, `except` and `when`",
                    settings.of
                ));
            }
        }
        match kind.as_str() {
            "shell" => self.shell(&mut settings),
            "shell-local" => self.host(&mut settings),
            "file" => self.file(&mut settings),
            "ansible" | "ansible-local" => self.ansible(&kind, &mut settings),
            "breakpoint" => {
                let text = settings.text("note").unwrap_or_else(|| "stop here".into());
                settings.take("disable");
                let text = self.string(&text);
                self.step("breakpoint", &format!("breakpoint = {text}"));
            }
            other => {
                self.note(format!("The `{other}` provisioner"));
                return;
            }
        }
        self.leftovers(&settings);
    }

    /// Adds a step that does `key`; where this program has no such step, as a comment.
    fn step(&mut self, key: &str, lines: &str) {
        if schema::has_key("[[step]]", key) {
            self.steps.push(format!("[[step]]\n{lines}"));
            return;
        }
        self.note(format!("A step of `{key}`, which kvmbake does not have yet"));
        let lines: Vec<String> = lines.lines().map(|line| format!("# {line}")).collect();
        self.steps.push(format!("# [[step]]\n{}", lines.join("\n")));
    }

    /// `environment_vars`, a list of `NAME=VALUE`, and `env`, a table.
    fn env(&mut self, settings: &mut Settings) -> Vec<(String, String)> {
        let mut env = Vec::new();
        for pair in settings.texts("environment_vars") {
            match pair.split_once('=') {
                Some((name, value)) => env.push((name.to_string(), value.to_string())),
                None => self.note(format!("`{pair}` in `environment_vars`")),
            }
        }
        env.extend(settings.table("env"));
        env
    }

    fn shell(&mut self, settings: &mut Settings) {
        let inline = settings.texts("inline");
        let mut scripts = settings.texts("script");
        scripts.extend(settings.texts("scripts"));
        let mut entries = Vec::new();
        let run = if inline.is_empty() { self.strings(&scripts) } else { self.strings(&inline) };
        let key = match (inline.is_empty(), scripts.len()) {
            (false, _) => "inline",
            (true, 1) => "script",
            (true, _) => "scripts",
        };
        if inline.is_empty() && scripts.is_empty() {
            self.note("A `shell` provisioner that runs nothing".into());
            return;
        }
        entries.push(format!("{key} = {run}"));
        let env = self.env(settings);
        if !env.is_empty() {
            let env = self.table(&env);
            entries.push(format!("env = {env}"));
        }
        if let Some(command) = settings.text("execute_command") {
            if command.contains("sudo") {
                entries.push("sudo = true".into());
            }
            if command.contains("sudo -S") || command.contains("sudo -k") {
                self.note(
                    "A password for sudo in `execute_command`: give it as `sudo_password` of [ssh]"
                        .into(),
                );
            }
        }
        if let Some(shebang) = settings.text("inline_shebang") {
            let program = shebang.trim_start_matches("#!").split_whitespace().next().unwrap_or("");
            if program != "/bin/sh" && !program.is_empty() && key == "inline" {
                entries.push(format!("shell = {}", quoted(program)));
            }
        }
        let codes: Vec<String> = settings.texts("valid_exit_codes");
        if !codes.is_empty() && codes.iter().all(|code| code.parse::<u8>().is_ok()) {
            entries.push(format!("expect = [{}]", codes.join(", ")));
        }
        if let Some(timeout) = settings.text("timeout").and_then(|t| self.duration("timeout", &t)) {
            entries.push(format!("timeout = {timeout}"));
        }
        if let Some(retries) = settings.text("max_retries").filter(|n| n.parse::<u8>().is_ok()) {
            entries.push(format!("retries = {retries}"));
        }
        // A step may always reboot the guest, and where a script lies meanwhile is no matter.
        for key in [
            "expect_disconnect",
            "skip_clean",
            "remote_folder",
            "remote_file",
            "remote_path",
            "start_retry_timeout",
            "binary",
            "pause_after",
            "use_env_var_file",
            "env_var_format",
        ] {
            settings.take(key);
        }
        let lines = match entries.as_slice() {
            [only] if key == "inline" => {
                format!("shell = {}", only.trim_start_matches("inline = "))
            }
            entries => {
                let entries: Vec<String> =
                    entries.iter().map(|entry| format!("shell.{entry}")).collect();
                entries.join("\n")
            }
        };
        self.step("shell", &lines);
    }

    fn host(&mut self, settings: &mut Settings) {
        let mut commands = settings.texts("command");
        commands.extend(settings.texts("inline"));
        let mut scripts = settings.texts("script");
        scripts.extend(settings.texts("scripts"));
        commands.extend(scripts.iter().map(|script| format!("./{script}")));
        if commands.is_empty() {
            return;
        }
        let env = self.env(settings);
        let commands = self.strings(&commands);
        settings.take("execute_command");
        if env.is_empty() {
            self.step("host", &format!("host = {commands}"));
        } else {
            let env = self.table(&env);
            self.step("host", &format!("host.inline = {commands}\nhost.env = {env}"));
        }
    }

    fn file(&mut self, settings: &mut Settings) {
        let key = match settings.text("direction").as_deref() {
            Some("download") => "download",
            _ => "upload",
        };
        settings.take("generated");
        let mut sources = settings.texts("source");
        sources.extend(settings.texts("sources"));
        let to = settings.text("destination").unwrap_or_default();
        if sources.is_empty() {
            self.note("A `file` provisioner with `content`".into());
            return;
        }
        for source in sources {
            let (source, to) = (self.string(&source), self.string(&to));
            self.step(key, &format!("{key} = {{ source = {source}, to = {to} }}"));
        }
    }

    fn ansible(&mut self, kind: &str, settings: &mut Settings) {
        let key = if kind == "ansible" { "ansible" } else { "ansible_local" };
        let mut playbooks = settings.texts("playbook_file");
        playbooks.extend(settings.texts("playbook_files"));
        let mut entries = Vec::new();
        for (theirs, ours) in [("extra_arguments", "extra_args"), ("groups", "groups")] {
            let texts = settings.texts(theirs);
            if !texts.is_empty() {
                let texts = self.strings(&texts);
                entries.push(format!("{ours} = {texts}"));
            }
        }
        for (theirs, ours) in [("galaxy_file", "galaxy"), ("host_alias", "host_name")] {
            if let Some(text) = settings.text(theirs) {
                let text = self.string(&text);
                entries.push(format!("{ours} = {text}"));
            }
        }
        let env = settings.texts("ansible_env_vars");
        let env: Vec<(String, String)> = env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        if !env.is_empty() && key == "ansible" {
            let env = self.table(&env);
            entries.push(format!("env = {env}"));
        }
        // Its own way to reach the guest, and where files lie in the guest meanwhile.
        for needless in [
            "user",
            "use_proxy",
            "local_port",
            "ssh_host_key_file",
            "staging_directory",
            "use_sftp",
            "command",
        ] {
            settings.take(needless);
        }
        for playbook in playbooks {
            let playbook = self.string(&playbook);
            let mut lines = format!("{key}.playbook = {playbook}");
            entries.iter().for_each(|entry| {
                let _ = write!(lines, "\n{key}.{entry}");
            });
            self.step(key, &lines);
        }
    }

    fn post_processor(&mut self, part: Part) {
        let kind = part.kind.clone();
        let mut settings = Settings::of(&format!("the `{kind}` post-processor"), part);
        settings.take("keep_input_artifact");
        match kind.as_str() {
            // Every build has SHA512SUM.txt, MD5SUM.txt and manifest.json.
            "checksum" | "manifest" => return,
            "compress" => {
                let output = settings.text("output").unwrap_or_default();
                if output.ends_with(".gz") && !output.ends_with(".tar.gz") {
                    self.outputs.push("format = \"raw\"\noptions = { compression = \"gzip\" }".into());
                } else {
                    self.note(format!("`compress` to `{output}`: outputs have `compress = true`, raw ones `options.compression`"));
                }
                return;
            }
            "shell-local" => self.note(
                "A `shell-local` post-processor: run it after `kvmbake run`, whose last line names the folder"
                    .into(),
            ),
            _ => self.note(format!("The `{kind}` post-processor")),
        }
        settings.left.clear();
    }

    /// Takes the defaults of secrets away: a profile holds none.
    fn secrets(&mut self) {
        for index in 0..self.variables.len() {
            let variable = &mut self.variables[index];
            if variable.secret && variable.default.take().is_some() {
                let name = variable.name.clone();
                self.note(format!("The default of the secret `{name}`: secrets come from the environment, a file or --var-file"));
            }
        }
    }

    fn variables(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for variable in std::mem::take(&mut self.variables) {
            let Variable { name, default, env, secret, description } = variable;
            if name.contains('.') || !crate::profile::is_variable_name(&name) {
                self.note(format!("The variable `{name}`: its name"));
                continue;
            }
            let default = default.map(|text| self.string(&text));
            let mut entries = Vec::new();
            if secret {
                entries.push("secret = true".to_string());
            }
            if let Some(env) = env.or_else(|| secret.then(|| name.to_uppercase())) {
                entries.push(format!("env = {}", quoted(&env)));
            }
            if let Some(description) = description {
                entries.push(format!("description = {}", quoted(&description)));
            }
            match default {
                Some(default) if entries.is_empty() => lines.push(format!("{name} = {default}")),
                default => {
                    entries.extend(default.map(|default| format!("default = {default}")));
                    lines.push(format!("{name} = {{ {} }}", entries.join(", ")));
                }
            }
        }
        lines
    }

    fn finish(mut self) -> (String, Vec<String>) {
        let variables = self.variables();
        let mut text = String::new();
        let sections = [
            ("vars", &variables),
            ("image", &self.image),
            ("machine", &self.machine),
            ("seed", &self.seed),
            ("ssh", &self.ssh),
            ("net", &self.net),
        ];
        for (name, lines) in sections.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            let _ = write!(text, "\n[{name}]\n{}\n", lines.join("\n"));
        }
        for forward in &self.forwards {
            let _ = write!(text, "\n[[net.forward]]\n{forward}\n");
        }
        for step in &self.steps {
            let _ = write!(text, "\n{step}\n");
        }
        for output in &self.outputs {
            let _ = write!(text, "\n[[output]]\n{output}\n");
        }
        (text, self.notes)
    }
}
