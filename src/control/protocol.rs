//! What is spoken over the socket: one line of JSON asks, one line answers. After the answer to `nc` and
//! `console` the connection carries bytes, in both directions, until both sides have ended.
//!
//! Lines are read byte by byte, so that nothing of what follows is lost; they are short and few.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest request, with its end.
pub const REQUEST_LIMIT: usize = 4 << 10;
/// Longest answer, with its end.
pub const REPLY_LIMIT: usize = 256 << 10;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What the build is doing: a [`Status`].
    Status {},
    /// A connection to a TCP port of the guest; bytes follow.
    Nc {
        /// The port.
        port: u16,
    },
    /// The serial console, its last bytes first; bytes follow.
    Console {},
    /// What an SSH client needs: a [`Login`].
    Login {},
    /// To stop, as by Ctrl-C. The connection ends when the build has.
    Stop {},
    /// To run the failed step again: what will be done, in words.
    Retry {},
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    /// It is done, or what was asked for.
    Ok(T),
    /// It is refused.
    Refused(Refusal),
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong, as text of one or more lines.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(message: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), hint: None }
    }
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The build's id.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// The profile's file, absolute.
    pub profile: PathBuf,
    /// The image's name.
    pub name: String,
    /// The folder that the result will be in; none of a build without images.
    pub output: Option<PathBuf>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// What it does now.
    pub state: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Whether a step has failed and the guest is kept.
    pub kept: bool,
}

/// What an SSH client needs to log in to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The file of the private key, in OpenSSH form.
    pub key: PathBuf,
    /// The guest's host key, as a `.pub` file has it.
    pub host_key: String,
    /// A configuration for OpenSSH in which the guest is the host `guest`.
    pub config: PathBuf,
}

/// A serial console, as one who looks at it gets it.
pub struct Console {
    /// What it showed last.
    pub recent: Vec<u8>,
    /// What it shows from now on. Pieces are lost for a reader that is too slow.
    pub output: Receiver<Vec<u8>>,
    /// Types.
    pub input: Keyboard,
}

/// Takes what is typed.
pub type Keyboard = Box<dyn FnMut(&[u8]) + Send>;

/// Reads a line and what it says. At most `limit` bytes are read, and until `deadline`.
///
/// # Errors
/// The stream's; `InvalidData` for what is no line or does not say what it should.
pub fn read<T: DeserializeOwned>(
    mut stream: &UnixStream,
    limit: usize,
    deadline: Option<Instant>,
) -> io::Result<T> {
    let mut line = Vec::new();
    loop {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // None at all would mean to wait for ever.
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) if line.len() + 1 < limit => line.push(byte[0]),
            Ok(_) => {
                let text = format!("a line has more than {limit} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    stream.set_read_timeout(None)?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Writes `value` as a line.
///
/// # Errors
/// The stream's.
pub fn write(mut stream: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(bytes: &[u8]) -> io::Result<Request> {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(bytes).unwrap();
        drop(one);
        read(&other, REQUEST_LIMIT, None)
    }

    #[test]
    fn requests_are_what_the_documentation_says() {
        assert_eq!(read_of(b"{\"op\":\"status\"}\n").unwrap(), Request::Status {});
        assert_eq!(read_of(b"{\"op\":\"nc\",\"port\":22}\n").unwrap(), Request::Nc { port: 22 });
        for wrong in [
            &b"{\"op\":\"nc\",\"port\":65536}\n"[..],
            b"{\"op\":\"nc\"}\n",
            b"{\"op\":\"bake\"}\n",
            b"{\"op\":\"status\",\"more\":1}\n",
            b"\n",
            b"\xff\xfe\n",
            b"GET / HTTP/1.1\n",
        ] {
            let error = read_of(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{wrong:?}: {error}");
        }
    }

    #[test]
    fn a_line_has_an_end_and_a_greatest_length() {
        let long = [b"{\"op\":\"status\"".as_slice(), &[b' '; REQUEST_LIMIT], b"}\n"].concat();
        assert_eq!(read_of(&long).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(read_of(b"{\"op\":\"status\"}").unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(read_of(b"").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_follows_a_line_is_left_where_it_is() {
        let (one, mut other) = UnixStream::pair().unwrap();
        (&one).write_all(b"{\"op\":\"console\"}\nSSH-2.0-x").unwrap();
        drop(one);
        assert_eq!(read::<Request>(&other, REQUEST_LIMIT, None).unwrap(), Request::Console {});
        let mut rest = String::new();
        other.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "SSH-2.0-x");
    }

    #[test]
    fn a_peer_that_dribbles_is_waited_for_no_longer_than_agreed() {
        let (one, other) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        let dribble = std::thread::spawn(move || while (&one).write_all(b" ").is_ok() {});
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = read::<Request>(&other, usize::MAX, Some(deadline)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(other);
        dribble.join().unwrap();
    }
}
