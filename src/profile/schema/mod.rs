//! The JSON Schema of the profile, for editors: its keys and the shapes of their values are [`keys`], what
//! they mean is what `docs/profile.md` says of them. Draft 7, which the TOML editors understand.

mod keys;

use serde_json::{Map, Value as Json, json};

use keys::{INCLUDE, ROOT, TABLES, Table, Value};

/// Where the keys are explained.
const DOCUMENTATION: &str = include_str!("../../../docs/profile.md");
/// What a text with a variable in it looks like.
const VARIABLE: &str = r"\{\{";
const SIZE: &str = r"^[0-9]+\s*(B|[kKMGT]|[KMGT]iB)?$";
const DURATION: &str = "^([0-9]+(ms|s|m|h|d))+$";

/// Returns the schema.
pub fn schema() -> Json {
    let documented = documented(DOCUMENTATION);
    let mut definitions = Map::new();
    for table in TABLES.iter().filter(|table| table.name != ROOT) {
        definitions.insert(definition(table.name), object(table, &documented));
    }
    let root = TABLES.iter().find(|table| table.name == ROOT);
    let mut schema = root.map_or(Json::Null, |root| object(root, &documented));
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("kvmbake profile");
    schema["definitions"] = Json::Object(definitions);
    // What a profile must have may come from one that it includes.
    schema["anyOf"] = json!([
        { "required": [INCLUDE] },
        {
            "required": ["image", "output"],
            "properties": { "image": { "required": ["name", "source"] } },
        },
    ]);
    schema
}

/// Returns whether the profile's table has the key.
pub fn has_key(table: &str, key: &str) -> bool {
    let tables = TABLES.iter().filter(|one| one.name == table);
    tables.flat_map(|table| table.keys).any(|(name, _)| *name == key)
}

fn object(table: &Table, documented: &[Documented]) -> Json {
    let mut properties = Map::new();
    for (key, value) in table.keys {
        let mut property = of(value);
        let said = documented.iter().find(|one| one.table == table.name && one.key == *key);
        if let Some(said) = said {
            property["description"] = json!(said.text);
        }
        properties.insert((*key).to_string(), property);
    }
    let mut object =
        json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !table.required.is_empty() {
        object["required"] = json!(table.required);
    }
    object
}

/// A table's name as it stands in references.
fn definition(name: &str) -> String {
    name.trim_matches(['[', ']']).to_string()
}

fn of(value: &Value) -> Json {
    let text = json!({ "type": "string" });
    let scalar = || json!({ "type": ["string", "integer", "boolean"] });
    let whole = |low: i64, high: i64| json!({ "type": "integer", "minimum": low, "maximum": high });
    let pattern =
        |pattern: &str| json!({ "type": "string", "pattern": format!("{pattern}|{VARIABLE}") });
    let or_variable =
        |one: Json| json!({ "anyOf": [one, { "type": "string", "pattern": VARIABLE }] });
    let or_list = |one: Json| json!({ "anyOf": [one.clone(), { "type": "array", "items": one }] });
    match value {
        Value::Text => text,
        Value::Texts => or_list(text),
        Value::List => json!({ "type": "array", "items": text }),
        Value::Flag => or_variable(json!({ "type": "boolean" })),
        Value::Whole(low, high) => or_variable(whole(*low, *high)),
        Value::Wholes(low, high) => or_list(or_variable(whole(*low, *high))),
        Value::Size => pattern(SIZE),
        Value::Duration => pattern(DURATION),
        Value::OneOf(known) => or_variable(json!({ "enum": known() })),
        Value::TextTable => json!({ "type": "object", "additionalProperties": text }),
        Value::Settings => json!({ "type": "object", "additionalProperties": scalar() }),
        Value::Scalar => scalar(),
        Value::Table(name) => reference(name),
        Value::Tables(name) => json!({ "type": "array", "items": reference(name) }),
        Value::Named(entry) => json!({ "type": "object", "additionalProperties": of(entry) }),
        Value::Any(values) => json!({ "anyOf": values.iter().map(of).collect::<Vec<_>>() }),
        Value::Matrix => json!({
            "type": "object",
            "properties": { "exclude": {
                "type": "array",
                "items": { "type": "object", "additionalProperties": or_list(scalar()) },
            } },
            "additionalProperties": { "type": "array", "items": scalar(), "minItems": 1 },
            "minProperties": 1,
        }),
    }
}

fn reference(name: &str) -> Json {
    json!({ "$ref": format!("#/definitions/{}", definition(name)) })
}

/// What the documentation says of a key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Documented {
    table: &'static str,
    key: String,
    text: String,
}

/// Returns the keys of `documentation`: the rows of the tables whose head begins with `key`. Such a table
/// belongs to the profile's tables that its head names; else to the one that was named last before it, in a
/// heading or in the text.
fn documented(documentation: &str) -> Vec<Documented> {
    let mut keys = Vec::new();
    let (mut named, mut of, mut is_of_keys) = (ROOT, Vec::new(), false);
    let mentioned = |line: &str| {
        let names = TABLES.iter().map(|table| table.name);
        let mut found: Vec<_> =
            names.filter_map(|name| Some((line.rfind(&format!("`{name}`"))?, name))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    for line in documentation.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|'))
        else {
            is_of_keys = false;
            if line.starts_with('#') {
                named = "";
            }
            named = mentioned(line).last().copied().unwrap_or(named);
            continue;
        };
        let cells: Vec<&str> = row.split(" |").map(str::trim).collect();
        let [first, rest @ ..] = cells.as_slice() else { continue };
        if first.starts_with("key") || first.starts_with('-') {
            if first.starts_with("key") {
                is_of_keys = true;
                of = mentioned(first);
                of.extend((of.is_empty() && !named.is_empty()).then_some(named));
            }
            continue;
        }
        let names = first.split(", ").filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'));
        for name in names.filter(|_| is_of_keys) {
            let text = match rest {
                [default, text] if default.starts_with("required") => plain(text),
                [default, text] if !default.is_empty() && !text.is_empty() => {
                    format!("{} (default: {})", plain(text), plain(default))
                }
                cells => plain(&cells.join(" ")),
            };
            let key = String::from(name);
            let rows =
                of.iter().map(|table| Documented { table, key: key.clone(), text: text.clone() });
            keys.extend(rows);
        }
    }
    keys
}

/// Text without the marks of links.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.trim();
    while let Some((before, after)) = rest.split_once("](") {
        plain.push_str(&before.replacen('[', "", 1));
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests;
