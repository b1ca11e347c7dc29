//! A service that is a command of the host's: one process for each connection, whose standard input
//! and output are the stream. What it writes to standard error goes to whoever listens.
//!
//! A process that outlives its connection finds its input at an end and its output closed; one that
//! minds neither is killed, with all of its group, when the service goes.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Service;

/// Processes at a time; a further connection is refused.
const MAX_PROCESSES: usize = 64;
/// Longest line of standard error that is passed on, in bytes.
const MAX_LINE: u64 = 400;

type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// Runs a command for each connection.
pub struct CommandService {
    arguments: Vec<String>,
    folder: PathBuf,
    listener: Listener,
    running: Arc<Running>,
}

impl fmt::Debug for CommandService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandService({:?})", self.arguments)
    }
}

/// The process groups that run, by the ID of their first process. Zero stands for one that is being
/// started.
#[derive(Default)]
struct Running(Mutex<Groups>);

#[derive(Default)]
struct Groups {
    list: Vec<u32>,
    closed: bool,
}

impl CommandService {
    /// Makes a service of a program and its arguments, which is run in `folder`. `listener` hears
    /// each line of standard error, and why a process could not be started.
    ///
    /// # Panics
    /// Panics when `arguments` is empty.
    pub fn new(
        arguments: Vec<String>,
        folder: PathBuf,
        listener: impl Fn(&str) + Send + Sync + 'static,
    ) -> CommandService {
        assert!(!arguments.is_empty(), "a command has a program");
        let running = Arc::default();
        CommandService { arguments, folder, listener: Arc::new(listener), running }
    }
}

impl Service for CommandService {
    fn connect(&self) -> io::Result<UnixStream> {
        let place = self.running.take_place()?;
        let (ours, theirs) = UnixStream::pair()?;
        let stdin: OwnedFd = theirs.try_clone()?.into();
        let mut command = Command::new(&self.arguments[0]);
        command.args(&self.arguments[1..]).current_dir(&self.folder).process_group(0);
        command.stdin(stdin).stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
        let listener = Arc::clone(&self.listener);
        let program = self.arguments[0].clone();
        // Starting a process takes too long for the network's thread.
        std::thread::Builder::new().name("forward".into()).spawn(move || {
            match command.spawn() {
                Ok(child) => {
                    // The command holds the stream's other end, which must be the process's alone.
                    drop(command);
                    place.started(&child);
                    serve(child, &listener);
                }
                Err(error) => listener(&format!("cannot start {program}: {error}")),
            }
        })?;
        Ok(ours)
    }
}

impl Drop for CommandService {
    fn drop(&mut self) {
        let mut groups = self.running.lock();
        groups.closed = true;
        groups.list.iter().for_each(|group| kill(*group));
    }
}

/// Passes a process's complaints on until it ends.
fn serve(mut child: Child, listener: &Listener) {
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line) {
            listener(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
    // Waiting fails for a process that somebody else has waited for, which is over as well.
    let _ = child.wait();
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_place(self: &Arc<Running>) -> io::Result<Place> {
        let mut groups = self.lock();
        if groups.list.len() >= MAX_PROCESSES {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        groups.list.push(0);
        Ok(Place { running: Arc::clone(self), group: std::cell::Cell::new(0) })
    }
}

/// Gives its process's place back, however the thread ends.
struct Place {
    running: Arc<Running>,
    group: std::cell::Cell<u32>,
}

impl Place {
    fn started(&self, child: &Child) {
        let mut groups = self.running.lock();
        self.group.set(child.id());
        if let Some(place) = groups.list.iter_mut().find(|group| **group == 0) {
            *place = child.id();
        }
        if groups.closed {
            kill(child.id());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut groups = self.running.lock();
        if let Some(at) = groups.list.iter().position(|group| *group == self.group.get()) {
            groups.list.swap_remove(at);
        }
    }
}

/// Kills a process group of ours; zero would be our own.
fn kill(group: u32) {
    if let Ok(group @ 1..) = libc::pid_t::try_from(group) {
        // SAFETY: the call takes no pointer. A group that has ended already needs no signal, and its
        // number is not given anew while its first process has not been waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    fn service(arguments: &[&str]) -> (CommandService, mpsc::Receiver<String>) {
        let (tell, told) = mpsc::channel();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let listener = move |line: &str| drop(tell.send(line.to_string()));
        (CommandService::new(arguments, "/".into(), listener), told)
    }

    fn talk(service: &CommandService, text: &str) -> String {
        let mut stream = service.connect().unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn each_connection_has_a_process_with_the_stream_as_input_and_output() {
        let (service, told) = service(&["sh", "-c", "tr a-z A-Z; echo $$; pwd >&2"]);
        let answers = [talk(&service, "hello "), talk(&service, "hello ")];
        assert!(answers.iter().all(|answer| answer.starts_with("HELLO ")), "{answers:?}");
        assert_ne!(answers[0], answers[1], "two processes");
        assert_eq!(told.recv_timeout(Duration::from_secs(20)).unwrap(), "/");
    }

    #[test]
    fn a_command_that_cannot_be_started_closes_the_stream_and_says_why() {
        let (service, told) = service(&["/nonexistent/program"]);
        assert_eq!(talk(&service, ""), "");
        let told = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(told.contains("/nonexistent/program"), "{told}");
    }

    #[test]
    fn processes_are_limited_and_killed_with_their_children_when_the_service_goes() {
        let (service, _told) = service(&["sh", "-c", "sleep 1000 & sleep 1000; true"]);
        let mut streams: Vec<_> = (0..MAX_PROCESSES).map(|_| service.connect().unwrap()).collect();
        assert!(service.connect().is_err());
        drop(service);
        for stream in &mut streams {
            // At an end only when nobody holds the other end any more.
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn a_place_comes_back_when_its_process_has_ended() {
        let (service, _told) = service(&["true"]);
        assert_eq!(talk(&service, ""), "");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !service.running.lock().list.is_empty() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
