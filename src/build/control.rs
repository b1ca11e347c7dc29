//! A running build's side of its control socket: what it is doing, its guest, and what may be asked of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use kvmbake_net::NatHandle;
use kvmbake_provision::key::BuildKey;
use kvmbake_provision::session::HostKey;
use kvmbake_vmm::Handle;
use tokio::sync::{mpsc, oneshot};

use super::cancel::Cancel;
use super::console::Console;
use super::hold::Request;
use crate::control::{self, Folder, Login, Refusal, Serve, Server, Status, openssh};
use crate::error::Error;
use crate::profile::{Profile, absolute};
use crate::report::{Event, Report};
use crate::secret::Secrets;

/// How long a connection to a port of the guest may take.
const DIAL: Duration = Duration::from_secs(30);

/// What others may know of a build and do to it. Clones are the same one.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

struct Shared {
    secrets: Secrets,
    cancel: Cancel,
    // Each lock is held alone, but for `folder`, within which `status` is read.
    folder: Mutex<Option<Folder>>,
    status: Mutex<Status>,
    guest: Mutex<Guest>,
    /// Who hears of those that want a failed step to run again.
    keeper: Mutex<Option<mpsc::UnboundedSender<Request>>>,
}

/// The guest as it is now.
#[derive(Default)]
struct Guest {
    console: Option<Console>,
    running: Option<(NatHandle, Handle)>,
    login: Option<(String, Arc<BuildKey>, HostKey)>,
}

/// A socket is there until this is dropped.
pub struct Opened {
    control: Control,
    server: Option<Server>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.server = None;
        *lock(&self.control.0.guest) = Guest::default();
        *lock(&self.control.0.folder) = None;
    }
}

impl Control {
    /// Returns what is known of a build that has not begun.
    pub fn new(profile: &Profile, cancel: Cancel) -> Control {
        let path = profile.source.path();
        let status = Status {
            id: String::new(),
            pid: std::process::id(),
            profile: absolute(path),
            name: profile.image.name.clone(),
            output: None,
            started: now(),
            state: "beginning".into(),
            since: now(),
            kept: false,
        };
        Control(Arc::new(Shared {
            secrets: profile.secrets.clone(),
            cancel,
            folder: Mutex::default(),
            status: Mutex::new(status),
            guest: Mutex::default(),
            keeper: Mutex::default(),
        }))
    }

    /// Opens the socket. `output` is where the build's result will be.
    ///
    /// # Errors
    /// The folder or the socket cannot be made.
    pub fn open(&self, output: Option<&Path>) -> Result<Opened, Error> {
        let folder = Folder::create().map_err(|(path, error)| not_created(&path, &error))?;
        self.open_in(folder, output)
    }

    fn open_in(&self, folder: Folder, output: Option<&Path>) -> Result<Opened, Error> {
        let socket = folder.socket();
        {
            let mut status = lock(&self.0.status);
            status.id = folder.id().to_string();
            status.output = output.map(absolute);
        }
        *lock(&self.0.folder) = Some(folder);
        let mut opened = Opened { control: self.clone(), server: None };
        self.write_facts();
        let server = Server::start(&socket, Arc::new(self.clone()));
        opened.server = Some(server.map_err(|error| not_created(&socket, &error))?);
        Ok(opened)
    }

    /// Returns the build's id; none while there is no socket.
    pub fn id(&self) -> Option<String> {
        lock(&self.0.folder).as_ref().map(|folder| folder.id().to_string())
    }

    /// The build's guest has this console.
    pub fn set_console(&self, console: Console) {
        *lock(&self.0.guest) = Guest { console: Some(console), ..Guest::default() };
    }

    /// The guest runs on this machine, in this network.
    pub fn set_running(&self, nat: NatHandle, machine: Handle) {
        lock(&self.0.guest).running = Some((nat, machine));
    }

    /// The guest has been logged in to.
    pub fn set_login(&self, user: &str, key: Arc<BuildKey>, host_key: HostKey) {
        lock(&self.0.guest).login = Some((user.to_string(), key, host_key));
    }

    /// The build is doing something else now.
    pub fn set_state(&self, state: &str, kept: bool) {
        {
            let mut status = lock(&self.0.status);
            status.state = self.0.secrets.redact(state).into_owned();
            status.since = now();
            status.kept = kept;
        }
        self.write_facts();
    }

    /// The guest is kept after a failure; those who want to try again are told of.
    pub fn keep(&self, state: &str) -> mpsc::UnboundedReceiver<Request> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *lock(&self.0.keeper) = Some(sender);
        self.set_state(state, true);
        receiver
    }

    /// Writes what OpenSSH's programs need to log in to the guest, in files of the build's folder that
    /// are its owner's alone: the host `guest` of the configuration is the guest.
    ///
    /// # Errors
    /// Nobody has logged in yet, there is no folder, or a file cannot be written.
    pub fn openssh(&self) -> Result<Login, Error> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Error::input("Cannot write the guest's configuration for OpenSSH").because(error)
        };
        let login = lock(&self.0.guest).login.clone();
        let Some((user, key, host_key)) = login else {
            return Err(Error::guest("The guest has not been logged in to yet"));
        };
        let folder = lock(&self.0.folder);
        let Some(folder) = folder.as_ref() else {
            return Err(Error::input("The build has no control socket to reach its guest by"));
        };
        let private = key.private_openssh().map_err(|error| failed(&error))?;
        let write = |name, bytes: &[u8]| folder.write(name, bytes).map_err(|error| failed(&error));
        let key = write("key", private.as_bytes())?;
        let known_hosts =
            write("known_hosts", openssh::known_hosts(host_key.openssh()).as_bytes())?;
        let text = openssh::config(&user, &key, &known_hosts, &program(), &folder.socket());
        let config = write("ssh_config", text.map_err(|error| failed(&error))?.as_bytes())?;
        Ok(Login { user, key, host_key: host_key.openssh().to_string(), config })
    }

    fn write_facts(&self) {
        let folder = lock(&self.0.folder);
        let Some(folder) = folder.as_ref() else { return };
        let facts = serde_json::to_vec_pretty(&*lock(&self.0.status)).unwrap_or_default();
        if let Err(error) = folder.write_facts(&facts) {
            tracing::warn!("Cannot write what the build is doing: {error}");
        }
    }
}

/// Returns where this program is. One that was replaced since it was started is still at hand there.
fn program() -> PathBuf {
    let running = || PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    std::env::current_exe().ok().filter(|path| path.is_file()).unwrap_or_else(running)
}

impl Serve for Control {
    fn status(&self) -> Status {
        lock(&self.0.status).clone()
    }

    fn dial(&self, port: u16) -> Result<std::os::unix::net::UnixStream, Refusal> {
        let nat = lock(&self.0.guest).running.as_ref().map(|(nat, _)| nat.clone());
        let nat = nat.ok_or_else(no_guest)?;
        nat.dial(port, DIAL).map_err(|error| Refusal::new(error.to_string()))
    }

    fn console(&self) -> Result<control::Console, Refusal> {
        let console = lock(&self.0.guest).console.clone().ok_or_else(no_guest)?;
        let (recent, output) = console.view();
        let control = self.clone();
        // The machine is another one after a reboot.
        let input = move |bytes: &[u8]| {
            let machine = lock(&control.0.guest).running.as_ref().map(|(_, m)| m.clone());
            if let Some(machine) = machine {
                machine.console_input(bytes);
            }
        };
        Ok(control::Console { recent, output, input: Box::new(input) })
    }

    fn login(&self) -> Result<Login, Refusal> {
        self.openssh().map_err(|error| refusal(&error))
    }

    fn stop(&self) {
        self.0.cancel.set();
    }

    fn retry(&self) -> Result<String, Refusal> {
        let keeper = lock(&self.0.keeper).clone();
        let (request, answer) = oneshot::channel();
        if keeper.is_none_or(|keeper| keeper.send(request).is_err()) {
            return Err(Refusal {
                message: "Nothing has failed that keeps the build waiting".into(),
                hint: Some("`kvmbake ps` says what it is doing".into()),
            });
        }
        let gone = |_| Err(Refusal::new("The build goes on already, or ends"));
        answer.blocking_recv().unwrap_or_else(gone)
    }
}

fn not_created(path: &Path, error: &std::io::Error) -> Error {
    Error::input(format!("Cannot create {}", path.display())).because(error)
}

fn no_guest() -> Refusal {
    Refusal {
        message: "The build has no guest at this moment".into(),
        hint: Some("`kvmbake ps` says what it is doing".into()),
    }
}

/// Returns an error as another process is told of it.
pub fn refusal(error: &Error) -> Refusal {
    let faults = error.faults.iter().map(|fault| format!("{}\n{}", fault.message, fault.place));
    let own = Some(&error.message).filter(|message| !message.is_empty());
    let parts: Vec<String> = faults.chain(own.cloned()).collect();
    let message = std::iter::once(parts.join("\n")).chain(error.causes.iter().cloned());
    let hint = error.hint.clone().or_else(|| error.faults.first()?.hint.clone());
    Refusal { message: message.collect::<Vec<_>>().join(": "), hint }
}

/// A report that tells the control socket what the build is doing.
pub struct Told {
    inner: Arc<dyn Report>,
    control: Control,
}

impl Told {
    /// Passes everything on to `inner`.
    pub fn new(inner: Arc<dyn Report>, control: Control) -> Arc<Told> {
        Arc::new(Told { inner, control })
    }
}

impl Report for Told {
    fn event(&self, event: Event<'_>) {
        if let Event::Started { stage, step, detail } = event {
            let state = match step {
                Some(number) => format!("step {number} ({detail})"),
                None => stage.name().to_string(),
            };
            self.control.set_state(&state, false);
        }
        self.inner.event(event);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Source;
    use crate::report::{Notes, Stage};
    use std::os::unix::fs::PermissionsExt;

    fn control(cancel: &Cancel) -> Control {
        let text = "[image]\nname = \"web\"\nsource = \"b\"\n[[output]]\nformat = \"raw\"\n";
        let profile = Profile::parse(Source::new("/srv/web.toml", text)).unwrap();
        profile.secrets.add("hunter2");
        Control::new(&profile, cancel.clone())
    }

    #[test]
    fn what_a_build_does_is_told_by_its_file_too_and_without_secrets() {
        let root = tempfile::tempdir().unwrap();
        let control = control(&Cancel::default());
        let folder = Folder::create_in(root.path()).unwrap();
        let (id, file) = (folder.id().to_string(), folder.path("build.json"));
        let opened = control.open_in(folder, Some(Path::new("/srv/out"))).unwrap();
        let told = Told::new(Arc::new(Notes::default()), control.clone());
        let detail = "say hunter2";
        told.event(Event::Started { stage: Stage::Step, step: Some(2), detail });
        let facts: Status = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(facts, control.status());
        assert_eq!((&*facts.id, &*facts.state), (&*id, "step 2 (say ***)"));
        assert_eq!((facts.pid, facts.kept), (std::process::id(), false));
        drop(opened);
        assert!(!file.exists() && control.id().is_none());
    }

    #[test]
    fn a_retry_is_heard_only_while_a_guest_is_kept() {
        let control = control(&Cancel::default());
        assert!(control.retry().unwrap_err().message.contains("Nothing has failed"));
        let mut requests = control.keep("step 1 (roles) failed, guest kept");
        assert!(control.status().kept);
        let theirs = control.clone();
        let asking = std::thread::spawn(move || theirs.retry());
        let request = requests.blocking_recv().unwrap();
        request.send(Ok("step 1 is tried again".into())).unwrap();
        assert_eq!(asking.join().unwrap().unwrap(), "step 1 is tried again");
        let theirs = control.clone();
        let asking = std::thread::spawn(move || theirs.retry());
        // Another was faster, and the build goes on.
        drop(requests.blocking_recv().unwrap());
        assert!(asking.join().unwrap().unwrap_err().message.contains("goes on already"));
        drop(requests);
        assert!(control.retry().is_err());
    }

    #[test]
    fn a_profile_s_fault_is_told_with_its_place() {
        let text = "[image]\nname = 1\n";
        let faults = Profile::parse(Source::new("web.toml", text)).unwrap_err();
        let refusal = refusal(&Error::profile(faults));
        assert!(refusal.message.contains("web.toml:2:"), "{}", refusal.message);
    }

    #[test]
    fn stop_is_ctrl_c() {
        let cancel = Cancel::default();
        control(&cancel).stop();
        assert!(cancel.is_set());
    }

    #[test]
    fn the_files_for_openssh_are_the_owner_s_alone_and_there_only_after_a_login() {
        let root = tempfile::tempdir().unwrap();
        let control = control(&Cancel::default());
        let opened = control.open_in(Folder::create_in(root.path()).unwrap(), None).unwrap();
        assert!(control.openssh().unwrap_err().message.contains("not been logged in to"));
        let key = Arc::new(BuildKey::generate("web").unwrap());
        let host_key = HostKey::from_openssh(&BuildKey::generate("x").unwrap().public_openssh());
        control.set_login("debian", key, host_key.clone().unwrap());
        let login = control.openssh().unwrap();
        assert_eq!(login.host_key, host_key.unwrap().openssh());
        for path in [&login.key, &login.config] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        let config = std::fs::read_to_string(&login.config).unwrap();
        assert!(config.contains("User debian\n") && config.contains("/control' %p\n"), "{config}");
        drop(opened);
        assert!(!login.key.exists());
    }
}
