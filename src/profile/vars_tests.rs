//! What variables stand for, where they come from, and how their faults are told.

use std::time::{Duration, SystemTime};

use kvmbake_provision::Privilege;

use crate::profile::{Fault, Given, Profile, Run, Source};

const HEAD: &str = "[image]\nname = \"web\"\nsource = \"b\"\nsize = \"2G\"\n";
const TAIL: &str = "[[output]]\nformat = \"raw\"\n";

fn parse(middle: &str, given: &Given) -> Result<Profile, Vec<Fault>> {
    let text = format!("{HEAD}{middle}{TAIL}");
    Profile::parse_with(Source::new("/profiles/web.toml", text), given)
}

fn command(profile: &Profile, step: usize) -> &str {
    let Run::Inline(commands) = &profile.steps[step].shell().run else { panic!("no command") };
    &commands[0]
}

fn given() -> Given {
    let environment = |name: &str| match name {
        "HOME" => Some("/home/me".to_string()),
        "TOKEN" => Some("hunter2-hunter2".to_string()),
        _ => None,
    };
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_251_199);
    Given { environment, time, ..Given::default() }
}

/// The command that a step is once `text` has its variables.
fn expanded(vars: &str, text: &str) -> Result<String, Vec<Fault>> {
    let profile = parse(&format!("[vars]\n{vars}\n[[step]]\nshell = '''{text}'''\n"), &given())?;
    Ok(command(&profile, 0).to_string())
}

fn only_fault(vars: &str, text: &str) -> Fault {
    let mut faults = expanded(vars, text).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn variables_built_ins_and_the_environment_are_put_in() {
    let vars = "release = \"bookworm\"\ncount = 3\nurl = \"http://h/{{ release }}/{{count}}\"";
    assert_eq!(expanded(vars, "get {{ url }} ${HOME}").unwrap(), "get http://h/bookworm/3 ${HOME}");
    let text = "{{ build.name }} {{ build.time }} {{ build.dir }} {{ image.size }} {{ env.HOME }}";
    let expected = "web 2024-02-29T23:59:59Z /profiles 2147483648 /home/me";
    assert_eq!(expanded("", text).unwrap(), expected);
    assert_eq!(
        expanded("", "docker ps --format '{{{{.Names}}'").unwrap(),
        "docker ps --format '{{.Names}}'"
    );
}

#[test]
fn every_kind_of_key_takes_them() {
    let mut given = given();
    for (name, value) in [("cpus", "3"), ("memory", "2G"), ("root", "true"), ("code", "7")] {
        given.set(name, value);
    }
    let middle = "[vars]\ncpus = 1\nmemory = \"1G\"\nroot = false\ncode = 0\n\
        [machine]\ncpus = \"{{ cpus }}\"\nmemory = \"{{ memory }}\"\n\
        [[step]]\nname = \"as {{ code }}\"\n\
        shell = { inline = \"x\", sudo = \"{{ root }}\", expect = \"{{ code }}\", env = { A = \"{{ code }}\" } }\n";
    let profile = parse(middle, &given).unwrap();
    assert_eq!((profile.machine.cpus, profile.machine.memory), (3, 2 << 30));
    let step = &profile.steps[0];
    assert!(
        step.shell().privilege == Privilege::Root
            && step.shell().expect == [7]
            && step.title == "as 7"
    );
    assert_eq!(step.shell().env, [("A".to_string(), "7".to_string())]);
    given.set("cpus", "many");
    assert_eq!(parse(middle, &given).unwrap_err()[0].message, "`cpus` must be between 1 and 64");
}

#[test]
fn a_variable_that_is_none_is_told_with_its_line_and_the_nearest_one() {
    let fault = only_fault("release = \"x\"", "a\nb {{ relaese }}");
    assert_eq!(fault.message, "There is no variable `relaese`");
    assert_eq!(fault.hint.as_deref(), Some("Did you mean `release`?"));
    assert_eq!((fault.place.line, fault.place.column, fault.place.width), (9, 3, 13));
    assert_eq!(only_fault("", "{{ build.nmae }}").hint.unwrap(), "Did you mean `build.name`?");
    assert!(only_fault("", "{{ .Names }}").hint.unwrap().contains("{{{{"));
    assert!(only_fault("a = \"{{ b }}\"\nb = \"{{ a }}\"", "x").message.contains("a → b → a"));
}

#[test]
fn all_that_lacks_a_value_is_told_together() {
    let vars = "one = {}\ntwo = { env = \"TWO\" }\nthree = { env = \"HOME\" }";
    let faults = expanded(vars, "{{ one }} {{ one }} {{ env.FOUR }}").unwrap_err();
    let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "The variable `one` has no value",
            "The variable `two` has no value",
            "The environment has no variable FOUR"
        ]
    );
    assert!(faults[1].hint.as_ref().unwrap().contains("TWO"));
}

#[test]
fn the_command_line_goes_before_files_and_these_before_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut given = given();
    given.read_file(&file("a.toml", "a = \"file\"\nb = 2\nc = true\n")).unwrap();
    given.read_file(&file("b.json", "{\"b\": \"json {{ x }}\"}")).unwrap();
    given.set("a", "line");
    let vars = "[vars]\na = \"own\"\nb = \"own\"\nc = \"own\"\nd = { env = \"HOME\", default = \"own\" }\n\
                [[step]]\nshell = \"{{ a }} {{ b }} {{ c }} {{ d }}\"\n";
    let profile = parse(vars, &given).unwrap();
    // A value from outside is text, whatever it holds.
    assert_eq!(command(&profile, 0), "line json {{ x }} true /home/me");
    given.set("dd", "typo");
    let faults = parse(vars, &given).unwrap_err();
    assert!(faults[0].message.starts_with("The command line sets `dd`"), "{faults:?}");
    let error = given.read_file(&file("c.toml", "x = \"hunter2\" y")).unwrap_err();
    assert!(error.contains("c.toml") && !error.contains("hunter2"), "{error}");
    assert!(given.read_file(&file("d.toml", "x = [1]")).is_err());
}

#[test]
fn secrets_come_from_outside_and_are_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "swordfish\n").unwrap();
    let middle = format!(
        "[vars]\ntoken = {{ secret = true, env = \"TOKEN\" }}\n\
         password = {{ secret = true, file = {:?} }}\n\
         [[step]]\nshell = \"login {{{{ token }}}} {{{{ password }}}}\"\n",
        file.display().to_string()
    );
    let given = given();
    let profile = parse(&middle, &given).unwrap();
    assert_eq!(command(&profile, 0), "login hunter2-hunter2 swordfish");
    assert_eq!(profile.steps[0].title, "login *** ***");
    assert_eq!(profile.secrets.redact("x swordfish"), "x ***");
    let mut on_line = given.clone();
    on_line.set("token", "hunter2-hunter2");
    assert!(parse(&middle, &on_line).unwrap_err()[0].message.contains("a command line is not"));
    for vars in [
        "t = { secret = true, default = \"hunter2\" }",
        "t = { secret = true, env = \"NONE\" }",
        "t = { secret = true, file = \"/none\" }",
        "t = { secert = true, default = \"x\" }",
    ] {
        assert!(!expanded(vars, "x").unwrap_err().is_empty(), "{vars}");
    }
    let named = format!("{}[[output]]\nformat = \"qcow2\"\nname = \"{{{{ token }}}}\"\n", middle);
    assert!(parse(&named, &given).unwrap_err()[0].message.contains("holds a secret"));
}

#[test]
fn a_variable_changes_only_the_steps_that_name_it() {
    let middle = "[vars]\na = \"1\"\n[[step]]\nshell = \"true\"\n[[step]]\nshell = \"{{ a }}\"\n";
    let mut other = given();
    other.set("a", "2");
    let (one, two) = (parse(middle, &given()).unwrap(), parse(middle, &other).unwrap());
    let shown = |profile: &Profile, step: usize| format!("{:?}", profile.steps[step].action);
    assert_eq!(shown(&one, 0), shown(&two, 0));
    assert_ne!(shown(&one, 1), shown(&two, 1));
}

#[test]
fn a_step_whose_condition_does_not_hold_is_left_out() {
    let middle = "[vars]\nrole = \"web\"\n\
        [[step]]\nname = \"one\"\nwhen = \"role == 'db'\"\nshell = \"x\"\n\
        [[step]]\nname = \"two\"\nwhen = \"role == 'web' and env.HOME\"\nshell = \"x\"\n";
    let profile = parse(middle, &given()).unwrap();
    assert_eq!((profile.steps.len(), profile.steps[0].title.as_str()), (1, "two"));
    assert_eq!(profile.left_out, [("one".to_string(), "when")]);
    for (when, message) in [("rloe == 'x'", "no variable `rloe`"), ("role =", "is no condition")] {
        let middle = format!("[vars]\nrole = \"x\"\n[[step]]\nwhen = \"{when}\"\nshell = \"x\"\n");
        let faults = parse(&middle, &given()).unwrap_err();
        assert!(faults[0].message.contains(message), "{faults:?}");
        assert_eq!(faults[0].place.line, 8);
    }
}
