//! Provisioners as steps, and post-processors as outputs.

use std::fmt::Write;

use super::draft::Draft;
use super::settings::Settings;
use super::template::Part;
use super::text::quoted;
use crate::profile::schema;
use crate::profile::units::parse_duration;

impl Draft {
    pub(super) fn provisioner(&mut self, part: Part) {
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

    pub(super) fn post_processor(&mut self, part: Part) {
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
}
