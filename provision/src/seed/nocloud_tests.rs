//! The seed as cloud-init's own code reads it (Debian's package cloud-init), and as the disk holds it.

use std::path::Path;
use std::process::Command;

use super::*;

pub(in crate::seed) const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ1aWxkIGtleSBvZiBhIHRlc3QsIG5vIHNlY3JldCE kvmbake-7";

pub(in crate::seed) fn seed(user_data: &[u8]) -> NoCloud {
    NoCloud {
        instance_id: "kvmbake-7".into(),
        hostname: Some("web-1".into()),
        user_data: Some(user_data.to_vec()),
        public_key: Some(KEY.into()),
        user: Some("baker".into()),
        ..NoCloud::default()
    }
}

/// Copies the files out of the disk with mtools and lets cloud-init read them.
fn understood(seed: &NoCloud) -> String {
    let folder = tempfile::tempdir().expect("folder");
    let image = folder.path().join("seed.img");
    std::fs::write(&image, seed.build().expect("image")).expect("write");
    let target = folder.path().join("seed/nocloud");
    std::fs::create_dir_all(&target).expect("folder");
    let copy = Command::new("mcopy").arg("-i").arg(&image).arg("::*").arg(&target).status();
    assert!(copy.expect("mcopy is missing: install the Debian package mtools").success());
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/seed/nocloud_check.py");
    let output =
        Command::new("/usr/bin/python3").arg(check).arg(folder.path()).output().expect("python3");
    assert!(
        output.status.success(),
        "cloud-init's reader failed (it is in the Debian package cloud-init): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn json(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[test]
fn cloud_init_finds_the_key_the_name_and_the_users_own_words() {
    let config =
        "#cloud-config\n# a comment that must stay\nusers:\n  - name: baker   # without default\n";
    let seen = understood(&seed(config.as_bytes()));
    assert!(seen.contains("\"instance\": \"kvmbake-7\""), "{seen}");
    assert!(seen.contains("\"hostname\": \"web-1\""), "{seen}");
    assert!(seen.contains(&format!("\"keys\": [\"{KEY}\"]")), "{seen}");
    assert!(
        seen.contains(&format!(
            "\"user\": [[\"text/cloud-config\", \"part-001\", {}]]",
            json(config)
        )),
        "{seen}"
    );
    assert!(
        seen.contains("\"vendor\": [[\"text/x-shellscript\", \"part-001\", \"#!/bin/sh"),
        "{seen}"
    );
}

#[test]
fn every_kind_of_user_data_arrives_byte_for_byte() {
    let message = multipart(&[
        Part { content: b"#cloud-config\npackages: [vim]\n", name: "one" },
        Part { content: "#!/bin/bash\necho zwölf\n".as_bytes(), name: "two" },
    ]);
    for (user_data, kind) in [
        (b"#!/bin/sh\necho \xc3\xa9\n".to_vec(), "[[\"text/x-shellscript\""),
        (
            message,
            "[[\"text/cloud-config\", \"one\", \"#cloud-config\\npackages: [vim]\\n\"], [\"text/x-shellscript\"",
        ),
        (b"## template: jinja\n#cloud-config\n{}\n".to_vec(), "[[\"text/jinja2\""),
    ] {
        let seed = seed(&user_data);
        let files = seed.files().expect("files");
        assert!(files.iter().any(|(name, content)| *name == "user-data" && *content == user_data));
        let seen = understood(&seed);
        assert!(seen.contains(&format!("\"user\": {kind}")), "{seen}");
    }
}

#[test]
fn vendor_data_of_the_users_own_stays_beside_ours() {
    let own = b"#cloud-config\nntp: {enabled: true}\n";
    let seen = understood(&NoCloud { vendor_data: Some(own.to_vec()), ..seed(b"#!/bin/sh\n") });
    let first = "\"vendor\": [[\"text/cloud-config\", \"vendor-data\", \"#cloud-config\\nntp: {enabled: true}\\n\"], ";
    assert!(
        seen.contains(&format!(
            "{first}[\"text/x-shellscript\", \"kvmbake-authorize\", \"#!/bin/sh"
        )),
        "{seen}"
    );
}

#[test]
fn root_is_let_in_by_vendor_data_that_user_data_may_overrule() {
    let seen = understood(&NoCloud { user: Some("root".into()), ..seed(b"#cloud-config\n{}\n") });
    assert!(seen.contains(
        "[\"text/cloud-config\", \"kvmbake-root.yaml\", \"#cloud-config\\ndisable_root: false\\n\"]"
    ));
}

#[test]
fn a_seed_without_user_data_is_a_seed_for_cloud_init() {
    let seed = NoCloud { instance_id: "i\" #1".into(), ..NoCloud::default() };
    let seen = understood(&seed);
    assert!(seen.contains("\"instance\": \"i\\\" #1\""), "{seen}");
    assert!(seen.contains("\"keys\": []"), "{seen}");
    assert!(
        seen.contains("\"vendor\": []") || seen.contains("\"vendor\": [[\"text/x-not-multipart\""),
        "{seen}"
    );
}

#[test]
fn names_that_would_break_out_are_refused() {
    let bad = NoCloud { hostname: Some("a b".into()), ..NoCloud::default() };
    assert!(matches!(bad.build(), Err(SeedError::HostName { .. })));
    for user in ["o'brien", "", "-x", "a b", "a\nb"] {
        let bad = NoCloud { user: Some(user.into()), ..seed(b"") };
        assert!(matches!(bad.build(), Err(SeedError::UserName { .. })), "{user:?}");
    }
}

/// Runs the authorize script on a made-up account whose home is a temporary folder.
fn authorize(home: &Path, before: Option<&str>) -> String {
    let tools = home.join("tools");
    std::fs::create_dir_all(&tools).expect("folder");
    for (name, body) in [
        ("getent", format!("echo baker:x:1:1::{}:/bin/sh", home.display())),
        ("chown", "exit 0".to_owned()),
        ("restorecon", "exit 0".to_owned()),
    ] {
        let path = tools.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("write");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("mode");
    }
    let file = home.join(".ssh/authorized_keys");
    if let Some(text) = before {
        std::fs::create_dir_all(home.join(".ssh")).expect("folder");
        std::fs::write(&file, text).expect("write");
    }
    let output = Command::new("/bin/sh")
        .args(["-c", &authorize_script("baker", KEY)])
        .env("PATH", format!("{}:/usr/bin:/bin", tools.display()))
        .output()
        .expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(&file).expect("authorized_keys")
}

#[test]
fn the_authorize_script_adds_the_key_once_and_before_a_forced_command() {
    let fresh = tempfile::tempdir().expect("folder");
    assert_eq!(authorize(fresh.path(), None), format!("{KEY}\n"));
    assert_eq!(authorize(fresh.path(), None), format!("{KEY}\n"));
    let used = tempfile::tempdir().expect("folder");
    let before = format!("ssh-rsa AAAAother me\nno-pty,command=\"echo no\" {KEY}\n");
    assert_eq!(authorize(used.path(), Some(&before)), format!("{KEY}\nssh-rsa AAAAother me\n"));
}
