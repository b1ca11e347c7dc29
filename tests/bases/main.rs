//! Base images from servers that behave and from servers that do not, and packed ones. What arrives
//! is judged by sha256sum, what was asked for by the server's own record.

mod server;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use server::{Request, Secure, Server, TAG, cut, ranged, response, whole};

fn image() -> Vec<u8> {
    // A raw disk: no format's magic, no run of one byte.
    (0..2u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A folder with a profile of its own and a cache of its own.
struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Project {
        Project(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn profile(&self, source: &str, checksum: &str) {
        let text = format!(
            "[image]\nname = \"web\"\nformat = \"raw\"\nsource = {source}\nchecksum = \"{checksum}\"\n\
             [[output]]\nformat = \"raw\"\n"
        );
        fs::write(self.path("web.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvmbake"));
        command.args(arguments).current_dir(self.0.path()).env("KVMBAKE_CACHE", self.path("cache"));
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    fn kvmbake(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Lets kvmbake look at the profile, for which it needs the base.
    #[track_caller]
    fn succeeds(&self) -> String {
        let output = self.kvmbake(&["plan", "web.toml"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    #[track_caller]
    fn fails(&self, parts: &[&str]) -> String {
        let output = self.kvmbake(&["plan", "web.toml"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(self.stored().len(), 0, "a base was kept");
        text
    }

    /// The SHA-256 of each base in the cache.
    fn stored(&self) -> Vec<String> {
        let folders = fs::read_dir(self.path("cache/bases")).into_iter().flatten().flatten();
        folders.map(|folder| sha256(&folder.path().join("image"))).collect()
    }
}

/// Judged by sha256sum.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_string()
}

fn sum_of(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    sha256(file.path())
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

#[test]
fn what_was_cut_is_continued_where_it_ended() {
    let server = Server::start(|request, number| {
        let answer = ranged(request, &image());
        if number == 0 { cut(answer, 500_000) } else { answer }
    });
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
    let told = project.succeeds();
    assert!(told.contains("trying again"), "{told}");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].from(), Some(image().len() - 500_000));
    assert_eq!(requests[1].header("if-range"), Some(TAG));
    assert_eq!(project.stored(), [sum]);
    // The next one asks for nothing.
    project.succeeds();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_ignores_ranges_sends_all_of_it_again() {
    let server =
        Server::start(
            |_, number| {
                if number == 0 { cut(whole(&image()), 1000) } else { whole(&image()) }
            },
        );
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
    project.succeeds();
    assert_eq!(project.stored(), [sum]);
}

#[test]
fn the_rest_of_another_version_is_thrown_away() {
    // Without an entity tag nothing tells the versions apart but the checksum.
    let server = Server::start(|request, number| {
        let untagged = |answer: Vec<u8>| {
            let text = String::from_utf8_lossy(&answer[..200]).into_owned();
            let at = text.find("ETag").unwrap();
            [&answer[..at], &answer[at + format!("ETag: {TAG}\r\n").len()..]].concat()
        };
        let mut old = image();
        old[0] ^= 1;
        match number {
            0 => cut(untagged(whole(&old)), 1000),
            _ => untagged(ranged(request, &image())),
        }
    });
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
    project.succeeds();
    let asked: Vec<_> = server.requests().iter().map(Request::from).collect();
    assert_eq!(asked, [None, Some(image().len() - 1000), None]);
    assert_eq!(project.stored(), [sum]);
}

#[test]
fn a_download_goes_on_in_the_next_run() {
    let server = Server::start(|request, number| {
        if number == 0 {
            cut(whole(&image()), 700_000)
        } else if number < 5 {
            response("503 Service Unavailable", "Content-Length: 0\r\n", b"")
        } else {
            ranged(request, &image())
        }
    });
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
    project.fails(&[&server.url("a.img"), "503 Service Unavailable"]);
    project.succeeds();
    assert_eq!(server.requests()[5].from(), Some(image().len() - 700_000));
    assert_eq!(project.stored(), [sum]);
}

#[test]
fn lies_about_the_length_are_not_believed() {
    let sum = sum_of(&image());
    for (length, part) in
        [(3 << 20, "stopped after 2097152 bytes of 3145728"), (1 << 20, "sends another file")]
    {
        let server = Server::start(move |request, _| match request.from() {
            Some(_) => response("416 Range Not Satisfiable", "Content-Length: 0\r\n", b""),
            None => response("200 OK", &format!("Content-Length: {length}\r\n"), &image()),
        });
        let project = Project::new();
        project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
        project.fails(&[part, &server.url("a.img")]);
    }
}

#[test]
fn wrong_bytes_are_never_used_and_the_next_mirror_is_asked() {
    let mut wrong = image();
    wrong[4711] ^= 1;
    let bad_sum = sum_of(&wrong);
    let bad = Server::start(move |_, _| whole(&wrong));
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&bad.url("a.img")), &format!("sha256:{sum}"));
    project.fails(&["sends another file", &sum, &bad_sum, &bad.url("a.img")]);
    let good = Server::start(|request, _| ranged(request, &image()));
    let mirrors = format!("[{}, {}]", quoted(&bad.url("a.img")), quoted(&good.url("b.img")));
    project.profile(&mirrors, &format!("sha256:{sum}"));
    let told = project.succeeds();
    assert!(told.contains("trying the next mirror"), "{told}");
    assert_eq!(project.stored(), [sum]);
}

#[test]
fn every_mirror_that_failed_is_named_with_its_answer() {
    let server = Server::start(|request, _| match request.target.as_str() {
        "/gone" => response("404 Not Found", "Content-Length: 0\r\n", b""),
        "/out" => response("302 Found", "Location: ftp://x/y\r\nContent-Length: 0\r\n", b""),
        _ => response("302 Found", "Location: /round\r\nContent-Length: 0\r\n", b""),
    });
    let project = Project::new();
    let urls: Vec<String> =
        ["gone", "round", "out"].iter().map(|path| quoted(&server.url(path))).collect();
    project.profile(&format!("[{}]", urls.join(", ")), &format!("sha256:{}", sum_of(b"")));
    project.fails(&[
        "/gone answers 404 Not Found",
        "/round leads through more than 10",
        "/out leads to",
    ]);
    assert_eq!(server.requests().len(), 1 + 11 + 1);
    // Nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    project.profile(&quoted(&format!("http://{free}/x")), &format!("sha256:{}", sum_of(b"")));
    project.fails(&[&format!("Cannot reach http://{free}/x"), "refused"]);
}

#[test]
fn a_redirect_is_followed_and_curl_gets_the_same() {
    let server = Server::start(|request, _| match request.target.as_str() {
        "/latest/a.img" => {
            response("302 Found", "Location: ../v1/a.img?x=1\r\nContent-Length: 0\r\n", b"")
        }
        "/v1/a.img?x=1" => whole(&image()),
        _ => response("404 Not Found", "Content-Length: 0\r\n", b""),
    });
    let project = Project::new();
    let url = server.url("latest/a.img");
    project.profile(&quoted(&url), &format!("sha256:{}", sum_of(&image())));
    project.succeeds();
    let by_curl = project.path("by-curl");
    let status = Command::new("curl")
        .args(["-sSfL", "--noproxy", "*", "-o"])
        .arg(&by_curl)
        .arg(&url)
        .status();
    assert!(status.expect("curl is missing: install the Debian package curl").success());
    assert_eq!(project.stored(), [sha256(&by_curl)]);
}

#[test]
fn a_published_list_of_checksums_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.img"), image()).unwrap();
    let list = |arguments: &[&str]| {
        let output = Command::new("sha256sum")
            .args(arguments)
            .arg("a.img")
            .current_dir(folder.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let other = format!("{}  b.img\n", "0".repeat(64));
    for text in [list(&[]), list(&["--tag"]), other.clone() + &list(&["-b"])] {
        let list = text.clone();
        let server = Server::start(move |request, _| match request.target.as_str() {
            "/SHA256SUMS" => whole(list.as_bytes()),
            _ => whole(&image()),
        });
        let project = Project::new();
        project.profile(&quoted(&server.url("a.img")), &server.url("SHA256SUMS"));
        project.succeeds();
        assert_eq!(project.stored(), [sum_of(&image())]);
        // As a file beside the profile, and for a base that lies there too.
        fs::write(project.path("SUMS"), &text).unwrap();
        fs::write(project.path("a.img"), image()).unwrap();
        project.profile("\"a.img\"", "SUMS");
        project.succeeds();
    }
    let project = Project::new();
    let server = Server::start(move |_, _| whole(other.as_bytes()));
    project.profile(&quoted(&server.url("a.img")), &server.url("SHA256SUMS"));
    project.fails(&["web.toml:5:", "it has no line for a.img", &server.url("SHA256SUMS")]);
}

#[test]
fn packed_bases_are_unpacked_and_the_source_stays() {
    for (program, extension) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")] {
        let project = Project::new();
        fs::write(project.path("a.img"), image()).unwrap();
        let packed = project.path(&format!("a.img.{extension}"));
        let output =
            Command::new(program).args(["-c", "a.img"]).current_dir(project.0.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        fs::write(&packed, &output.stdout).unwrap();
        let (before, sum) = (sha256(&packed), sum_of(&image()));
        project.profile(&format!("\"a.img.{extension}\""), &format!("sha256:{before}"));
        project.succeeds();
        assert_eq!(project.stored(), std::slice::from_ref(&sum), "{program}");
        assert_eq!(sha256(&packed), before);
        // The same file from a server is there already.
        let bytes = output.stdout.clone();
        let server = Server::start(move |_, _| whole(&bytes));
        project.profile(&quoted(&server.url("x")), &format!("sha256:{before}"));
        project.succeeds();
        assert_eq!(server.requests().len(), 0);
        // A damaged one leaves nothing.
        let mut damaged = output.stdout;
        let middle = damaged.len() / 2;
        damaged.truncate(middle);
        let other = Project::new();
        fs::write(other.path("a.img.x"), damaged).unwrap();
        other.profile("\"a.img.x\"", "none");
        other.fails(&["Cannot unpack", "a.img.x"]);
    }
}

#[test]
fn builds_at_the_same_time_download_once() {
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_millis(300));
        whole(&image())
    });
    let project = Project::new();
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{}", sum_of(&image())));
    let start = || -> Child {
        let mut command = project.command(&["plan", "web.toml"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..4).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn without_a_checksum_the_server_says_whether_it_changed() {
    let version = Arc::new(Mutex::new(1u8));
    let now = Arc::clone(&version);
    let server = Server::start(move |request, _| {
        let version = *now.lock().unwrap();
        let tag = format!("\"v{version}\"");
        if request.header("if-none-match") == Some(&tag) {
            return response("304 Not Modified", "", b"");
        }
        let mut body = image();
        body[0] = version;
        response("200 OK", &format!("Content-Length: {}\r\nETag: {tag}\r\n", body.len()), &body)
    });
    let project = Project::new();
    project.profile(&quoted(&server.url("a.img")), "none");
    project.succeeds();
    project.succeeds();
    assert_eq!(server.requests().len(), 2);
    assert_eq!(project.stored().len(), 1);
    *version.lock().unwrap() = 2;
    project.succeeds();
    assert_eq!(project.stored().len(), 2);
}

#[test]
fn the_cache_lists_counts_verifies_and_removes_bases() {
    let server = Server::start(|_, _| whole(&image()));
    let project = Project::new();
    let sum = sum_of(&image());
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{sum}"));
    project.succeeds();
    let out = |arguments: &[&str]| {
        let output = project.kvmbake(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = out(&["cache", "ls"]);
    assert!(
        list.contains(&sum[..8]) && list.contains("a.img") && list.contains("1 base"),
        "{list}"
    );
    assert!(out(&["cache", "ls", "--json"]).contains(&format!("sha256:{sum}")));
    assert!(out(&["cache", "du", "--json"]).contains("\"bases\": 1"));
    assert!(out(&["cache", "verify"]).contains("and 1 base are sound"));
    // One bit, behind the store's back and with the time put back.
    let folder = fs::read_dir(project.path("cache/bases")).unwrap().next().unwrap().unwrap().path();
    let image_path = folder.join("image");
    let modified = fs::metadata(&image_path).unwrap().modified().unwrap();
    let mut bytes = image();
    bytes[99] ^= 1;
    let mut permissions = fs::metadata(&image_path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(&image_path, permissions).unwrap();
    fs::write(&image_path, bytes).unwrap();
    fs::File::options().write(true).open(&image_path).unwrap().set_modified(modified).unwrap();
    let damaged = project.kvmbake(&["cache", "verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert_eq!(project.stored().len(), 0);
    project.succeeds();
    assert!(out(&["cache", "rm", &sum[..8]]).contains("removed"));
    assert_eq!(project.stored().len(), 0);
    project.succeeds();
    assert!(out(&["cache", "gc", "--limit", "10M"]).contains("0 B freed"));
    assert!(out(&["cache", "gc", "--limit", "1M"]).contains("least recently used"));
    assert_eq!(project.stored().len(), 0);
}

#[test]
fn a_proxy_is_asked_unless_no_proxy_names_the_host() {
    let proxy = Server::start(|_, _| whole(&image()));
    let project = Project::new();
    let sum = format!("sha256:{}", sum_of(&image()));
    project.profile("\"http://images.invalid/a.img\"", &sum);
    let run = |no_proxy: &str| {
        let mut command = project.command(&["plan", "web.toml"]);
        let command = command.env("http_proxy", proxy.url("")).env("no_proxy", no_proxy);
        command.output().unwrap()
    };
    let direct = run("invalid");
    assert_eq!(direct.status.code(), Some(1));
    assert_eq!(proxy.requests().len(), 0);
    let output = run("localhost");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let targets: Vec<String> = proxy.requests().into_iter().map(|one| one.target).collect();
    assert_eq!(targets, ["images.invalid:80", "/a.img"]);
}

#[test]
fn a_silent_server_does_not_keep_ctrl_c_waiting() {
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_secs(600));
        Vec::new()
    });
    let project = Project::new();
    project.profile(&quoted(&server.url("a.img")), &format!("sha256:{}", sum_of(b"")));
    let mut command = project.command(&["plan", "web.toml"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.requests().is_empty() {
        assert!(Instant::now() < deadline, "no request came");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the process is our child and was not waited for.
    unsafe { libc::kill(pid, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(Instant::now() < deadline, "it took as long as the server");
}

#[test]
fn a_server_s_certificate_is_of_a_known_authority_and_of_its_name() {
    let project = Project::new();
    fs::write(project.path("a.img"), image()).unwrap();
    let server = Secure::start(project.0.path());
    let sum = sum_of(&image());
    let run = |host: &str, authorities: &str| {
        let url = format!("https://{host}:{}/a.img", server.port);
        project.profile(&quoted(&url), &format!("sha256:{sum}"));
        let mut command = project.command(&["plan", "web.toml"]);
        let output = command.env("SSL_CERT_FILE", project.path(authorities)).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told.contains("certificate"), told)
    };
    for (host, authorities) in [("localhost", "other.pem"), ("127.0.0.1", "ca.pem")] {
        let (code, named, told) = run(host, authorities);
        assert!(code == Some(1) && named, "{told}");
        assert_eq!(project.stored().len(), 0);
    }
    let (code, _, told) = run("localhost", "ca.pem");
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(project.stored(), [sum]);
}
