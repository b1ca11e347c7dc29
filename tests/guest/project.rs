//! A folder in the rig with a profile, the way a user has one.

use std::sync::OnceLock;
use std::time::Duration;

use kvmbake_rig::{Output, Process, Rig, quote};

/// Where the binary lies in L1.
pub const BINARY: &str = "/tmp/kvmbake";
/// No build here takes longer; one that does hangs.
pub const LIMIT: Duration = Duration::from_secs(900);

/// The head of a profile on the light base, which boots in a quarter of the full one's time.
pub const LIGHT: &str = r#"
[image]
name = "light"
source = "/images/light.qcow2"

[machine]
cpus = 1
memory = "512M"

[ssh]
user = "debian"
timeout = "3m"
"#;

/// A folder on the rig's scratch disk.
pub struct Project {
    /// The rig.
    pub rig: &'static Rig,
    /// The folder.
    pub folder: String,
}

impl Project {
    /// Makes a new folder, with the binary at hand.
    pub fn new(name: &str) -> Project {
        static BINARY_PUT: OnceLock<()> = OnceLock::new();
        let rig = Rig::shared();
        BINARY_PUT.get_or_init(|| rig.put(env!("CARGO_BIN_EXE_kvmbake"), BINARY).unwrap());
        Project { rig, folder: rig.folder(name).unwrap() }
    }

    /// Makes a folder with one profile, `p.toml`.
    pub fn with_profile(name: &str, profile: &str) -> Project {
        let project = Project::new(name);
        project.write("p.toml", profile);
        project
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &str) {
        self.rig.put_bytes(content, &format!("{}/{name}", self.folder)).unwrap();
    }

    /// Runs kvmbake with these arguments, as the unprivileged user. A build makes everything itself:
    /// what another test has left in the cache is none of this one's business.
    pub fn kvmbake(&self, arguments: &str) -> Output {
        let line = format!("exec {BINARY} {}", without_cache(arguments));
        unless_dropped(|| {
            self.rig.command(line.clone()).folder(&self.folder).timeout(LIMIT).run().unwrap()
        })
    }

    /// Starts kvmbake with these arguments.
    pub fn start(&self, arguments: &str) -> Process<'static> {
        let line = format!("exec {BINARY} {}", without_cache(arguments));
        self.rig.command(line).folder(&self.folder).timeout(LIMIT).spawn().unwrap()
    }

    /// Runs a command as root; it must succeed. Returns what it printed.
    pub fn judge(&self, line: &str) -> String {
        // The peers' programs are root's alone, so that no build can lean on them.
        let line = format!("export PATH=/opt/peer/bin:$PATH; set -e; {line}");
        self.rig
            .command(line)
            .root()
            .folder(&self.folder)
            .timeout(LIMIT)
            .run()
            .unwrap()
            .expect(0)
            .stdout
    }

    /// Returns the only finished build's folder.
    pub fn finished(&self) -> String {
        let listed = self.judge("ls -A out");
        let names: Vec<&str> = listed.split_whitespace().collect();
        assert_eq!(names.len(), 1, "{listed}");
        assert!(!names[0].starts_with('.'), "{listed}");
        format!("{}/out/{}", self.folder, names[0])
    }

    /// Nothing of a failed build may be left, and no process of it.
    pub fn assert_nothing_left(&self) {
        let listed = self.judge("[ ! -d out ] || ls -A out");
        assert_eq!(listed.trim(), "", "left behind");
        let processes = self.rig.command("pgrep -x kvmbake || true").run().unwrap();
        assert_eq!(processes.stdout.trim(), "", "still running");
    }
}

/// Returns the output of a build; of a second one where the first guest fell into a triple fault.
/// The rig's processor is emulated, and in one of some dozens of boots it drops a guest while its
/// kernel starts, QEMU's under KVM as well as ours; see docs/limits.md.
pub fn unless_dropped(mut build: impl FnMut() -> Output) -> Output {
    let output = build();
    let said = |text: &str| text.contains("Triple fault");
    if output.status != 3 || !(said(&output.stderr) || said(&output.stdout)) {
        return output;
    }
    eprintln!("a triple fault; once more\n{}", output.stderr);
    build()
}

fn without_cache(arguments: &str) -> String {
    match arguments.strip_prefix("run ") {
        Some(rest) => format!("run --no-cache {rest}"),
        None => arguments.to_string(),
    }
}

/// Reads the manifest of a finished build.
pub fn manifest(project: &Project, folder: &str) -> serde_json::Value {
    serde_json::from_str(&project.judge(&format!("cat {}/manifest.json", quote(folder)))).unwrap()
}
