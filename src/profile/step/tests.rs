//! The steps of a profile, kind by kind.

use super::*;
use crate::profile::{Fault, Given, Profile, Source};

fn parse(step: &str) -> Result<Step, Vec<Fault>> {
    let text = format!(
        "[image]\nname = \"web\"\nsource = \"b\"\nsize = \"2G\"\n[vars]\nport = 80\n\
         token = {{ secret = true, env = \"TOKEN\" }}\n[[step]]\n{step}\n[[output]]\nformat = \"raw\"\n"
    );
    let environment = |name: &str| (name == "TOKEN").then(|| "hunter2-hunter2".to_string());
    let given = Given { environment, ..Given::default() };
    let mut profile = Profile::parse_with(Source::new("/profiles/web.toml", text), &given)?;
    Ok(profile.steps.remove(0))
}

fn only_fault(step: &str) -> Fault {
    let mut faults = parse(step).expect_err("the profile is at fault");
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn uploads_are_a_table_or_a_list() {
    let step = parse("upload = [{ source = \"a/\", to = \"/b\", mode = \"0750\", owner = \"root:app\", sudo = true }, { source = \"x*\", to = \"y/\" }]").unwrap();
    let Action::Upload(uploads) = &step.action else { panic!("{step:?}") };
    assert_eq!((uploads[0].mode, uploads[0].sudo), (Some(0o750), true));
    assert_eq!(uploads[0].owner.as_deref(), Some("root:app"));
    assert_eq!((uploads[1].folder.to_str(), uploads[1].to.as_str()), (Some("/profiles"), "y/"));
    assert_eq!(step.title, "upload: a/, x*");
    assert_eq!(step.action.trees(), [PathBuf::from("/profiles/a/"), PathBuf::from("/profiles")]);
    for (step, message) in [
        ("upload = { to = \"/b\" }", "`upload` has no `source`"),
        ("upload = { source = \"a\", to = \"/b\", mode = \"8\" }", "is no mode such as"),
        ("upload = { source = \"a*\", to = \"/b\" }", "`source` is a pattern"),
        ("upload = { source = \"\", to = \"/b\" }", "The path is empty"),
        ("upload = { source = \"a\", to = \"b\", modes = \"0600\" }", "Unknown key `modes`"),
        ("upload = []", "`upload` is an empty list"),
        ("upload = [\"a\"]", "must be a table or a list of tables"),
    ] {
        let fault = only_fault(step);
        assert!(fault.message.contains(message), "{step}: {}", fault.message);
    }
}

#[test]
fn templates_have_the_values_of_all_variables() {
    let step = parse("upload = { source = \"a\", to = \"b\", template = true }").unwrap();
    let Action::Upload(uploads) = &step.action else { panic!("{step:?}") };
    let variables = uploads[0].template.as_ref().unwrap();
    let rendered = variables
        .render("{{ port }} {{token}} {{{{ {{ build.name }} {{ image.size }} {{ env.TOKEN }}");
    assert_eq!(rendered.unwrap(), "80 hunter2-hunter2 {{ web 2147483648 hunter2-hunter2");
    let error = variables.render("{{ port }}\n\n{{ prt }}").unwrap_err();
    assert_eq!(error, "line 3: there is no variable `prt`");
    assert!(variables.render("a\n{{ }}").unwrap_err().starts_with("line 2: "));
    assert!(!format!("{step:?}").contains("hunter2"));
}

#[test]
fn downloads_go_below_the_build_s_folder_or_to_an_absolute_path() {
    let step = parse("download = [{ source = \"/var/log/\", to = \"logs/\" }, { source = \"/etc/os-release\", to = \"{{ build.dir }}/os\", limit = \"1M\" }]").unwrap();
    let Action::Download(downloads) = &step.action else { panic!("{step:?}") };
    assert_eq!(
        (&downloads[0].to, downloads[0].renamed),
        (&HostPath::Output("logs/".into()), false)
    );
    assert_eq!(downloads[1].to, HostPath::Absolute("/profiles/os".into()));
    assert_eq!((downloads[1].renamed, downloads[1].limit), (true, 1 << 20));
    for to in ["../x", "a/../../x", ".", "./"] {
        let fault = only_fault(&format!("download = {{ source = \"/x\", to = \"{to}\" }}"));
        assert!(
            fault.message.contains("leads out of the build's folder"),
            "{to}: {}",
            fault.message
        );
    }
    let fault = only_fault("download = { source = \"/x\", to = \"manifest.json\" }");
    assert_eq!(fault.message, "The build itself writes a file of this name");
    let fault = only_fault("download = { source = \"/x*\", to = \"x\" }");
    assert_eq!(fault.hint.as_deref(), Some("End `to` with a slash: \"x/\""));
}

#[test]
fn commands_of_the_host_are_texts_or_a_table() {
    let step = parse("host = \"curl -H {{ token }} x\"").unwrap();
    let Action::Host(host) = &step.action else { panic!("{step:?}") };
    assert_eq!(host.workdir, PathBuf::from("/profiles"));
    assert_eq!(step.title, "host: curl -H *** x");
    let step = parse("host = { inline = [\"a\", \"b\"], env = { A = \"{{ port }}\" }, workdir = \"w\", timeout = \"5m\", inputs = [\"i\"] }").unwrap();
    let Action::Host(host) = &step.action else { panic!("{step:?}") };
    assert_eq!((host.commands.len(), &host.env[0].1[..]), (2, "80"));
    assert_eq!(
        (host.workdir.as_path(), host.inputs.len()),
        (std::path::Path::new("/profiles/w"), 1)
    );
    for step in ["host = \" \"", "host = { env = { A = \"b\" } }"] {
        assert_eq!(only_fault(step).message, "There is no command to run");
    }
}

#[test]
fn playbooks_say_what_they_follow_from() {
    let step = parse("ansible = { playbook = \"play/site.yml\", groups = [\"web\"], extra_vars = { a = \"{{ port }}\" }, become = true, python = \"/usr/bin/python3\" }").unwrap();
    let Action::Ansible(ansible) = &step.action else { panic!("{step:?}") };
    assert_eq!(step.title, "ansible: site.yml");
    assert!(step.action.trees().contains(&PathBuf::from("/profiles/play/roles")));
    assert_eq!(ansible.playbook.sources()[0], ("site.yml".into(), true));
    let step = parse("ansible_local = { playbook = \"site.yml\", inputs = [\"roles\"] }").unwrap();
    let Action::AnsibleLocal(ansible) = &step.action else { panic!("{step:?}") };
    assert_eq!(ansible.playbook.sources().len(), 2);
    assert_eq!(ansible.playbook.host_name, "guest");
    for (step, message) in [
        ("ansible = { groups = [\"a b\"], playbook = \"x\" }", "`a b` is no name in an inventory"),
        ("ansible = \"site.yml\"", "`ansible` must be a table"),
        ("ansible_local = { playbook = \"x\", python = \"y\" }", "Unknown key `python`"),
        ("ansible = { become = true }", "`ansible` has no `playbook`"),
    ] {
        let fault = only_fault(step);
        assert!(fault.message.contains(message), "{step}: {}", fault.message);
    }
}

#[test]
fn a_step_does_one_thing() {
    let fault = only_fault("shell = \"true\"\nhost = \"true\"");
    assert_eq!(fault.message, "A step does one thing, this one `shell` and `host`");
}
