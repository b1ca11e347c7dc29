//! A folder in the rig with a profile, the way a user has one.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

use kvmbake_rig::{Output, Process, Rig, quote};

/// Where the binary lies in L1.
pub const BINARY: &str = "/tmp/kvmbake";
/// No build here takes longer; one that does hangs.
pub const LIMIT: Duration = Duration::from_secs(1800);

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
        static WATCHED: OnceLock<Process<'static>> = OnceLock::new();
        let rig = Rig::shared();
        WATCHED.get_or_init(|| {
            rig.put(env!("CARGO_BIN_EXE_kvmbake"), BINARY).unwrap();
            watch_for_stalls(rig)
        });
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
        unless_dropped(|| self.once(arguments))
    }

    /// As [`Project::kvmbake`], for builds that end like those whose guest was dropped.
    pub fn once(&self, arguments: &str) -> Output {
        self.start(arguments).wait(LIMIT)
    }

    /// Runs kvmbake with these arguments and a cache that such tests share: a build whose boot
    /// another one has made goes on from there.
    pub fn warm(&self, arguments: &str) -> Output {
        static CACHE: OnceLock<String> = OnceLock::new();
        let cache = CACHE.get_or_init(|| self.rig.folder("warm-cache").unwrap());
        let line = format!("exec {BINARY} {arguments}");
        let command = || self.rig.command(line.clone()).env("KVMBAKE_CACHE", cache);
        unless_dropped(|| command().folder(&self.folder).timeout(LIMIT).run().unwrap())
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

/// How often a build is begun whose guest the rig drops.
const ATTEMPTS: u32 = 3;

/// Returns the output of a build that is to come to an end; of another one where the rig dropped its guest. The rig's
/// processor is emulated, and now and then it leaves the host's own state in a guest, which then faults or
/// stands still, QEMU's guests under KVM as well as ours; see docs/limits.md.
pub fn unless_dropped(build: impl FnMut() -> Output) -> Output {
    until_kept(build, is_dropped)
}

/// As [`unless_dropped`], for what else runs guests.
pub fn until_kept<T: Debug>(mut run: impl FnMut() -> T, is_dropped: impl Fn(&T) -> bool) -> T {
    for _ in 1..ATTEMPTS {
        let result = run();
        if !is_dropped(&result) {
            return result;
        }
        eprintln!("the guest was dropped; once more\n{result:#?}");
    }
    run()
}

/// Whether a build ended with such a guest.
pub fn is_dropped(output: &Output) -> bool {
    let signs = [
        "Triple fault",
        // A kernel that can still tell calls it so.
        "double fault",
        "double_fault",
        "The guest panicked",
        // One that stands still is not heard of again.
        "SSH did not come up",
        "keep-alive",
    ];
    let told = format!("{}{}", output.stdout, output.stderr);
    let faulted = signs.iter().any(|sign| told.contains(sign)) && !told.contains("sysrq triggered");
    // `watch_for_stalls` interrupts a build.
    (output.status == 3 && faulted) || output.status == 130
}

/// Interrupts builds in whose guest one processor waits for the other in vain, so that they need not run
/// into their time-outs.
fn watch_for_stalls(rig: &'static Rig) -> Process<'static> {
    let line = "while sleep 5; do for log in /work/*/out/.[!.]*/serial.log; do \
         grep -qs 'rcu: INFO: rcu_preempt detected stalls' $log && fuser -s -k -INT $log && sleep 20; \
         done; done";
    rig.command(line).spawn().unwrap()
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

/// The first byte of the partition for Linux' root in an `sfdisk -d` listing: the largest one.
pub fn root_offset(table: &str) -> u64 {
    let number = |line: &str, key: &str| -> Option<u64> {
        let rest = line.split(key).nth(1)?.trim_start_matches(['=', ' ']);
        rest.split(',').next()?.trim().parse().ok()
    };
    let parts =
        table.lines().filter_map(|line| Some((number(line, "size")?, number(line, "start")?)));
    parts.max().unwrap().1 * 512
}
