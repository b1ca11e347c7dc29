//! A profile of five steps, built once with the cache on, and copies of that cache for the tests.

use std::sync::OnceLock;

use kvmbake_rig::{Output, Process, RemoteCommand};
use serde_json::Value;

use crate::project::{BINARY, LIMIT, Project, unless_dropped};

/// The head of the profile. Everything in it decides over the booted guest, so that profiles with this
/// head and other steps go on from the same layer.
pub const HEAD: &str = r#"
[image]
name = "five"
source = "base.qcow2"

[machine]
cpus = 1
memory = "512M"

[ssh]
user = "debian"
timeout = "3m"

[net]
serve = "www"
host_loopback = true

[[output]]
format = "qcow2"
"#;

/// The five steps. Each leaves one line in `log`.
pub const STEPS: &str = r#"
[[step]]
name = "one"
shell = "echo one >> log"

[[step]]
name = "two"
shell = { script = "two.sh" }

[[step]]
name = "three"
shell = { inline = "echo three $ROLE >> log", env = { ROLE = "web" } }

[[step]]
name = "four"
shell = "busybox wget -q -O - http://10.0.2.100/data.txt >> log"

[[step]]
name = "five"
shell = { script = "five.sh" }
"#;

/// What `log` holds after the five steps.
pub const LOG: &str = "one\ntwo\nthree web\nfour\nfive\n";

/// The profile's folder with the files as they were built first, and a cache.
pub struct Five {
    /// The folder, the same for all tests: what changed since the last run is told by profile.
    pub project: &'static Project,
    /// The cache's folder.
    pub cache: String,
}

/// The first build.
struct First {
    project: Project,
    run: Run,
}

fn first() -> &'static First {
    static FIRST: OnceLock<First> = OnceLock::new();
    FIRST.get_or_init(|| {
        let project = Project::new("five");
        project.judge("install -o builder -g builder -m 644 /images/light.qcow2 base.qcow2");
        reset(&project);
        let cache = format!("{}/cache-first", project.folder);
        let run = run(|| command(&project, &cache, "run p.toml --json"));
        First { project, run }
    })
}

fn reset(project: &Project) {
    project.judge("install -d -o builder -g builder www");
    project.write("p.toml", &format!("{HEAD}{STEPS}"));
    project.write("two.sh", "#!/bin/sh\necho two >> log\n");
    project.write("five.sh", "#!/bin/sh\necho five >> log\n");
    project.write("www/data.txt", "four\n");
    project.judge("chmod 644 p.toml two.sh five.sh www/data.txt");
}

fn command(project: &Project, cache: &str, arguments: &str) -> RemoteCommand<'static> {
    let line = format!("exec {BINARY} {arguments}");
    let command = project.rig.command(line).folder(&project.folder);
    command.env("KVMBAKE_CACHE", cache).timeout(LIMIT)
}

#[track_caller]
fn run(command: impl Fn() -> RemoteCommand<'static>) -> Run {
    Run::new(unless_dropped(|| command().run().unwrap()).expect(0))
}

impl Five {
    /// Returns the profile as it was first built, with a copy of the cache that this left.
    pub fn new(name: &str) -> Five {
        let project = &first().project;
        reset(project);
        let cache = format!("{}/cache-{name}", project.folder);
        project.shell(&format!("cp -a cache-first {cache}"));
        Five { project, cache }
    }

    /// Returns the profile with a cache that holds nothing.
    pub fn empty(name: &str) -> Five {
        let project = &first().project;
        reset(project);
        Five { project, cache: format!("{}/cache-{name}", project.folder) }
    }

    /// Returns how the first build went.
    pub fn first_run() -> &'static Run {
        &first().run
    }

    /// Writes a file beside the profile.
    pub fn write(&self, name: &str, content: &str) {
        self.project.write(name, content);
    }

    /// Writes the profile: the head, then `steps`.
    pub fn write_steps(&self, steps: &str) {
        self.write("p.toml", &format!("{HEAD}{steps}"));
    }

    /// Writes the profile of the five steps with one part of it replaced.
    #[track_caller]
    pub fn edit(&self, old: &str, new: &str) {
        assert_eq!(STEPS.matches(old).count(), 1, "{old}");
        self.write_steps(&STEPS.replace(old, new));
    }

    /// Returns a kvmbake command that uses the cache.
    pub fn command(&self, arguments: &str) -> RemoteCommand<'static> {
        command(self.project, &self.cache, arguments)
    }

    /// Starts kvmbake.
    pub fn start(&self, arguments: &str) -> Process<'static> {
        self.command(arguments).spawn().unwrap()
    }

    /// Runs kvmbake; it must end with 0.
    #[track_caller]
    pub fn kvmbake(&self, arguments: &str) -> Output {
        unless_dropped(|| self.command(arguments).run().unwrap()).expect(0)
    }

    /// Runs `run p.toml` with more arguments; it must end with 0.
    #[track_caller]
    pub fn run(&self, arguments: &str) -> Run {
        run(|| self.command(&format!("run p.toml --json {arguments}")))
    }

    /// Returns what a command prints in the guest as it was after a step.
    #[track_caller]
    pub fn shell(&self, at: &str, line: &str) -> String {
        let line = kvmbake_rig::quote(line);
        self.kvmbake(&format!("shell p.toml --at {at} -- {line}")).stdout
    }

    /// Looks ahead.
    pub fn plan(&self) -> Plan {
        let text = self.kvmbake("plan p.toml").stdout;
        let json = self.kvmbake("plan p.toml --json").stdout;
        Plan { text, entries: serde_json::from_str(&json).unwrap() }
    }

    /// The layers in the cache.
    pub fn layers(&self) -> Vec<Value> {
        serde_json::from_str(&self.kvmbake("cache ls --json").stdout).unwrap()
    }

    /// The folder of the only layer with this title.
    #[track_caller]
    pub fn layer_folder(&self, title: &str) -> String {
        let layers = self.layers();
        let fitting: Vec<&Value> = layers.iter().filter(|layer| layer["title"] == title).collect();
        assert_eq!(fitting.len(), 1, "{title}: {layers:#?}");
        let id = fitting[0]["id"].as_str().unwrap();
        let listed = self.project.shell(&format!("ls -d {}/layers/*-{}", self.cache, &id[..16]));
        listed.trim().to_string()
    }

    /// A line on each file of the layers, which changes when one of them does. Locks are no content.
    pub fn content(&self) -> String {
        self.project.shell(&format!(
            "cd {}/layers; find . -type f ! -name used -printf '%p %s %T@ %i\\n' | sort",
            self.cache
        ))
    }

    /// All layers must be whole.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.kvmbake("cache verify");
    }
}

impl Project {
    /// Runs a command as the unprivileged user; it must succeed. Returns what it printed.
    #[track_caller]
    pub fn shell(&self, line: &str) -> String {
        let command = self.rig.command(format!("set -e; {line}")).folder(&self.folder);
        command.timeout(LIMIT).run().unwrap().expect(0).stdout
    }
}

/// A finished `run --json`.
pub struct Run {
    /// What the command left.
    pub output: Output,
    /// Its events.
    pub events: Vec<Value>,
}

impl Run {
    /// Reads the events.
    pub fn new(output: Output) -> Run {
        let events = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
        Run { events: events.collect(), output }
    }

    /// The layers that were cached and those that were not, as in `boot 1 2 | 3 4 sealed`.
    pub fn planned(&self) -> String {
        let planned = self.events.iter().filter(|event| event["event"] == "planned");
        shape(planned)
    }

    /// What guests were started from.
    pub fn boots(&self) -> Vec<&str> {
        self.started("boot").map(|event| event["detail"].as_str().unwrap()).collect()
    }

    /// The numbers of the steps that ran.
    pub fn steps(&self) -> Vec<u64> {
        self.started("step").map(|event| event["step"].as_u64().unwrap()).collect()
    }

    fn started(&self, stage: &'static str) -> impl Iterator<Item = &Value> {
        let events = self.events.iter().filter(|event| event["event"] == "started");
        events.filter(move |event| event["stage"] == stage)
    }

    /// All notes, a line each.
    pub fn notes(&self) -> String {
        let notes = self.events.iter().filter(|event| event["event"] == "note");
        notes.map(|event| format!("{}\n", event["text"].as_str().unwrap())).collect()
    }

    /// What the steps printed, a line each.
    pub fn printed(&self) -> String {
        let lines = self.events.iter().filter(|event| event["event"] == "output");
        lines.map(|event| format!("{}\n", event["line"].as_str().unwrap())).collect()
    }

    /// The folder of the result.
    pub fn folder(&self) -> &str {
        let done = self.events.iter().find(|event| event["event"] == "done").expect("a result");
        done["folder"].as_str().unwrap()
    }
}

/// What `kvmbake plan` says.
pub struct Plan {
    /// For a person.
    pub text: String,
    /// As JSON.
    pub entries: Vec<Value>,
}

impl Plan {
    /// As [`Run::planned`].
    pub fn planned(&self) -> String {
        shape(self.entries.iter())
    }

    /// The reason at `position`, and the difference behind it; both must stand in the text as well.
    #[track_caller]
    pub fn why(&self, position: &str) -> String {
        let entry = self.entries.iter().find(|entry| entry["position"] == position).unwrap();
        let remark = entry["remark"].as_str().unwrap();
        assert!(self.text.contains(remark), "{remark:?} is not in\n{}", self.text);
        let mut why = remark.to_string();
        for line in entry["details"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            assert!(self.text.contains(line), "{line:?} is not in\n{}", self.text);
            why.push_str(&format!("\n{line}"));
        }
        why
    }
}

fn shape<'e>(entries: impl Iterator<Item = &'e Value>) -> String {
    let mut parts: [Vec<&str>; 2] = Default::default();
    for entry in entries {
        let position = entry["position"].as_str().unwrap();
        let position = position.strip_prefix("step ").unwrap_or(position);
        parts[usize::from(entry["action"] != "cached")].push(position);
    }
    parts.map(|part| part.join(" ")).join(" | ")
}
