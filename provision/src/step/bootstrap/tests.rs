//! The agent against an HTTP server, in a folder of the test: clause by clause of its contract.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::{Arc, Mutex};

use super::*;

/// Serves one script at /vm-bootstrap, or nothing.
struct Server {
    port: u16,
    script: Arc<Mutex<Option<String>>>,
}

impl Server {
    fn new(script: Option<&str>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let shared = Arc::new(Mutex::new(script.map(str::to_owned)));
        let script = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap_or(0);
                let asked = request[..read].starts_with(b"GET /vm-bootstrap HTTP/1.");
                let body = script.lock().expect("lock").clone().filter(|_| asked);
                let (status, body) = match &body {
                    Some(body) => ("200 OK", body.as_str()),
                    None => ("404 Not Found", "exit 0\n"),
                };
                let head = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Server { port, script: shared }
    }

    fn serve(&self, script: Option<&str>) {
        *self.script.lock().expect("lock") = script.map(str::to_owned);
    }
}

/// A guest with the agent installed and let loose.
struct Guest {
    folder: tempfile::TempDir,
    port: u16,
    path: String,
}

impl Guest {
    /// Whose PATH begins with nothing but these programs for the transfer.
    fn new(server: &Server, maximum: u32) -> Guest {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        fs::create_dir_all(root.join("run/systemd/system")).expect("folder");
        let script = in_folder(&Bootstrap { maximum }.step().script, root);
        let output = shell("/bin/dash", &script);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let arming =
            ARMING.replace("/root/bootstrap", &format!("{}/root/bootstrap", root.display()));
        assert!(shell("/bin/dash", &arming).status.success());
        Guest { folder, port: server.port, path: "/usr/local/bin:/usr/bin:/bin".into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root/bootstrap").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default().trim().to_owned()
    }

    /// The agent's own words, with other places.
    fn command(&self) -> Command {
        let agent = fs::read_to_string(self.path("vm-bootstrap")).expect("agent");
        let agent = agent
            .replace("10.0.2.100", &format!("127.0.0.1:{}", self.port))
            .replace("=/root/bootstrap", &format!("={}", self.path("").display()))
            .replace(
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                &format!("PATH={}", self.path),
            );
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &agent]).env_remove("http_proxy");
        command
    }

    fn run(&self) -> Output {
        self.command().output().expect("bash")
    }

    fn start(&self) -> Child {
        self.command().spawn().expect("bash")
    }

    /// How often the script said that it ran.
    fn runs(&self) -> usize {
        fs::read_to_string(self.folder.path().join("ran")).unwrap_or_default().lines().count()
    }

    /// A script that tells of its run, and goes on with `rest`.
    fn script(&self, rest: &str) -> String {
        format!("echo ran >>{}/ran\n{rest}\n", self.folder.path().display())
    }
}

fn in_folder(script: &str, root: &Path) -> String {
    script.replace("\nroot=\n", &format!("\nroot='{}'\n", root.display()))
}

fn shell(shell: &str, script: &str) -> Output {
    let words: Vec<&str> = shell.split(' ').collect();
    Command::new(words[0]).args(&words[1..]).args(["-c", script]).output().expect("shell")
}

#[test]
fn a_script_that_fails_three_times_succeeds_once_and_never_runs_again() {
    let server = Server::new(None);
    let guest = Guest::new(&server, DEFAULT_MAXIMUM);
    let ran = guest.folder.path().join("ran");
    server.serve(Some(&guest.script(&format!("[ $(wc -l <{}) -gt 3 ]", ran.display()))));
    for run in 1..=3 {
        assert_eq!(guest.run().status.code(), Some(1));
        assert_eq!(guest.text("retry-amount"), run.to_string());
        assert!(guest.path("start-bootstrap").exists());
    }
    let output = guest.run();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(said.contains("run 4 of 10 begins") && said.contains("run 4 succeeded"), "{said}");
    assert!(!guest.path("start-bootstrap").exists());
    for _ in 0..2 {
        assert!(guest.run().status.success());
    }
    assert_eq!(guest.runs(), 4);
}

#[test]
fn a_script_that_fails_runs_as_often_as_it_may() {
    let server = Server::new(None);
    let guest = Guest::new(&server, 3);
    assert_eq!(guest.text("bootstrap-max-retry"), "3");
    server.serve(Some(&guest.script("exit 7")));
    for _ in 0..5 {
        guest.run();
    }
    assert_eq!(guest.runs(), 3);
    assert_eq!(guest.text("retry-amount"), "3");
    // Ten is what an image has of its own.
    let other = Guest::new(&server, DEFAULT_MAXIMUM);
    assert_eq!(other.text("bootstrap-max-retry"), "10");
    server.serve(Some(&other.script("exit 1")));
    for _ in 0..12 {
        other.run();
    }
    assert_eq!(other.runs(), 10);
}

#[test]
fn the_maximum_is_read_before_the_script_runs() {
    let server = Server::new(None);
    let guest = Guest::new(&server, DEFAULT_MAXIMUM);
    let maximum = guest.path("bootstrap-max-retry");
    server.serve(Some(&guest.script(&format!("echo 1 >{}; exit 1", maximum.display()))));
    for _ in 0..4 {
        guest.run();
    }
    assert_eq!(guest.runs(), 2);
}

#[test]
fn no_script_counts_as_one_that_fails() {
    let server = Server::new(None);
    let guest = Guest::new(&server, 4);
    // What a 404 page says is not run.
    assert_eq!(guest.run().status.code(), Some(1));
    // Nor is an empty script a success, or what is left of the last one.
    server.serve(Some(""));
    assert_eq!(guest.run().status.code(), Some(1));
    server.serve(Some(&guest.script("exit 5")));
    assert_eq!(guest.run().status.code(), Some(5));
    server.serve(None);
    assert_eq!(guest.run().status.code(), Some(1));
    assert_eq!((guest.runs(), guest.text("retry-amount").as_str()), (1, "4"));
    assert!(!guest.path("start-bootstrap").exists());
    // Nobody at the address at all.
    let nowhere = Server { port: 1, script: Arc::default() };
    let guest = Guest::new(&nowhere, 2);
    assert_eq!(guest.run().status.code(), Some(1));
    assert_eq!(guest.text("retry-amount"), "1");
}

#[test]
fn without_start_bootstrap_nothing_runs() {
    let server = Server::new(None);
    let guest = Guest::new(&server, DEFAULT_MAXIMUM);
    let start = guest.path("start-bootstrap");
    server.serve(Some(&guest.script(&format!("rm -f {}; exit 1", start.display()))));
    for _ in 0..3 {
        guest.run();
    }
    // The script itself took it away: it failed, and is not run again.
    assert_eq!(guest.runs(), 1);
    fs::write(start, "").expect("write");
    guest.run();
    assert_eq!(guest.runs(), 2);
}

#[test]
fn a_run_keeps_others_out_and_what_it_leaves_running_does_not() {
    let server = Server::new(None);
    let guest = Guest::new(&server, DEFAULT_MAXIMUM);
    let go = guest.folder.path().join("go");
    let wait = format!(
        "until [ -e {} ]; do sleep 0.05; done; sleep 60 >/dev/null 2>&1 & exit 1",
        go.display()
    );
    server.serve(Some(&guest.script(&wait)));
    let mut first = guest.start();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while guest.runs() == 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(guest.run().status.success());
    assert_eq!((guest.runs(), guest.text("retry-amount").as_str()), (1, "1"));
    fs::write(&go, "").expect("write");
    assert_eq!(first.wait().expect("wait").code(), Some(1));
    server.serve(Some(&guest.script("exit 0")));
    assert!(guest.start().wait().expect("wait").success());
    assert_eq!(guest.runs(), 2);
}

#[test]
fn whichever_program_the_guest_has_fetches() {
    let server = Server::new(None);
    for (program, real) in [
        ("curl", "/usr/bin/curl"),
        ("wget", "/usr/bin/wget"),
        ("wget", "/bin/busybox"),
        ("python3", "/usr/bin/python3"),
        ("busybox", "/bin/busybox"),
    ] {
        if !Path::new(real).exists() {
            continue;
        }
        let mut guest = Guest::new(&server, DEFAULT_MAXIMUM);
        let tools = guest.folder.path().join("tools");
        fs::create_dir(&tools).expect("folder");
        let others = ["flock", "date", "head", "tr", "rm", "mv", "bash", "timeout"].map(|name| {
            let places = ["/usr/bin", "/bin"].map(|folder| format!("{folder}/{name}"));
            (name, places.into_iter().find(|path| Path::new(path).exists()).expect(name))
        });
        for (name, path) in others {
            std::os::unix::fs::symlink(path, tools.join(name)).expect("link");
        }
        std::os::unix::fs::symlink(real, tools.join(program)).expect("link");
        guest.path = tools.display().to_string();
        server.serve(Some(&guest.script("exit 0")));
        let output = guest.run();
        assert!(output.status.success(), "{program} {real}: {output:?}");
        assert_eq!(guest.runs(), 1, "{program} {real}");
    }
}

#[test]
fn it_is_called_by_systemd_or_by_cron() {
    let folder = tempfile::tempdir().expect("folder");
    let script = Bootstrap { maximum: 5 }.step().script;
    for (index, name) in ["/bin/dash", "/bin/bash", "/bin/busybox sh"].into_iter().enumerate() {
        let root = folder.path().join(index.to_string());
        let run = |root: &Path| shell(name, &in_folder(&script, root));
        let systemd = root.join("systemd");
        fs::create_dir_all(systemd.join("run/systemd/system")).expect("folder");
        assert!(run(&systemd).status.success());
        let unit = |name: &str| {
            let path = systemd.join("etc/systemd/system").join(name);
            fs::read_to_string(&path).unwrap_or_else(|_| panic!("{name}"))
        };
        assert!(unit("timers.target.wants/vm-bootstrap.timer").contains("OnUnitActiveSec=1min"));
        let line = "ExecStart=/bin/sh -c 'exec /root/bootstrap/vm-bootstrap >>/var/log/vm-bootstrap.log 2>&1'";
        assert!(unit("vm-bootstrap.service").contains(line));
        let agent = systemd.join("root/bootstrap/vm-bootstrap");
        assert_eq!(fs::read_to_string(&agent).expect("agent"), include_str!("agent.sh"));
        assert!(!systemd.join("root/bootstrap/start-bootstrap").exists(), "the build's own boots");

        let cron = root.join("cron");
        fs::create_dir_all(cron.join("etc/cron.d")).expect("folder");
        assert!(run(&cron).status.success());
        let line = "* * * * * root /root/bootstrap/vm-bootstrap >>/var/log/vm-bootstrap.log 2>&1\n";
        assert_eq!(fs::read_to_string(cron.join("etc/cron.d/vm-bootstrap")).expect("table"), line);

        let busybox = root.join("busybox");
        fs::create_dir_all(busybox.join("etc/crontabs")).expect("folder");
        fs::write(busybox.join("etc/crontabs/root"), "0 1 * * * other\n").expect("write");
        assert!(run(&busybox).status.success() && run(&busybox).status.success());
        let table = fs::read_to_string(busybox.join("etc/crontabs/root")).expect("table");
        assert_eq!(table, format!("0 1 * * * other\n{}", line.replace("root /root", "/root")));

        let neither = run(&root.join("neither"));
        assert!(!neither.status.success());
        assert!(String::from_utf8_lossy(&neither.stderr).contains("systemd or cron"));
    }
}
