//! An Ignition config with the build's key and a host name put in.
//!
//! What the user wrote stays: the key is added to the keys of its user, who is added when there is none, and the host
//! name's file is added unless the config has one. Keys of objects may change their order.
//!
//! Ignition, "Configuration specifications" 2.x and 3.x.

use serde_json::{Map, Value, json};

use super::SeedError;
use super::nocloud::{NoCloud, is_user_name};

/// The version of a config that the user did not write; every Ignition since 2.0 reads it.
const VERSION: &str = "3.0.0";
const HOST_NAME: &str = "/etc/hostname";

/// Returns the config of `seed`: its user-data, with what the build needs put in.
///
/// # Errors
/// The user-data is no Ignition config of version 2 or 3, or a name is unusable.
pub fn config(seed: &NoCloud) -> Result<Vec<u8>, SeedError> {
    let refused = |why: &str| SeedError::Ignition { why: why.into() };
    let mut config = match &seed.user_data {
        None => json!({ "ignition": { "version": VERSION } }),
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|error| refused(&format!("it is not JSON: {error}")))?,
    };
    let version = config.pointer("/ignition/version").and_then(Value::as_str).unwrap_or_default();
    let major = match version.split_once('.') {
        Some(("2", _)) => 2,
        Some(("3", _)) => 3,
        _ => return Err(refused("its `ignition.version` is neither 2.x nor 3.x")),
    };
    if let (Some(key), Some(user)) = (&seed.public_key, &seed.user) {
        if !is_user_name(user) {
            return Err(SeedError::UserName { name: user.clone() });
        }
        let users =
            list(&mut config, "passwd", "users").ok_or_else(|| refused("`passwd` is odd"))?;
        let user = entry(users, "name", user);
        let keys = user.entry("sshAuthorizedKeys").or_insert_with(|| json!([]));
        let keys = keys.as_array_mut().ok_or_else(|| refused("`sshAuthorizedKeys` is no list"))?;
        keys.push(json!(key.trim()));
    }
    if let Some(name) = seed.checked_host_name()? {
        let files =
            list(&mut config, "storage", "files").ok_or_else(|| refused("`storage` is odd"))?;
        if !files.iter().any(|file| file["path"] == HOST_NAME) {
            let source = format!("data:,{name}%0A");
            let mut file =
                json!({ "path": HOST_NAME, "mode": 0o644, "contents": { "source": source } });
            match major {
                2 => file["filesystem"] = json!("root"),
                _ => file["overwrite"] = json!(true),
            }
            files.push(file);
        }
    }
    Ok(config.to_string().into_bytes())
}

/// The list at two keys, made when it is missing; `None` when something else is there.
fn list<'c>(config: &'c mut Value, outer: &str, inner: &str) -> Option<&'c mut Vec<Value>> {
    let outer = config.as_object_mut()?.entry(outer).or_insert_with(|| json!({}));
    outer.as_object_mut()?.entry(inner).or_insert_with(|| json!([])).as_array_mut()
}

/// The object in `list` whose `key` is `name`, added when there is none.
fn entry<'l>(list: &'l mut Vec<Value>, key: &str, name: &str) -> &'l mut Map<String, Value> {
    let found = list.iter().position(|one| one.is_object() && one[key] == name);
    let at = found.unwrap_or_else(|| {
        list.push(json!({ key: name }));
        list.len() - 1
    });
    match &mut list[at] {
        Value::Object(map) => map,
        _ => unreachable!("found and added entries are objects"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::nocloud::tests::{KEY, seed};
    use super::*;

    fn merged(user_data: &str) -> Value {
        serde_json::from_slice(&config(&seed(user_data.as_bytes())).expect("config")).expect("JSON")
    }

    #[test]
    fn the_key_and_the_name_are_added_and_what_was_there_stays() {
        let own = json!({
            "ignition": { "version": "3.4.0" },
            "passwd": { "users": [
                { "name": "core", "groups": ["wheel"] },
                { "name": "baker", "sshAuthorizedKeys": ["ssh-rsa AAAA mine"], "uid": 1042 },
            ] },
            "storage": { "files": [{ "path": "/etc/motd", "contents": { "source": "data:,hi" } }] },
            "systemd": { "units": [] },
        });
        let seen = merged(&own.to_string());
        let mut expected = own;
        expected["passwd"]["users"][1]["sshAuthorizedKeys"] = json!(["ssh-rsa AAAA mine", KEY]);
        expected["storage"]["files"].as_array_mut().expect("list").push(json!({
            "path": "/etc/hostname", "mode": 420, "overwrite": true,
            "contents": { "source": "data:,web-1%0A" },
        }));
        assert_eq!(seen, expected);
    }

    #[test]
    fn version_2_names_the_file_system_and_a_host_name_of_the_users_own_stays() {
        let seen = merged("{\"ignition\":{\"version\":\"2.3.0\"}}");
        assert_eq!(seen["storage"]["files"][0]["filesystem"], "root");
        assert_eq!(
            seen["passwd"]["users"],
            json!([{ "name": "baker", "sshAuthorizedKeys": [KEY] }])
        );
        let own = json!({ "ignition": { "version": "3.0.0" }, "storage": { "files": [
            { "path": "/etc/hostname", "contents": { "source": "data:,mine" } },
        ] } });
        assert_eq!(merged(&own.to_string())["storage"], own["storage"]);
    }

    #[test]
    fn a_config_of_nothing_is_a_config() {
        let nothing = NoCloud { user_data: None, ..seed(b"") };
        let seen: Value = serde_json::from_slice(&config(&nothing).expect("config")).expect("JSON");
        assert_eq!(seen["ignition"]["version"], VERSION);
    }

    #[test]
    fn what_is_no_config_is_refused() {
        for text in [
            "#cloud-config\n{}\n",
            "variant: fcos\nversion: 1.5.0\n",
            "[]",
            "{\"ignition\":{\"version\":\"1.0\"}}",
            "{\"ignition\":{\"version\":\"3.0.0\"},\"passwd\":[]}",
            "{\"ignition\":{\"version\":\"3.0.0\"},\"storage\":{\"files\":7}}",
        ] {
            let refused = config(&seed(text.as_bytes()));
            assert!(matches!(refused, Err(SeedError::Ignition { .. })), "{text}: {refused:?}");
        }
    }
}
