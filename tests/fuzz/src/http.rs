//! What the fuzz target of HTTP does: an input is what a client sends. Beside the folder that is served,
//! and that a client may write to, lies a file that it must neither read nor change.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;

use kvmbake_provision::http::Server;

/// What lies outside: long enough that no answer holds it by chance.
const SECRET: &[u8] = b"not-for-the-guest-4f9d1c";

/// A client that sends an input, and keeps what it is answered.
struct Client<'a> {
    input: &'a [u8],
    answers: Vec<u8>,
}

impl Read for Client<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.answers.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the server an input as what a client sends on one connection.
pub fn http(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (www, outside) = (folder.path().join("www"), folder.path().join("outside"));
    fs::create_dir_all(www.join("sub")).expect("a folder");
    fs::write(&outside, SECRET).expect("a file");
    fs::write(www.join("a.txt"), "hello, guest\n").expect("a file");
    symlink("../outside", www.join("link")).expect("a link");
    symlink("..", www.join("up")).expect("a link");
    let server = Server::new(&www).expect("a folder is served").writable();
    let mut client = Client { input, answers: Vec::new() };
    // The stream never fails, but may end in the middle of a request.
    let _ = server.serve(&mut client);
    let is_told = client.answers.windows(SECRET.len()).any(|part| part == SECRET);
    assert!(!is_told || contains(input), "the client was told what lies outside");
    assert_eq!(fs::read(&outside).expect("the file outside is there"), SECRET);
    let beside = fs::read_dir(folder.path()).expect("the folder is there").count();
    assert_eq!(beside, 2, "the client has made a file outside");
}

/// Whether the client knows the secret already.
fn contains(input: &[u8]) -> bool {
    input.windows(4).any(|part| part == &SECRET[..4])
}
