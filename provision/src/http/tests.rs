//! The server as curl sees it, and as a client sees it that means no good.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Mutex;

use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("www");
    std::fs::create_dir_all(root.join("sub dir")).expect("folder");
    std::fs::write(folder.path().join("secret"), "secret").expect("write");
    std::fs::write(root.join("hello.txt"), "hello, guest\n").expect("write");
    std::fs::write(root.join("sub dir/a&b.yaml"), "a: b\n").expect("write");
    std::fs::write(root.join("empty"), "").expect("write");
    symlink("hello.txt", root.join("inside")).expect("link");
    symlink("../secret", root.join("outside")).expect("link");
    symlink("..", root.join("up")).expect("link");
    symlink("loop", root.join("loop")).expect("link");
    assert!(Command::new("mkfifo").arg(root.join("pipe")).status().expect("mkfifo").success());
    folder
}

fn server(folder: &tempfile::TempDir) -> Server {
    Server::new(folder.path().join("www")).expect("server")
}

/// What comes back for these bytes, until the server closes.
fn talk(server: &Server, request: &[u8]) -> String {
    let mut stream = server.connect().expect("stream");
    stream.write_all(request).expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(server: &Server, path: &str) -> u16 {
    let answer = talk(server, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{path}: {answer:?}"))
}

#[test]
fn files_folders_and_errors_have_their_status() {
    let folder = folder();
    let server = server(&folder);
    for (path, expected) in [
        ("/hello.txt", 200),
        ("/hello%2etxt", 200),
        ("/hello.txt?x=1", 200),
        ("http://10.0.2.100/hello.txt", 200),
        ("/inside", 200),
        ("/./hello.txt", 200),
        ("//hello.txt", 200),
        ("/empty", 200),
        ("/", 200),
        ("/sub%20dir", 301),
        ("/sub%20dir/", 200),
        ("/hello.txt/", 404),
        ("/nothing", 404),
        ("/hello.txt/x", 404),
        ("/pipe", 404),
        ("/outside", 403),
        ("/up/secret", 403),
        ("/loop", 403),
        ("/../secret", 403),
        ("/%2e%2e/secret", 403),
        ("/sub%20dir/..%2f..%2fsecret", 403),
        ("/%00", 400),
        ("/%zz", 400),
        ("hello.txt", 400),
        (&format!("/{}", "x".repeat(300)), 404),
    ] {
        assert_eq!(status(&server, path), expected, "{path}");
    }
}

#[test]
fn what_is_no_request_for_us_is_refused() {
    let folder = folder();
    let server = server(&folder);
    let answer = talk(&server, b"POST /hello.txt HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET ");
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.contains("Allow: GET, HEAD\r\n"),
        "{answer}"
    );
    assert!(answer.contains("Connection: close"), "{answer}");
    assert!(talk(&server, b"SSH-2.0-what\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(talk(&server, b"GET / HT").starts_with("HTTP/1.1 400 "));
    assert_eq!(talk(&server, b""), "");
    let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 40_000]].concat();
    let mut stream = server.connect().expect("stream");
    let _ = stream.write_all(&endless);
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("answer");
    assert_eq!(&head, b"HTTP/1.1 431");
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let folder = folder();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = seen.clone();
    let server = server(&folder)
        .with_watcher(move |served| watched.lock().expect("lock").push(served.clone()));
    let answer = talk(
        &server,
        b"HEAD /hello.txt HTTP/1.1\r\n\r\nGET /hello.txt HTTP/1.1\r\nRange: bytes=7-\r\n\r\n\
          GET /none HTTP/1.1\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 3, "{answer}");
    assert!(
        answer.contains("Content-Range: bytes 7-12/13\r\n") && answer.contains("\r\n\r\nguest\n"),
        "{answer}"
    );
    let seen = seen.lock().expect("lock");
    let told: Vec<_> =
        seen.iter().map(|s| (s.method.as_str(), s.path.as_str(), s.status, s.bytes)).collect();
    assert_eq!(
        told,
        [("HEAD", "/hello.txt", 200, 0), ("GET", "/hello.txt", 206, 6), ("GET", "/none", 404, 14)]
    );
}

#[test]
fn an_old_client_is_answered_and_left() {
    let folder = folder();
    let mut stream = server(&folder).connect().expect("stream");
    stream.write_all(b"GET /hello.txt HTTP/1.0\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server closes");
    assert!(answer.ends_with("\r\n\r\nhello, guest\n"), "{answer}");
}

#[test]
fn listings_quote_odd_names() {
    let folder = folder();
    let page = talk(&server(&folder), b"GET /sub%20dir/ HTTP/1.1\r\n\r\n");
    assert!(page.contains("<li><a href=\"./a%26b.yaml\">a&amp;b.yaml</a></li>"), "{page}");
    let top = talk(&server(&folder), b"GET / HTTP/1.1\r\n\r\n");
    assert!(top.contains("<a href=\"./sub%20dir/\">sub dir/</a>"), "{top}");
    std::fs::write(folder.path().join("www/index.html"), "<p>index").expect("write");
    assert!(talk(&server(&folder), b"GET / HTTP/1.1\r\n\r\n").ends_with("<p>index"));
}

#[test]
fn what_a_path_would_give_is_told_without_asking_for_it() {
    let folder = folder();
    let server = server(&folder);
    let real = folder.path().join("www").canonicalize().expect("folder");
    assert_eq!(server.answer_to("/hello.txt"), Answer::File(real.join("hello.txt")));
    let status = |path| match server.answer_to(path) {
        Answer::Other { status, .. } => status,
        Answer::File(path) => panic!("{}", path.display()),
    };
    assert_eq!(status("/missing"), 404);
    assert_eq!(status("/../secret"), 403);
    assert_eq!(status("/sub%20dir"), 301);
    let before = server.answer_to("/sub%20dir/");
    std::fs::write(real.join("sub dir/another"), "").expect("write");
    assert_ne!(server.answer_to("/sub%20dir/"), before);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_places_come_back() {
    let folder = folder();
    let server = server(&folder);
    let held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect().expect("stream")).collect();
    assert_eq!(server.connect().expect_err("full").kind(), io::ErrorKind::ConnectionRefused);
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.connections.load(Ordering::Acquire) > 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(server.connect().is_ok());
}

/// Puts a server behind a port of the loopback for as many connections as curl makes.
fn listen(server: Server) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || server.serve(stream));
        }
    });
    address
}

fn curl(address: std::net::SocketAddr, arguments: &[&str], path: &str) -> Vec<u8> {
    let url = format!("http://{address}{path}");
    let output =
        Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).arg(url).output();
    let output = output.expect("curl is missing: install the Debian package curl");
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn fixed_contents_are_served_by_their_paths_with_ranges() {
    let contents = |entries: &[(&str, &str)]| {
        let entry = |(path, text): &(&str, &str)| (path.to_string(), Arc::from(text.as_bytes()));
        Server::fixed(entries.iter().map(entry).collect())
    };
    let server = contents(&[("/vm-bootstrap", "#!/bin/sh\n"), ("/a b.json", "{}")]);
    assert_eq!(status(&server, "/vm-bootstrap"), 200);
    assert_eq!(status(&server, "/other"), 404);
    let answer = talk(&server, b"GET /a%20b.json HTTP/1.1\r\n\r\n");
    assert!(answer.contains("application/json") && answer.ends_with("\r\n\r\n{}"), "{answer}");
    let answer = talk(&server, b"GET /vm-bootstrap HTTP/1.1\r\nRange: bytes=2-5\r\n\r\n");
    assert!(answer.contains("206") && answer.ends_with("\r\n\r\n/bin"), "{answer}");
    let everywhere = contents(&[("", "same")]);
    assert!(talk(&everywhere, b"GET /x/y HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nsame"));
    let text = "same".to_string();
    assert_eq!(everywhere.answer_to("/z"), Answer::Other { status: 200, text });
}

#[test]
fn curl_posts_forms_of_both_kinds_and_is_refused_beyond_the_limits() {
    let folder = folder();
    let root = folder.path().join("www");
    let address = listen(server(&folder).writable());
    let code = ["-o", "/dev/null", "-w", "%{http_code}"];
    let post = |arguments: &[&str]| {
        String::from_utf8(curl(address, &[&code[..], arguments].concat(), "/")).expect("status")
    };
    assert_eq!(post(&["-d", "path=logs/boot.log", "--data-urlencode", "content=a b\n"]), "200");
    let big = folder.path().join("big");
    std::fs::write(&big, vec![b'x'; 3_000_000]).expect("write");
    let content = format!("content=<{}", big.display());
    // Larger than a socket's buffers, and with `Expect: 100-continue`.
    assert_eq!(post(&["-F", "path=logs/big", "-F", &content]), "200");
    assert_eq!(std::fs::read_to_string(root.join("logs/boot.log")).expect("file"), "a b\n");
    assert_eq!(std::fs::metadata(root.join("logs/big")).expect("file").len(), 3_000_000);
    assert_eq!(post(&["-d", "path=../secret&content=x"]), "403");
    assert_eq!(post(&["-H", "Transfer-Encoding: chunked", "-d", "path=a&content=x"]), "411");
    std::fs::write(&big, vec![b'x'; 17 << 20]).expect("write");
    for expect in ["Expect:", "Expect: 100-continue"] {
        assert_eq!(post(&["-H", expect, "-F", "path=huge", "-F", &content]), "413");
    }
    assert!(!root.join("huge").exists());
    let read_only = listen(server(&folder));
    let refused = curl(read_only, &[&code[..], &["-F", "path=a", "-F", &content]].concat(), "/");
    assert_eq!(refused, b"405");
}

#[test]
fn curl_gets_files_ranges_and_redirections() {
    let folder = folder();
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(folder.path().join("www/big.bin"), &big).expect("write");
    let server = server(&folder);
    let address = listen(server);
    let curl = |arguments: &[&str], path: &str| curl(address, arguments, path);
    assert_eq!(curl(&["-f"], "/hello.txt"), b"hello, guest\n");
    assert!(curl(&["-f"], "/big.bin") == big);
    assert!(curl(&["-f", "-r", "1000000-1000099"], "/big.bin") == big[1_000_000..1_000_100]);
    assert!(String::from_utf8_lossy(&curl(&["-f", "-L"], "/sub%20dir")).contains("a&amp;b.yaml"));
    let head = String::from_utf8_lossy(&curl(&["-I"], "/big.bin")).into_owned();
    assert!(
        head.contains("Content-Length: 12000000\r\n") && head.contains("application/octet-stream"),
        "{head}"
    );
    assert_eq!(
        curl(&["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is"], "/../secret"),
        b"403"
    );
    let twice = format!("http://{address}/hello.txt");
    assert_eq!(
        curl(&["-o", "/dev/null", "-w", "%{num_connects}", &twice, "-o", "/dev/null"], "/empty"),
        b"10"
    );
}
