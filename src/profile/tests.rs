//! What a profile may say, and how it is refused.

use super::*;
use kvmbake_provision::Privilege;
use kvmbake_provision::step::sysprep::{MachineId, Sysprep};

const SOUND: &str = r#"
[image]
name = "web"
source = "debian.qcow2"
size = "8G"

[machine]
cpus = 4
memory = "2G"

[seed]
kind = "nocloud"
user_data = "user-data.yaml"

[ssh]
user = "debian"
timeout = "1m30s"

[[step]]
shell = ["apt-get --version", "true"]

[[step]]
name = "roles"
shell = { script = "setup.sh", env = { ROLE = "web" }, sudo = true, expect = [0, 3], timeout = "10s" }

[[output]]
format = "qcow2"
[[output]]
format = "vhd"
"#;

fn parse(text: &str) -> Result<Profile, Vec<Fault>> {
    Profile::parse(Source::new("/profiles/web.toml", text))
}

fn only_fault(text: &str) -> Fault {
    let mut faults = parse(text).expect_err("the profile is at fault");
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn a_sound_profile_is_read_whole() {
    let profile = parse(SOUND).unwrap();
    let BaseSource::File(source) = &profile.image.source.value else { panic!("not a file") };
    assert_eq!(source, Path::new("/profiles/debian.qcow2"));
    assert_eq!(profile.image.size.as_ref().unwrap().value, 8 << 30);
    assert_eq!((profile.machine.cpus, profile.machine.memory), (4, 2 << 30));
    assert_eq!(profile.ssh.timeout, Duration::from_secs(90));
    assert_eq!(profile.steps[0].title, "apt-get --version (+1)");
    assert_eq!(profile.steps[1].title, "roles");
    assert_eq!(profile.steps[1].shell().expect, [0, 3]);
    assert_eq!(profile.steps[1].shell().privilege, Privilege::Root);
    let files: Vec<&str> = profile.outputs.iter().map(|output| output.file.as_str()).collect();
    assert_eq!(files, ["web.qcow2", "web.vhd"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one() {
    let fault = only_fault(&SOUND.replace("cpus = 4", "cpuz = 4"));
    assert_eq!(fault.message, "Unknown key `cpuz` in [machine]");
    assert_eq!((fault.place.line, fault.place.column), (8, 1));
    assert_eq!(fault.hint.as_deref(), Some("Did you mean `cpus`?"));
}

#[test]
fn broken_toml_is_refused_with_its_place() {
    let fault = only_fault("[image]\nname = \"web\nsource = 1\n");
    assert!(fault.message.starts_with("Not valid TOML: "), "{}", fault.message);
    assert_eq!(fault.place.line, 2);
}

#[test]
fn a_wrong_type_names_what_it_is_and_what_it_should_be() {
    let fault = only_fault(&SOUND.replace("cpus = 4", "cpus = \"four\""));
    assert_eq!(fault.message, "`cpus` in [machine] must be a whole number, not string");
}

#[test]
fn all_faults_are_told_at_once_in_order() {
    let text =
        SOUND.replace("cpus = 4", "cpus = 0").replace("\"8G\"", "\"8X\"").replace("vhd", "vhf");
    let faults = parse(&text).unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|fault| fault.place.line).collect();
    assert_eq!(lines, [5, 8, 29]);
    assert_eq!(faults[2].hint.as_deref(), Some("Did you mean `vhd`?"));
}

#[test]
fn names_that_lead_out_of_the_output_folder_are_refused() {
    for name in ["../x", "a/b", ".hidden", "-rf", ""] {
        let fault = only_fault(&SOUND.replace("\"web\"", &format!("\"{name}\"")));
        assert!(fault.message.contains("plain file name"), "{name}: {}", fault.message);
    }
}

#[test]
fn two_outputs_of_one_name_are_refused() {
    let fault = only_fault(&SOUND.replace("\"vhd\"", "\"qcow2\""));
    assert_eq!(fault.message, "Two outputs are called `web.qcow2`");
}

#[test]
fn missing_parts_are_named() {
    let faults = parse("").unwrap_err();
    let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(messages, ["The profile has no [image]", "The profile has no [[output]]"]);
    let fault = only_fault("[image]\nname = \"a\"\nsource = \"b\"\n");
    assert_eq!(fault.message, "The profile has no [[output]]");
}

#[test]
fn a_shell_step_runs_one_thing() {
    let text = SOUND.replace("script = \"setup.sh\"", "script = \"setup.sh\", inline = \"true\"");
    assert!(only_fault(&text).message.contains("exactly one of"));
}

#[test]
fn user_data_of_several_lines_stands_for_itself() {
    let text = SOUND.replace("\"user-data.yaml\"", "\"#cloud-config\\n{}\"");
    let seed = parse(&text).unwrap().seed;
    let Some(Text::Inline(text)) = seed.user_data else { panic!("not inline") };
    assert_eq!(text, "#cloud-config\n{}");
}

/// The sound profile with its last output replaced.
fn with_output(lines: &str) -> String {
    SOUND.replace("format = \"vhd\"\n", lines)
}

#[test]
fn outputs_take_the_options_of_their_format() {
    let lines = "format = \"vmdk\"\noptions = { subformat = \"streamOptimized\", hwversion = 17 }\n\
                 [[output]]\nformat = \"vdi\"\n[output.options]\nstatic = true\n\
                 [[output]]\nformat = \"qcow2\"\nname = \"small.qcow2\"\ncompress = true\n\
                 options.compression_type = \"zstd\"\noptions.level = 19\n";
    let profile = parse(&with_output(lines)).unwrap();
    let encodings: Vec<_> = profile.outputs.iter().map(|output| &output.encoding).collect();
    let Encoding::Vmdk(vmdk) = encodings[1] else { panic!("{encodings:?}") };
    assert_eq!(vmdk.subformat, Some(kvmbake_convert::VmdkSubformat::StreamOptimized));
    assert_eq!(vmdk.hardware_version, 17);
    let Encoding::Vdi(vdi) = encodings[2] else { panic!("{encodings:?}") };
    assert!(vdi.fixed);
    let Encoding::Qcow2(qcow2) = encodings[3] else { panic!("{encodings:?}") };
    assert_eq!((qcow2.compressed, qcow2.level), (true, Some(19)));
    assert_eq!(profile.outputs[3].file, "small.qcow2");
}

#[test]
fn wrong_options_are_refused_with_their_place_and_what_there_is() {
    for (lines, line, message, hint) in [
        (
            "format = \"vmdk\"\noptions = { subfromat = \"streamOptimized\" }\n",
            30,
            "The vmdk format has no option `subfromat`",
            Some("Did you mean `subformat`?"),
        ),
        (
            "format = \"vmdk\"\noptions.subformat = \"thick\"\n",
            30,
            "The vmdk option subformat takes monolithicSparse, streamOptimized or monolithicFlat, \
             not \"thick\"",
            None,
        ),
        (
            "format = \"ova\"\noptions = { cpus = 0 }\n",
            30,
            "The ova option cpus takes 1 to 1024, not \"0\"",
            None,
        ),
        (
            "format = \"vdi\"\noptions = { static = 1.5 }\n",
            30,
            "`static` in [[output]] must be a string, a whole number, true or false, not float",
            None,
        ),
        (
            "format = \"vdi\"\noptions = \"static\"\n",
            30,
            "`options` in [[output]] must be a table, not string",
            None,
        ),
        (
            "format = \"raw\"\noptions = { size = 1 }\n",
            30,
            "The raw format has no option `size`",
            Some("Known are compression, level"),
        ),
        (
            "format = \"vhd\"\ncompress = true\n",
            30,
            "vhd images do not compress",
            Some("qcow2, vmdk and ova do; raw has options.compression"),
        ),
        (
            "format = \"vmdk\"\ncompress = true\noptions.subformat = \"monolithicSparse\"\n",
            30,
            "The vmdk option compression does not go with subformat=monolithicSparse",
            None,
        ),
        (
            "format = \"qcow2\"\nname = \"b\"\noptions = { level = 12 }\n",
            29,
            "The qcow2 option level takes 1 to 9 with zlib, not \"12\"",
            None,
        ),
        (
            "format = \"qcow2\"\nname = \"b\"\noptions.backing_file = \"/etc/passwd\"\n",
            31,
            "`backing_file` is not for baked images",
            Some(
                "Bake a whole image and let `kvmbake convert -o backing_file=…` take the difference",
            ),
        ),
    ] {
        let fault = only_fault(&with_output(lines));
        assert_eq!((fault.place.line, fault.message.as_str()), (line, message));
        assert_eq!(fault.hint.as_deref(), hint);
    }
}

fn image(lines: &str) -> String {
    format!("[image]\nname = \"web\"\n{lines}\n[[output]]\nformat = \"raw\"\n")
}

#[test]
fn a_base_is_a_path_a_url_or_a_list_of_urls() {
    let source = |lines: &str| parse(&image(lines)).unwrap().image.source.value.to_string();
    assert_eq!(source("source = \"a/b.img\""), "/profiles/a/b.img");
    let lines = "source = \"https://h/b.img\"\nchecksum = \"none\"";
    assert_eq!(source(lines), "https://h/b.img");
    let lines = "source = [\"http://h/b\", \"http://i/b\"]\nchecksum = \"SHA256SUMS\"";
    let BaseSource::Urls(urls) = parse(&image(lines)).unwrap().image.source.value else {
        panic!("no URLs")
    };
    assert_eq!(urls.len(), 2);
    for (lines, message) in [
        ("source = []", "empty list"),
        (
            "source = [\"http://h/b\", \"b.img\"]\nchecksum = \"none\"",
            "`b.img` in a list of mirrors",
        ),
        ("source = \"ftp://h/b\"\nchecksum = \"none\"", "known are http and https"),
        ("source = 7", "must be a string or a list"),
    ] {
        let fault = only_fault(&image(lines));
        assert!(fault.message.contains(message), "{lines}: {}", fault.message);
        assert_eq!(fault.place.line, if lines == "source = []" { 1 } else { 3 });
    }
}

#[test]
fn an_output_takes_no_name_that_another_file_of_the_build_has() {
    let lines = "format = \"vmdk\"\noptions.subformat = \"monolithicFlat\"\n\
                 [[output]]\nformat = \"raw\"\nname = \"web-flat.vmdk\"\n";
    let fault = only_fault(&with_output(lines));
    assert_eq!(fault.message, "Two outputs are called `web-flat.vmdk`");
    for name in [
        "manifest.json",
        "SHA512SUM.txt",
        "MD5SUM.txt",
        "serial.log",
        "net.jsonl",
        "lock",
        "overlays",
    ] {
        let fault = only_fault(&with_output(&format!("format = \"raw\"\nname = \"{name}\"\n")));
        assert_eq!(fault.message, format!("Every build has a `{name}` of its own"));
    }
}

#[test]
fn a_url_without_a_checksum_is_refused_unless_the_profile_says_none() {
    let fault = only_fault(&image("source = \"https://h/b.img\""));
    assert_eq!((fault.place.line, fault.place.column), (3, 10));
    assert!(fault.hint.unwrap().contains("SHA256SUMS"));
}

#[test]
fn a_checksum_is_a_digest_or_names_a_list() {
    let expected = |text: &str| {
        parse(&image(&format!("source = \"b\"\nchecksum = \"{text}\"")))
            .map(|profile| profile.image.checksum.unwrap().value)
    };
    let digest = "md5:900150983cd24fb0d6963f7d28e17f72";
    assert!(matches!(expected(digest), Ok(Expected::Checksum(_))));
    assert!(matches!(expected("none"), Ok(Expected::Unchecked)));
    assert!(matches!(expected("https://h/SUMS"), Ok(Expected::ListUrl(_))));
    let Ok(Expected::ListFile(path)) = expected("sums/SHA256SUMS") else { panic!("no file") };
    assert_eq!(path, Path::new("/profiles/sums/SHA256SUMS"));
    for wrong in ["md5:00", "sha3:00", &digest[4..], "ftp://h/x"] {
        assert!(expected(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn each_kind_of_seed_takes_its_own_keys() {
    let seed = |lines: &str| parse(&image(&format!("source = \"b\"\n[seed]\n{lines}")));
    let files = "kind = \"files\"\nlabel = \"OEMDRV\"\nfiles = { \"ks.cfg\" = \"# inline\", \"a/b\" = \"b.txt\" }";
    let seen = seed(files).unwrap().seed;
    assert_eq!((seen.kind, seen.label.as_str()), (SeedKind::Files, "OEMDRV"));
    assert!(matches!(seen.files[..], [(_, Text::File(_)), (_, Text::Inline(_))]));
    let seen =
        seed("kind = \"config-drive\"\nvendor_data = \"v\"\neth0_names = true").unwrap().seed;
    assert!(seen.kind == SeedKind::ConfigDrive && seen.eth0_names);
    for (lines, message) in [
        ("kind = \"none\"\nhostname = \"x\"", "\"none\" takes no `hostname`"),
        ("kind = \"ignition\"\nnetwork_config = \"x\"", "takes no `network_config`"),
        ("kind = \"files\"", "needs `files`"),
        ("kind = \"no-cloud\"", "`no-cloud` is no kind of seed"),
    ] {
        let faults = seed(lines).unwrap_err();
        assert!(faults[0].message.contains(message), "{lines}: {faults:?}");
    }
}

#[test]
fn the_examples_are_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut given = Given { environment: |_| Some("a value".into()), ..Given::default() };
    for (file, vars) in
        [("debian.toml", &[][..]), ("network.toml", &[]), ("download.toml", &["role"])]
    {
        vars.iter().for_each(|name| given.set(name, "web"));
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let faults = Profile::parse_with(Source::new(&path, text), &given).err();
        assert_eq!(faults, None, "{file}");
    }
}

/// Returns the profile with another step at its end.
fn with_step(step: &str) -> String {
    format!("{SOUND}\n[[step]]\n{step}\n")
}

#[test]
fn sysprep_is_switched_piece_by_piece() {
    let read = |step: &str| match parse(&with_step(step)).unwrap().steps.pop().unwrap().action {
        Action::Sysprep(sysprep) => sysprep,
        other => panic!("{other:?}"),
    };
    assert_eq!(read("sysprep = true"), Sysprep::default());
    let some = read("sysprep = { logs = false, machine_id = false, user = \"debian\" }");
    assert!(!some.kinds.contains(&"logs") && some.kinds.contains(&"tmp"));
    assert_eq!((some.machine_id, some.user.as_deref()), (MachineId::Kept, Some("debian")));
    let some = read("sysprep = { machine_id = \"uninitialized\" }");
    assert_eq!(some.machine_id, MachineId::Uninitialized);
    let fault = only_fault(&with_step("sysprep = { log = false }"));
    assert_eq!(fault.message, "Unknown key `log` in `sysprep`");
    assert_eq!(fault.hint.as_deref(), Some("Did you mean `logs`?"));
    let fault = only_fault(&with_step("sysprep = { user = \"root\" }"));
    assert_eq!(fault.message, "`root` is no user that can be removed");
    let fault = only_fault(&with_step("sysprep = { machine_id = \"gone\" }"));
    assert!(fault.message.contains("`gone` is neither"), "{}", fault.message);
    let fault = only_fault(&with_step("sysprep = false"));
    assert_eq!(fault.message, "`sysprep = false` does nothing");
    let fault = only_fault(&with_step("sysprep = \"all\""));
    assert_eq!(fault.message, "`sysprep` in [[step]] must be true or false, not string");
}

#[test]
fn a_wait_is_for_one_thing() {
    let title = |step: &str| parse(&with_step(step)).unwrap().steps.pop().unwrap().title;
    assert_eq!(title("wait = { port = 8080 }"), "wait for port 8080");
    assert_eq!(title("wait = { file = \"/run/x\", timeout = \"1m\" }"), "wait for the file /run/x");
    assert_eq!(title("wait = { command = \"a b\", sudo = true }"), "wait for `a b`");
    assert_eq!(title("trim = true"), "trim");
    assert_eq!(title("vm_bootstrap = { max_retry = 3 }"), "vm_bootstrap");
    for wrong in ["wait = {}", "wait = { port = 1, file = \"/x\" }"] {
        let fault = only_fault(&with_step(wrong));
        assert_eq!(fault.message, "`wait` needs exactly one of `port`, `file` and `command`");
    }
    assert!(only_fault(&with_step("wait = { port = 70000 }")).message.contains("65535"));
}

#[test]
fn what_follows_a_failure_is_one_of_five_words() {
    let read = |value: &str| {
        let step = with_step(&format!("shell = \"true\"\non_error = {value}"));
        parse(&step).map(|mut profile| profile.steps.pop().unwrap().on_error)
    };
    for (value, expected) in [
        ("\"abort\"", OnError::Abort),
        ("\"ignore\"", OnError::Ignore),
        ("\"retry\"", OnError::Retry(1)),
        ("{ retry = 3 }", OnError::Retry(3)),
        ("\"keep\"", OnError::Keep),
        ("\"shell\"", OnError::Shell),
    ] {
        assert_eq!(read(value).unwrap(), expected);
    }
    for wrong in ["\"stop\"", "{}", "{ retry = 0 }", "true"] {
        assert_eq!(read(wrong).unwrap_err().len(), 1, "{wrong}");
    }
    assert_eq!(parse(SOUND).unwrap().steps[0].on_error, OnError::Abort);
}

#[test]
fn a_test_asks_one_thing() {
    use kvmbake_provision::assertion::Assertion;
    let read = |test: &str| parse(&format!("{SOUND}\n[[test]]\n{test}\n"));
    let one = |test: &str| read(test).unwrap().tests.pop().unwrap();
    let test = one(
        "shell = \"nginx -t\"\nexpect = [0, 2]\ncontains = \"ok\"\nsudo = true\ntimeout = \"5s\"",
    );
    let shell = Assertion::Shell {
        command: "nginx -t".into(),
        expect: vec![0, 2],
        contains: Some("ok".into()),
    };
    assert_eq!((test.assertion, test.sudo, test.timeout), (shell, true, Duration::from_secs(5)));
    let file = Assertion::File { path: "/a".into(), mode: Some(0o644), contains: None };
    assert_eq!(one("file = \"/a\"\nmode = \"0644\"").assertion, file);
    assert_eq!(one("absent = \"/a\"").title, "no /a");
    assert_eq!(one("service = \"ssh\"\nname = \"login\"").title, "login");
    assert_eq!(one("port = 22").assertion, Assertion::Port(22));
    assert_eq!(one("bootstrap = { fails = 3 }").assertion, Assertion::Bootstrap { fails: 3 });
    assert!(read("port = 22\nwhen = \"'a' == 'b'\"").unwrap().tests.is_empty());
    for (wrong, message) in [
        ("name = \"x\"", "A test needs exactly one of"),
        ("port = 1\nfile = \"/a\"", "A test needs exactly one of"),
        ("port = 22\nmode = \"0644\"", "Unknown key `mode`"),
        ("file = \"/a\"\nmode = \"rw\"", "`rw` is no mode"),
        ("bootstrap = {}", "`bootstrap` needs `fails`"),
        (
            "bootstrap = { fails = 1 }\n[net]\nnetwork = \"192.168.7.0/24\"",
            "The script of `bootstrap` cannot be at 10.0.2.100:80: 10.0.2.100 is no host's address",
        ),
    ] {
        let faults = read(wrong).unwrap_err();
        assert!(faults[0].message.contains(message), "{faults:#?}");
    }
}

#[test]
fn a_shell_step_has_the_rights_that_it_names_and_sudo_a_password() {
    let privilege = |keys: &str| {
        let profile = parse(&with_step(&format!("shell = {{ inline = \"true\"{keys} }}"))).unwrap();
        profile.steps.last().unwrap().shell().privilege.clone()
    };
    assert_eq!(privilege(""), Privilege::Login);
    assert_eq!(privilege(", sudo = true"), Privilege::Root);
    assert_eq!(privilege(", user = \"www-data\""), Privilege::User("www-data".into()));
    for (keys, message) in [
        ("sudo = true, user = \"a\"", "`sudo` is for root"),
        ("user = \"-u root\"", "`-u root` is no name of a user"),
    ] {
        let fault = only_fault(&with_step(&format!("shell = {{ inline = \"true\", {keys} }}")));
        assert!(fault.message.contains(message), "{fault:?}");
    }
    let ssh = |password: &str| {
        let key = format!("user = \"debian\"\nsudo_password = \"{password}\"");
        SOUND.replace("user = \"debian\"", &key)
    };
    let profile = parse(&ssh("hunter 2")).unwrap();
    assert!(profile.ssh.sudo_password.is_some());
    assert_eq!(profile.secrets.redact("it is hunter 2"), "it is ***");
    assert!(only_fault(&ssh("a\\nb")).message.contains("one line"));
}
