//! Commands inside L1, over one multiplexed SSH connection for each user.
//!
//! A command is a line for the user's shell. It gets its own session in L1, whose leader's process id is kept in a file
//! there, so that a signal or a time-out reaches the command and everything it has started.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{RigError, at};
use crate::machine::spawn_from_lasting_thread;

/// A user of L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// May use /dev/kvm, and nothing else out of the ordinary.
    Builder,
    /// For the judges: QEMU, mounts and the like.
    Root,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Root => "root",
        }
    }
}

/// The SSH connections to one L1.
#[derive(Debug)]
pub(crate) struct Sessions {
    folder: PathBuf,
    l1: PathBuf,
    port: u16,
    masters: Mutex<Vec<(User, Child)>>,
}

impl Sessions {
    pub(crate) fn new(folder: &Path, l1: &Path, port: u16) -> Self {
        Self {
            folder: folder.to_path_buf(),
            l1: l1.to_path_buf(),
            port,
            masters: Mutex::new(Vec::new()),
        }
    }

    /// Connects the user unless that is done; gives up at the limit.
    pub(crate) fn connect(&self, user: User, limit: Duration) -> Result<(), RigError> {
        let mut masters = self.masters.lock().unwrap_or_else(|poison| poison.into_inner());
        if masters.iter().any(|(known, _)| *known == user) {
            return Ok(());
        }
        let deadline = Instant::now() + limit;
        let socket = self.folder.join(user.name());
        while Instant::now() < deadline {
            if !self.answers() {
                continue;
            }
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL", "ssh"])
                .args(self.options(user))
                .current_dir(&self.folder);
            command
                .args(["-o", "ControlMaster=yes", "-o", "ConnectTimeout=10", "-N"])
                .arg(destination(user));
            let log = self.folder.join("ssh.log");
            let log_file = std::fs::File::create(&log).map_err(at(&log))?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
            let mut master = spawn_from_lasting_thread(command)?;
            while Instant::now() < deadline && matches!(master.try_wait(), Ok(None)) {
                if socket.exists() {
                    masters.push((user, master));
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(10));
            }
            let _ = master.kill();
            let _ = master.wait();
            thread::sleep(Duration::from_millis(50));
        }
        let tail = crate::cache::last_lines(&self.folder.join("ssh.log"), 5);
        Err(RigError::Boot {
            reason: format!("no SSH as {} after {} s", user.name(), limit.as_secs()),
            tail,
        })
    }

    /// Tells whether sshd sends its banner within half a second. QEMU takes connections also while it still loads a
    /// snapshot and then forgets them, and ssh would wait its whole time-out for such a one.
    fn answers(&self) -> bool {
        let limit = Duration::from_millis(500);
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            thread::sleep(Duration::from_millis(20));
            return false;
        };
        let mut banner = [0u8; 4];
        stream.set_read_timeout(Some(limit)).is_ok()
            && stream.read_exact(&mut banner).is_ok()
            && &banner == b"SSH-"
    }

    fn options(&self, user: User) -> Vec<String> {
        let mut words: Vec<String> =
            ["-F", "none", "-q", "-p"].iter().map(ToString::to_string).collect();
        words.push(self.port.to_string());
        words.extend(["-i".to_string(), self.l1.join("key").display().to_string()]);
        for option in [
            format!("UserKnownHostsFile={}", self.l1.join("known_hosts").display()),
            format!("ControlPath={}", user.name()),
            "HostKeyAlias=rig".into(),
            "BatchMode=yes".into(),
            "IdentitiesOnly=yes".into(),
            "StrictHostKeyChecking=yes".into(),
        ] {
            words.extend(["-o".to_string(), option]);
        }
        words
    }

    /// Returns an ssh process's command for a line of the user's shell; the connection must be up.
    pub(crate) fn ssh(&self, user: User, pty: bool, line: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(user)).args(["-o", "ControlMaster=no"]).current_dir(&self.folder);
        command.arg(if pty { "-tt" } else { "-T" }).arg(destination(user)).arg(line);
        command
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let masters = self.masters.get_mut().unwrap_or_else(|poison| poison.into_inner());
        for (_, master) in masters {
            let _ = master.kill();
            let _ = master.wait();
        }
    }
}

fn destination(user: User) -> String {
    format!("{}@127.0.0.1", user.name())
}

/// A command to run in L1; see [`Rig::command`](crate::Rig::command).
#[derive(Debug)]
pub struct RemoteCommand<'a> {
    sessions: &'a Sessions,
    line: String,
    user: User,
    env: Vec<(String, String)>,
    folder: Option<String>,
    stdin: Vec<u8>,
    timeout: Duration,
    pty: bool,
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; 255 also when a signal ended the command, and 124 at a time-out.
    pub status: i32,
    /// Standard output, and with a pty standard error too.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end, SSH included (a few hundredths of a second).
    pub duration: Duration,
}

impl Output {
    /// Returns the output of a command that must have ended with `status`.
    ///
    /// # Panics
    /// When it ended otherwise: with all that it wrote, for the test's log.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert!(
            self.status == status,
            "`{}` ended with {} instead of {status} after {:.1} s\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.duration.as_secs_f32(),
            self.stdout,
            self.stderr
        );
        self
    }
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl<'a> RemoteCommand<'a> {
    pub(crate) fn new(sessions: &'a Sessions, line: String) -> Self {
        let timeout = Duration::from_secs(600);
        Self {
            sessions,
            line,
            user: User::Builder,
            env: vec![],
            folder: None,
            stdin: vec![],
            timeout,
            pty: false,
        }
    }

    /// Runs it as root rather than as `builder`.
    #[must_use]
    pub fn root(mut self) -> Self {
        self.user = User::Root;
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory; the user's home otherwise.
    #[must_use]
    pub fn folder(mut self, folder: &str) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Gives bytes to standard input; it is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Kills the command after this time (10 minutes otherwise).
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Gives the command a terminal.
    #[must_use]
    pub fn pty(mut self) -> Self {
        self.pty = true;
        self
    }

    /// Runs the command to its end.
    pub fn run(self) -> Result<Output, RigError> {
        let timeout = self.timeout;
        Ok(self.spawn()?.wait(timeout))
    }

    /// Starts the command; its output can be waited for while it runs.
    pub fn spawn(self) -> Result<Process<'a>, RigError> {
        self.sessions.connect(self.user, Duration::from_secs(60))?;
        let id = COUNTER.fetch_add(1, Ordering::Relaxed);
        let pid_file = format!("/tmp/.rig-{}-{id}", self.user.name());
        let mut line = format!("echo $$ > {pid_file}; ");
        if self.pty {
            // Without a terminal on this side, ssh asks for one in which no key means anything.
            line.push_str("stty sane rows 24 cols 80; ");
        }
        if let Some(folder) = &self.folder {
            line.push_str(&format!("cd {} || exit 126; ", quote(folder)));
        }
        for (name, value) in &self.env {
            line.push_str(&format!("export {name}={}; ", quote(value)));
        }
        line.push_str(&self.line);
        let mut command = self.sessions.ssh(self.user, self.pty, &line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|source| RigError::Program { program: "ssh".into(), source })?;
        let streams = Arc::new(Streams::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(follow(pipe, streams.clone(), |text| &mut text.stdout));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(follow(pipe, streams.clone(), |text| &mut text.stderr));
        }
        let mut stdin = child.stdin.take();
        if !self.pty
            && let Some(mut pipe) = stdin.take()
        {
            let bytes = self.stdin;
            thread::spawn(move || pipe.write_all(&bytes));
        } else if let Some(pipe) = &mut stdin {
            let _ = pipe.write_all(&self.stdin);
        }
        Ok(Process {
            sessions: self.sessions,
            user: self.user,
            line: self.line,
            pid_file,
            child,
            stdin,
            streams,
            readers,
            start,
        })
    }
}

/// What a command has written so far.
#[derive(Debug, Default)]
struct Written {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

#[derive(Debug, Default)]
struct Streams {
    text: Mutex<Written>,
    grown: Condvar,
}

fn follow(
    mut pipe: impl Read + Send + 'static,
    streams: Arc<Streams>,
    which: fn(&mut Written) -> &mut Vec<u8>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0u8; 16384];
        while let Ok(count) = pipe.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let mut text = streams.text.lock().unwrap_or_else(|poison| poison.into_inner());
            which(&mut text).extend_from_slice(&buffer[..count]);
            streams.grown.notify_all();
        }
    })
}

/// A command that runs in L1.
#[derive(Debug)]
pub struct Process<'a> {
    sessions: &'a Sessions,
    user: User,
    line: String,
    pid_file: String,
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    streams: Arc<Streams>,
    readers: Vec<JoinHandle<()>>,
    start: Instant,
}

impl Process<'_> {
    /// Waits until standard output or standard error contains `needle`; tells whether it does.
    pub fn wait_for(&mut self, needle: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut text = self.streams.text.lock().unwrap_or_else(|poison| poison.into_inner());
        loop {
            if contains(&text.stdout, needle) || contains(&text.stderr, needle) {
                return true;
            }
            let ended = matches!(self.child.try_wait(), Ok(Some(_)))
                && self.readers.iter().all(JoinHandle::is_finished);
            if ended || Instant::now() > deadline {
                return false;
            }
            let waited = self.streams.grown.wait_timeout(text, Duration::from_millis(50));
            text = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// Returns standard output and standard error so far.
    pub fn so_far(&self) -> (String, String) {
        let text = self.streams.text.lock().unwrap_or_else(|poison| poison.into_inner());
        (lossy(&text.stdout), lossy(&text.stderr))
    }

    /// Sends a signal, such as `INT` or `KILL`, to the command and all that it has started.
    pub fn signal(&self, name: &str) -> Result<(), RigError> {
        let line = format!("kill -{name} -- -$(cat {})", self.pid_file);
        let output = RemoteCommand::new(self.sessions, line.clone());
        let output = if self.user == User::Root { output.root() } else { output };
        let output = output.run()?;
        if output.status == 0 {
            return Ok(());
        }
        Err(RigError::Guest { command: line, stderr: output.stderr })
    }

    /// Types bytes on the command's terminal; `\x03` is Ctrl-C. Only for a command with a pty.
    pub fn type_keys(&mut self, keys: &str) -> Result<(), RigError> {
        let pipe = self.stdin.as_mut();
        let result =
            pipe.map_or(Ok(()), |pipe| pipe.write_all(keys.as_bytes()).and_then(|()| pipe.flush()));
        result.map_err(at("the command's terminal"))
    }

    /// Waits for the end; at the limit kills the command and all that it has started, and gives the status 124.
    pub fn wait(mut self, limit: Duration) -> Output {
        let deadline = self.start + limit;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.code().unwrap_or(255),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = self.signal("KILL");
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break 124;
                }
            }
        };
        let duration = self.start.elapsed();
        for reader in std::mem::take(&mut self.readers) {
            let _ = reader.join();
        }
        let (stdout, stderr) = self.so_far();
        Output { command: self.line.clone(), status, stdout, stderr, duration }
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal("KILL");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn contains(text: &[u8], needle: &str) -> bool {
    needle.is_empty() || text.windows(needle.len()).any(|window| window == needle.as_bytes())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_survives_a_shell() {
        for word in ["", "a b", "it's", "$HOME `id` \"x\" \\"] {
            let output = Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
