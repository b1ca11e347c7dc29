//! Base images from servers that behave and from servers that do not, and packed ones. What arrives
//! is judged by sha256sum, what was asked for by the server's own record.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request: the target and the headers, names in lower case.
#[derive(Debug, Clone)]
struct Request {
    target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first byte asked for.
    fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A server whose answers are raw bytes, after which the connection ends.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` gets the request and how many came before it.
    fn start(answer: impl Fn(&Request, usize) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Server { port, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request, usize) -> Vec<u8> + Send + Sync),
) {
    // A proxy lets its client through to itself.
    while let Some(true) = serve_one(&mut stream, seen, answer) {}
}

/// Returns whether another request follows on the connection.
fn serve_one(
    stream: &mut TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request, usize) -> Vec<u8> + Send + Sync),
) -> Option<bool> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let target = lines.next().unwrap().split(' ').nth(1).unwrap().to_string();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_string()))
    };
    let request = Request { target, headers: lines.filter_map(header).collect() };
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    if head.starts_with("CONNECT ") {
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
        return Some(true);
    }
    let _ = stream.write_all(&answer(&request, number));
    Some(false)
}

const TAG: &str = "\"v1\"";

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn whole(body: &[u8]) -> Vec<u8> {
    let headers = format!("Content-Length: {}\r\nETag: {TAG}\r\n", body.len());
    response("200 OK", &headers, body)
}

/// All that was asked for, as a server with ranges answers.
fn ranged(request: &Request, body: &[u8]) -> Vec<u8> {
    match request.from() {
        Some(from) if request.header("if-range").is_none_or(|tag| tag == TAG) => {
            let (rest, total) = (&body[from..], body.len());
            let headers = format!(
                "Content-Length: {}\r\nContent-Range: bytes {from}-{}/{total}\r\nETag: {TAG}\r\n",
                rest.len(),
                total - 1
            );
            response("206 Partial Content", &headers, rest)
        }
        _ => whole(body),
    }
}

/// The answer without its last bytes.
fn cut(mut answer: Vec<u8>, bytes: usize) -> Vec<u8> {
    answer.truncate(answer.len() - bytes);
    answer
}

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

/// Serves the folder of a project over HTTPS as `localhost`, by Python's server, until it is dropped.
struct Secure(Child, u16);

impl Secure {
    /// Has openssl make an authority, `ca.pem`, and the server's certificate.
    fn start(project: &Project) -> Secure {
        let script = "
            new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj \"$@\"; }
            new /CN=ours -x509 -keyout ca.key -out ca.pem
            new /CN=theirs -x509 -keyout other.key -out other.pem
            new /CN=localhost -keyout web.key -out web.csr
            echo subjectAltName=DNS:localhost > web.ext
            openssl x509 -req -CA ca.pem -CAkey ca.key -days 2 -in web.csr -extfile web.ext -out web.pem";
        let made =
            Command::new("bash").args(["-ec", script]).current_dir(project.0.path()).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let script = "
import http.server, ssl
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('web.pem', 'web.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()";
        let mut python = Command::new("python3");
        python.args(["-c", script]).current_dir(project.0.path());
        let mut server = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Secure(server, port.trim().parse().unwrap())
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_s_certificate_is_of_a_known_authority_and_of_its_name() {
    let project = Project::new();
    fs::write(project.path("a.img"), image()).unwrap();
    let server = Secure::start(&project);
    let sum = sum_of(&image());
    let run = |host: &str, authorities: &str| {
        let url = format!("https://{host}:{}/a.img", server.1);
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
