//! The profile that a template becomes, while its tables fill.

use std::fmt::Write;

use super::settings::Settings;
use super::template::Variable;
use super::text::{quoted, scalar, translated};
use crate::profile::units::{parse_duration, parse_size};

/// The profile in the making: lines of TOML by their tables.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) variables: Vec<Variable>,
    pub(super) notes: Vec<String>,
    pub(super) image: Vec<String>,
    pub(super) machine: Vec<String>,
    pub(super) seed: Vec<String>,
    pub(super) ssh: Vec<String>,
    pub(super) net: Vec<String>,
    pub(super) forwards: Vec<String>,
    pub(super) steps: Vec<String>,
    pub(super) outputs: Vec<String>,
}

impl Draft {
    pub(super) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// A template's text as the profile's.
    pub(super) fn translated(&mut self, text: &str) -> String {
        let mut notes = Vec::new();
        let translated = translated(text, &mut |note| notes.push(note));
        notes.into_iter().for_each(|note| self.note(note));
        translated
    }

    /// A template's text as a TOML string.
    pub(super) fn string(&mut self, text: &str) -> String {
        quoted(&self.translated(text))
    }

    pub(super) fn strings(&mut self, texts: &[String]) -> String {
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
    pub(super) fn table(&mut self, entries: &[(String, String)]) -> String {
        let entries: Vec<String> = entries
            .iter()
            .map(|(name, text)| format!("{} = {}", quoted(name), self.string(text)))
            .collect();
        format!("{{ {} }}", entries.join(", "))
    }

    /// What a text comes to when every variable has its default, for a look at its form.
    pub(super) fn resolved(&self, text: &str) -> String {
        let mut resolved = text.to_string();
        for variable in &self.variables {
            let reference = format!("{{{{ {} }}}}", variable.name);
            let default = variable.default.as_deref().unwrap_or_default();
            resolved = resolved.replace(&reference, default);
        }
        resolved
    }

    /// A number of mebibytes, or a size with its unit.
    pub(super) fn size(&mut self, text: &str) -> Option<String> {
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

    pub(super) fn duration(&mut self, key: &str, text: &str) -> Option<String> {
        let text = self.translated(text);
        if parse_duration(&self.resolved(&text)).is_err() {
            self.note(format!("`{key} = {text}`"));
            return None;
        }
        Some(quoted(&text))
    }

    pub(super) fn leftovers(&mut self, settings: &Settings) {
        for (key, value) in &settings.left {
            let value = scalar(value).unwrap_or_else(|| value.to_string());
            let cut: String = value.chars().take(60).collect();
            let dots = if cut.len() < value.len() { "…" } else { "" };
            self.note(format!("`{key}` of {}: {cut}{dots}", settings.of));
        }
    }

    /// Takes the defaults of secrets away: a profile holds none.
    pub(super) fn secrets(&mut self) {
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

    pub(super) fn finish(mut self) -> (String, Vec<String>) {
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
