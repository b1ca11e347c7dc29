//! The reader, the schema and the documentation have the same keys.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::profile::reader::asked_keys;
use crate::profile::{Profile, Source};

/// Every table of a profile once. What a new kind of table holds is asked for only where there is one.
const EVERY_TABLE: &str = r#"
[vars]
a = { default = "b" }

[image]
name = "a"
source = "b"

[machine]
[boot]
[ssh]
[cache]

[seed]
kind = "none"

[net]
[[net.forward]]
at = "10.0.2.101:80"
content = "c"
[[net.inbound]]
host = "127.0.0.1:0"
guest = 22

[[step]]
shell = { inline = "true" }
on_error = { retry = 1 }
[[step]]
upload = { source = "a", to = "/a" }
[[step]]
download = { source = "/a", to = "a" }
[[step]]
host = { inline = "true" }
[[step]]
ansible = { playbook = "a.yml" }
[[step]]
ansible_local = { playbook = "a.yml" }
[[step]]
sysprep = { tmp = true }
[[step]]
wait = { port = 22 }
[[step]]
vm_bootstrap = { max_retry = 1 }
[[step]]
breakpoint = true

[[output]]
format = "raw"

[[test]]
shell = "true"
[[test]]
file = "/a"
[[test]]
bootstrap = { fails = 1 }
"#;

type Keys = BTreeMap<String, BTreeSet<String>>;

fn keys<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Keys {
    let mut keys = Keys::new();
    for (table, key) in pairs {
        keys.entry(table.into()).or_default().insert(key.into());
    }
    keys
}

fn of_schema() -> Keys {
    keys(TABLES.iter().flat_map(|table| table.keys.iter().map(|(key, _)| (table.name, *key))))
}

#[test]
fn the_schema_has_the_keys_that_the_reader_asks_for() {
    Profile::parse(Source::new("p.toml", EVERY_TABLE)).unwrap();
    let asked = asked_keys();
    let asked = keys(asked.iter().map(|(table, key)| match table.split_once(' ') {
        // An entry of [vars] is called by its name.
        Some(("[vars]", _)) => ("[vars]", *key),
        _ => (table.as_str(), *key),
    }));
    assert_eq!(
        asked,
        of_schema(),
        "left: what the reader asks for in EVERY_TABLE, right: what schema/keys.rs has"
    );
}

#[test]
fn the_documentation_has_the_keys_of_the_schema() {
    let documented = documented(DOCUMENTATION);
    let mut known = of_schema();
    // These have chapters of their own.
    known.remove(ROOT);
    // These are lists of tables, which have tables of keys of their own.
    for key in ["forward", "inbound"] {
        known.get_mut("[net]").unwrap().remove(key);
    }
    let found = keys(documented.iter().map(|one| (one.table, one.key.as_str())));
    assert_eq!(found, known, "left: the tables of docs/profile.md, right: schema/keys.rs");
    for (key, _) in TABLES.iter().find(|table| table.name == ROOT).unwrap().keys {
        let chapter = [format!("`[{key}]`"), format!("`[[{key}]]`"), format!("`{key}`")];
        let has = |line: &str| line.starts_with("## ") && chapter.iter().any(|c| line.contains(c));
        let variables = *key == "vars";
        assert!(variables || DOCUMENTATION.lines().any(has), "no chapter on {key}");
    }
}

#[test]
fn a_key_is_explained_in_the_words_of_the_documentation() {
    let schema = schema();
    let cpus = &schema["definitions"]["machine"]["properties"]["cpus"];
    assert_eq!(cpus["description"], "1 to 64 (default: 2)");
    assert_eq!(plain("a [b](c.md#d) and [e](f)"), "a b and e");
}
