//! Texts of templates: what stands in `{{ … }}` there, and in `${…}` of HCL, becomes a variable of the
//! profile where there is one for it.

use serde_json::Value;

/// What an interpolation of HCL is read as: a name between characters that no template has.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';

/// Returns the form in which [`translated`] knows a reference to one of the profile's variables.
pub fn reference(name: &str) -> String {
    format!("{OPEN}{name}{CLOSE}")
}

/// Returns a text, a number or a boolean as text.
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Returns the name of the variable of the environment that is all of `text`.
pub fn only_env(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    argument(inner, "env").map(str::to_string)
}

/// Returns `text` as a profile has it; what is left of a template's own language stands for itself, and
/// `note` hears of it.
pub fn translated(text: &str, note: &mut dyn FnMut(String)) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        let Some(end) = rest[at..].find("}}") else { break };
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..at + end];
        match counterpart(inner) {
            Some(known) => out.push_str(&known),
            None => {
                note(format!("`{{{{{inner}}}}}` in a text stays as it is"));
                out.push_str(&format!("{{{{{{{{{inner}}}}}"));
            }
        }
        rest = &rest[at + end + 2..];
    }
    out.push_str(&rest.replace("{{", "{{{{"));
    out.replace(OPEN, "{{ ").replace(CLOSE, " }}")
}

/// What the inside of `{{ … }}` is in a profile.
fn counterpart(inner: &str) -> Option<String> {
    if let Some(name) = argument(inner, "user") {
        return Some(reference(name));
    }
    if let Some(name) = argument(inner, "env") {
        return Some(reference(&format!("env.{name}")));
    }
    match inner.trim() {
        "template_dir" | "pwd" => Some(reference("build.dir")),
        "build_name" | ".BuildName" | ".Name" => Some(reference("build.name")),
        "isotime" => Some(reference("build.time")),
        // Where `[net] serve` is.
        ".HTTPIP" => Some("10.0.2.100".into()),
        ".HTTPPort" => Some("80".into()),
        _ => None,
    }
}

/// Returns the argument of a call such as ``user `name` ``.
fn argument<'t>(inner: &'t str, function: &str) -> Option<&'t str> {
    let argument = inner.trim().trim_start_matches('-').trim().strip_prefix(function)?.trim();
    let quoted = |quote: char| argument.strip_prefix(quote)?.strip_suffix(quote);
    quoted('`').or_else(|| quoted('"')).filter(|name| crate::profile::is_variable_name(name))
}

/// Returns `text` as a TOML string, on one line where that reads well.
pub fn quoted(text: &str) -> String {
    let body = text.strip_suffix('\n').unwrap_or(text);
    if body.contains('\n') && !text.contains("'''") && !text.contains(['\r', '\0']) {
        return format!("'''\n{text}'''");
    }
    toml::Value::String(text.into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_profile_has_too_becomes_a_variable_and_the_rest_stands_for_itself() {
        let mut notes = Vec::new();
        let mut of = |text: &str| translated(text, &mut |note| notes.push(note));
        assert_eq!(of("{{user `a_b`}}-{{ env \"HOME\" }}"), "{{ a_b }}-{{ env.HOME }}");
        assert_eq!(of("http://{{ .HTTPIP }}:{{.HTTPPort}}/x"), "http://10.0.2.100:80/x");
        assert_eq!(of(&format!("{}/x", reference("build.dir"))), "{{ build.dir }}/x");
        assert_eq!(of("{{ .Vars }} {{ Path"), "{{{{ .Vars }} {{{{ Path");
        assert_eq!(notes, ["`{{ .Vars }}` in a text stays as it is"]);
        assert_eq!(only_env("{{ env `X` }}").as_deref(), Some("X"));
        assert_eq!(only_env("a{{ env `X` }}"), None);
    }

    #[test]
    fn texts_are_quoted_so_that_toml_reads_them_back() {
        for text in ["a", "a\"b\\", "two\nlines\n", "'''\n", "a\nb'", "\r\n", "ctrl\u{1}"] {
            let table: toml::Table = format!("a = {}", quoted(text)).parse().unwrap();
            assert_eq!(table["a"].as_str(), Some(text));
        }
    }
}
