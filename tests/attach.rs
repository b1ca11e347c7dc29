//! Attaching to a build from another process, where no guest is needed: what stands for the guest is a
//! program on this host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use kvmbake::control::{Console, Folder, Login, Refusal, Serve, Server, Status, openssh};

const KVMBAKE: &str = env!("CARGO_BIN_EXE_kvmbake");

/// A build whose guest's port 22 is an sshd of this host's, and port 7 one that answers at the end.
struct Fake {
    folder: Folder,
    sshd: tempfile::TempDir,
    stopped: AtomicBool,
    children: Mutex<Vec<Child>>,
    console: Mutex<Vec<Sender<Vec<u8>>>>,
    name: String,
}

/// A running one, in a runtime folder of its own.
struct Build {
    _server: Server,
    fake: Arc<Fake>,
    runtime: PathBuf,
}

impl Serve for Fake {
    fn status(&self) -> Status {
        Status {
            id: self.folder.id().into(),
            pid: std::process::id(),
            profile: format!("/profiles/{}.toml", self.name).into(),
            name: self.name.clone(),
            output: Some("/out".into()),
            started: 1_000_000_000,
            state: "step 2 (roles)".into(),
            since: 1_000_000_000,
            kept: true,
        }
    }

    fn dial(&self, port: u16) -> Result<UnixStream, Refusal> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        match port {
            7 => drop(std::thread::spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                (&theirs).write_all(format!("{} bytes\n", all.len()).as_bytes()).unwrap();
            })),
            22 => {
                let _ = fs::create_dir_all("/run/sshd");
                let copy = theirs.try_clone().unwrap();
                let child = Command::new("/usr/sbin/sshd")
                    .args(["-i", "-f"])
                    .arg(self.sshd.path().join("config"))
                    .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
                    .stdout(Stdio::from(std::os::fd::OwnedFd::from(copy)))
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sshd is missing: install the Debian package openssh-server");
                self.children.lock().unwrap().push(child);
            }
            _ => return Err(Refusal::new(format!("Guest refused the connection to port {port}"))),
        }
        Ok(ours)
    }

    fn console(&self) -> Result<Console, Refusal> {
        let (sender, output) = channel();
        self.console.lock().unwrap().push(sender.clone());
        // An echo in capitals.
        let input = move |bytes: &[u8]| drop(sender.send(bytes.to_ascii_uppercase().to_vec()));
        Ok(Console { recent: b"web login: ".to_vec(), output, input: Box::new(input) })
    }

    fn login(&self) -> Result<Login, Refusal> {
        let read = |name: &str| fs::read_to_string(self.sshd.path().join(name)).unwrap();
        let key = self.folder.write("key", read("key").as_bytes()).unwrap();
        let host_key = read("host.pub").split(' ').take(2).collect::<Vec<_>>().join(" ");
        let known = openssh::known_hosts(&host_key);
        let known = self.folder.write("known_hosts", known.as_bytes()).unwrap();
        let (user, socket) = (user(), self.folder.socket());
        let text = openssh::config(&user, &key, &known, Path::new(KVMBAKE), &socket).unwrap();
        let config = self.folder.write("ssh_config", text.as_bytes()).unwrap();
        Ok(Login { user, key, host_key, config })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn retry(&self) -> Result<String, Refusal> {
        Err(Refusal { message: "No step has failed".into(), hint: Some("Wait".into()) })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        for mut child in self.children.lock().unwrap().drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A folder as `XDG_RUNTIME_DIR` is.
fn runtime() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("run dir").tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    folder
}

fn build(runtime: &tempfile::TempDir, name: &str) -> Build {
    let base = runtime.path().join("kvmbake");
    let folder = Folder::create_in(&base).unwrap();
    let socket = folder.socket();
    let sshd = tempfile::tempdir().unwrap();
    let path = |name: &str| sshd.path().join(name);
    for name in ["host", "key"] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(path(name))
            .status()
            .expect("ssh-keygen is missing: install the Debian package openssh-client");
        assert!(made.success());
    }
    let config = format!(
        "HostKey {0}/host\nAuthorizedKeysFile {0}/key.pub\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\nPidFile none\nPrintMotd no\n",
        sshd.path().display()
    );
    fs::write(path("config"), config).unwrap();
    let (stopped, name) = (AtomicBool::new(false), name.to_string());
    let (children, console) = (Mutex::default(), Mutex::default());
    let fake = Arc::new(Fake { folder, sshd, stopped, children, console, name });
    let server = Server::start(&socket, Arc::clone(&fake) as _).unwrap();
    Build { _server: server, fake, runtime: runtime.path().into() }
}

impl Build {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(KVMBAKE);
        command.args(arguments).env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    fn kvmbake(&self, arguments: &[&str], input: &str) -> Output {
        fed(self.command(arguments), input)
    }

    fn id(&self) -> &str {
        self.fake.folder.id()
    }
}

/// Runs a command with this standard input.
fn fed(mut command: Command, input: &str) -> Output {
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().unwrap();
    // Taken out, so that it is closed.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).join("");
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn nc_passes_bytes_and_the_end_of_each_direction() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let socket = build.fake.folder.socket();
    let much = "x".repeat(300_000);
    for name in [build.id(), &build.id()[..3], "web", "web.toml", socket.to_str().unwrap()] {
        assert_eq!(said(&build.kvmbake(&["nc", name, "7"], &much), 0), "300000 bytes\n");
    }
    let refused = said(&build.kvmbake(&["nc", "web", "25"], ""), 1);
    assert!(refused.contains("refused the connection to port 25"), "{refused}");
    let unknown = said(&build.kvmbake(&["nc", "db", "22"], ""), 1);
    assert!(unknown.contains("No running build is called `db`"), "{unknown}");
}

#[test]
fn openssh_s_programs_reach_the_guest_by_the_configuration() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let login = build.fake.login().unwrap();
    let run = |program: &str| {
        let mut command = Command::new(program);
        command.arg("-F").arg(&login.config).env_remove("XDG_RUNTIME_DIR");
        command
    };
    let mut ssh = run("ssh");
    ssh.args(["guest", "wc -c; echo to stderr >&2; exit 7"]);
    assert_eq!(said(&fed(ssh, &"y".repeat(100_000)), 7), "100000\nto stderr\n");
    let file = runtime.path().join("copied");
    let mut scp = run("scp");
    scp.arg("-q").arg(&login.key).arg(format!("guest:{}", file.display()));
    said(&fed(scp, ""), 0);
    assert_eq!(fs::read(&file).unwrap(), fs::read(&login.key).unwrap());
    // A guest with another host key is not logged in to.
    let other = fs::read_to_string(build.fake.sshd.path().join("key.pub")).unwrap();
    build.fake.folder.write("known_hosts", openssh::known_hosts(&other).as_bytes()).unwrap();
    let mut ssh = run("ssh");
    ssh.args(["guest", "true"]);
    assert!(said(&fed(ssh, ""), 255).contains("Host key verification failed"));
}

#[test]
fn ssh_runs_a_command_in_the_guest_and_ends_as_it_does() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let output = build.kvmbake(&["ssh", "web", "--", "echo here; echo there >&2; exit 9"], "");
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!((&*output.stdout, &*output.stderr), (&b"here\n"[..], &b"there\n"[..]));
    // Of one build none need be named.
    assert_eq!(said(&build.kvmbake(&["ssh", "--", "true"], ""), 0), "");
    let no_terminal = said(&build.kvmbake(&["ssh"], ""), 1);
    assert!(no_terminal.contains("There is no terminal for a shell"), "{no_terminal}");
}

#[test]
fn ps_lists_the_living_and_removes_what_dead_builds_left() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let dead = runtime.path().join("kvmbake/aaaaaa");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    fs::write(dead.join("build.json"), "{}").unwrap();
    let table = said(&build.kvmbake(&["ps"], ""), 0);
    let lines: Vec<&str> = table.lines().collect();
    // Builds of this user without a runtime folder are listed too, if there are any.
    assert!(lines[0].starts_with("ID "), "{table}");
    let ours: Vec<&&str> = lines.iter().filter(|line| line.starts_with(build.id())).collect();
    assert!(ours.len() == 1 && ours[0].contains("step 2 (roles)"), "{table}");
    assert!(!table.contains("aaaaaa") && !dead.exists());
    let json = said(&build.kvmbake(&["ps", "--json"], ""), 0);
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    let ours = list.as_array().unwrap().iter().find(|one| one["id"] == build.id()).unwrap();
    assert_eq!((&ours["kept"], &ours["profile"]), (&true.into(), &"/profiles/web.toml".into()));
}

#[test]
fn the_console_shows_and_takes_keys_and_ends_with_the_build() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let mut command = build.command(&["console", "web"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"root\n").unwrap();
    let mut seen = vec![0; "web login: ROOT\n".len()];
    child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"web login: ROOT\n");
    drop(build);
    assert_eq!(said(&child.wait_with_output().unwrap(), 0), "");
}

#[test]
fn stop_waits_until_the_build_has_ended_and_retry_tells_why_not() {
    let runtime = runtime();
    let build = build(&runtime, "web");
    let refused = said(&build.kvmbake(&["retry"], ""), 1);
    assert!(refused.contains("error: No step has failed\nhint: Wait\n"), "{refused}");
    let mut child = build.command(&["stop", "web"]).spawn().unwrap();
    while !build.fake.stopped.load(Ordering::Acquire) {
        assert!(child.try_wait().unwrap().is_none(), "it does not wait");
        std::thread::yield_now();
    }
    assert!(child.try_wait().unwrap().is_none(), "it does not wait");
    drop(build);
    assert!(child.wait().unwrap().success());
}

#[test]
fn of_several_builds_one_must_be_named() {
    let runtime = runtime();
    let (one, two) = (build(&runtime, "web"), build(&runtime, "web"));
    for arguments in [&["ssh", "web", "--", "true"][..], &["stop"], &["nc", "web", "7"]] {
        let refused = said(&one.kvmbake(arguments, ""), 1);
        assert!(refused.contains("everal") && refused.contains(two.id()), "{refused}");
    }
    assert_eq!(said(&one.kvmbake(&["nc", two.id(), "7"], "abc"), 0), "3 bytes\n");
}
