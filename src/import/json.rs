//! Templates in JSON, Packer's older form.

use serde_json::{Map, Value};

use super::template::{Part, Template, Variable};
use super::text;

/// Reads a template.
///
/// # Errors
/// A sentence: it is no JSON, or no template.
pub fn read(text: &str) -> Result<Template, String> {
    let root: Value =
        serde_json::from_str(text).map_err(|error| format!("It is no JSON: {error}"))?;
    let Value::Object(root) = root else { return Err("It is no template: no JSON object".into()) };
    let mut template = Template::default();
    let secrets: Vec<&str> = list(&root, "sensitive-variables").filter_map(Value::as_str).collect();
    let variables = root.get("variables").and_then(Value::as_object);
    for (name, value) in variables.into_iter().flatten() {
        // `null` is what must be given; an empty text is a value.
        let value = text::scalar(value);
        let env = value.as_deref().and_then(text::only_env);
        template.variables.push(Variable {
            name: name.clone(),
            default: value.filter(|_| env.is_none()),
            env,
            secret: secrets.contains(&name.as_str()),
            description: None,
        });
    }
    let known = ["variables", "sensitive-variables", "builders", "provisioners", "post-processors"];
    let ignored = ["description", "min_packer_version", "_comment"];
    for key in root.keys().filter(|key| !known.contains(&&***key) && !ignored.contains(&&***key)) {
        template.notes.push(format!("`{key}` of the template"));
    }
    template.builders = list(&root, "builders").filter_map(part).collect();
    template.provisioners = list(&root, "provisioners").filter_map(part).collect();
    for processor in list(&root, "post-processors") {
        match processor {
            Value::Array(sequence) => {
                template.post_processors.extend(sequence.iter().filter_map(part));
            }
            one => template.post_processors.extend(part(one)),
        }
    }
    Ok(template)
}

fn list<'v>(root: &'v Map<String, Value>, key: &str) -> impl Iterator<Item = &'v Value> {
    root.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A part by its `type`; a text alone is a type without settings.
fn part(value: &Value) -> Option<Part> {
    if let Some(kind) = value.as_str() {
        return Some(Part { kind: kind.into(), settings: Map::new() });
    }
    let mut settings = value.as_object()?.clone();
    let kind = settings.remove("type")?.as_str()?.to_string();
    Some(Part { kind, settings })
}
