//! The servers of base images: one over HTTP whose answers are the test's, one over HTTPS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A request: the target and the headers, names in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first byte asked for.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A server whose answers are raw bytes, after which the connection ends.
pub struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` gets the request and how many came before it.
    pub fn start(answer: impl Fn(&Request, usize) -> Vec<u8> + Send + Sync + 'static) -> Server {
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

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
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

pub const TAG: &str = "\"v1\"";

pub fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub fn whole(body: &[u8]) -> Vec<u8> {
    let headers = format!("Content-Length: {}\r\nETag: {TAG}\r\n", body.len());
    response("200 OK", &headers, body)
}

/// All that was asked for, as a server with ranges answers.
pub fn ranged(request: &Request, body: &[u8]) -> Vec<u8> {
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
pub fn cut(mut answer: Vec<u8>, bytes: usize) -> Vec<u8> {
    answer.truncate(answer.len() - bytes);
    answer
}

/// Serves the folder of a project over HTTPS as `localhost`, by Python's server, until it is dropped.
pub struct Secure {
    server: Child,
    pub port: u16,
}

impl Secure {
    /// Has openssl make an authority, `ca.pem`, and the server's certificate.
    pub fn start(folder: &Path) -> Secure {
        let script = "
            new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj \"$@\"; }
            new /CN=ours -x509 -keyout ca.key -out ca.pem
            new /CN=theirs -x509 -keyout other.key -out other.pem
            new /CN=localhost -keyout web.key -out web.csr
            echo subjectAltName=DNS:localhost > web.ext
            openssl x509 -req -CA ca.pem -CAkey ca.key -days 2 -in web.csr -extfile web.ext -out web.pem";
        let made = Command::new("bash").args(["-ec", script]).current_dir(folder).output();
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
        python.args(["-c", script]).current_dir(folder);
        let mut server = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Secure { server, port: port.trim().parse().unwrap() }
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
