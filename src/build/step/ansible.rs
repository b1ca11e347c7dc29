//! The `ansible` and `ansible_local` actions: a playbook, run by the host's `ansible-playbook` over OpenSSH and
//! `kvmbake nc`, or by the guest's on itself.
//!
//! Values that may be secret are in files of the build's private folder, never in arguments.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmbake_provision::session::SudoPassword;
use kvmbake_provision::step::{
    CheckContext, CheckError, Guest, Log, ShellSource, ShellStep, Step, StepError, StepFuture,
    StepResult, Upload, UploadStep, tree,
};
use kvmbake_provision::{Privilege, shell_word};
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::{Means, host, process};
use crate::control::{Login, openssh};
use crate::profile::{Ansible, AnsibleLocal, Playbook, absolute, folder_of};

/// Where a playbook lies in the guest, from the login's home.
const IN_GUEST: &str = ".kvmbake-ansible";
/// The folder of the build's own files.
const FOLDER: &str = "ansible";
const INVENTORY: &str = "inventory.json";
const VARIABLES: &str = "extra-vars.json";
/// How long the end of the shared connection may take.
const GOODBYE: Duration = Duration::from_secs(10);

/// Returns what of a playbook's sources is there.
pub fn present(playbook: &Playbook) -> Vec<String> {
    let folder = playbook.folder();
    let is_there = |source: &str| match kvmbake_provision::glob::is_pattern(source) {
        true => tree::entries(folder, source, "/").is_ok(),
        false => folder.join(source).exists(),
    };
    let sources = playbook.sources().into_iter();
    sources
        .filter(|(source, needed)| *needed || is_there(source))
        .map(|(source, _)| source)
        .collect()
}

/// A playbook that the host runs.
pub struct AnsibleStep {
    run: Run,
    login: Option<Login>,
    python: Option<String>,
    env: Vec<(String, String)>,
}

/// A playbook that the guest runs.
pub struct LocalStep {
    run: Run,
}

/// What both have in common.
struct Run {
    playbook: Playbook,
    /// What of its sources is there.
    sources: Vec<String>,
    /// The build's own folder for it, absolute: Ansible runs in the playbook's.
    files: PathBuf,
    /// Where it lies in the guest.
    in_guest: String,
    /// What sudo asks the login for.
    sudo_password: Option<SudoPassword>,
}

/// Returns the step that the host runs.
pub fn step(ansible: &Ansible, means: &Means) -> AnsibleStep {
    AnsibleStep {
        run: Run::new(&ansible.playbook, means),
        login: means.login.clone(),
        python: ansible.python.clone(),
        env: ansible.env.clone(),
    }
}

/// Returns the step that the guest runs.
pub fn local(ansible: &AnsibleLocal, means: &Means) -> LocalStep {
    LocalStep { run: Run::new(&ansible.playbook, means) }
}

impl Run {
    fn new(playbook: &Playbook, means: &Means) -> Run {
        Run {
            playbook: playbook.clone(),
            sources: present(playbook),
            files: absolute(&means.scratch.join(FOLDER)),
            in_guest: IN_GUEST.into(),
            sudo_password: means.sudo_password.clone(),
        }
    }

    /// The requirements of its roles and collections.
    fn galaxy(&self) -> Option<&Path> {
        self.playbook.galaxy.as_ref().map(|path| path.value.as_path())
    }

    fn check(&self) -> Result<(), CheckError> {
        for named in std::iter::once(&self.playbook.file).chain(&self.playbook.galaxy) {
            let path = named.value.clone();
            if let Err(source) = File::open(&path) {
                return Err(CheckError::NotRead { path, source });
            }
            if !path.is_file() {
                return Err(CheckError::NotAFile { path });
            }
        }
        for source in &self.sources {
            tree::entries(self.playbook.folder(), source, "/")?;
        }
        Ok(())
    }

    /// The rest of the step's time.
    fn left(&self, begun: Instant) -> Option<Duration> {
        self.playbook.timeout.map(|limit| limit.saturating_sub(begun.elapsed()))
    }

    /// Runs the commands that come before the playbook.
    async fn prepare(&self, guest: &Guest, log: &mut dyn Log) -> Result<(), StepError> {
        if self.playbook.bootstrap.is_empty() {
            return Ok(());
        }
        let commands = ShellSource::Inline(self.playbook.bootstrap.clone());
        let privilege = Privilege::Root;
        let shell =
            ShellStep { privilege, timeout: self.playbook.timeout, ..ShellStep::new(commands) };
        shell.run(guest, log).await.map(|_| ())
    }

    /// The inventory: JSON, which the YAML inventory plugin reads.
    fn inventory(&self, mut variables: Map<String, Value>) -> Value {
        if self.playbook.r#become {
            variables.insert("ansible_become".into(), true.into());
        }
        if let Some(password) = &self.sudo_password {
            variables.insert("ansible_become_password".into(), literal(password.reveal()));
        }
        let groups = self.playbook.groups.iter().map(|group| {
            (group.clone(), json!({ "hosts": { self.playbook.host_name.clone(): null } }))
        });
        json!({ "all": {
            "hosts": { self.playbook.host_name.clone(): variables },
            "children": groups.collect::<Map<String, Value>>(),
        } })
    }

    /// Writes the inventory and the variables into a folder of the build's own.
    fn write(&self, variables: Map<String, Value>) -> io::Result<()> {
        self.remove();
        fs::DirBuilder::new().mode(0o700).create(&self.files)?;
        let extra = self
            .playbook
            .extra_vars
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()));
        let extra = Value::Object(extra.collect());
        for (name, value) in [(INVENTORY, self.inventory(variables)), (VARIABLES, extra)] {
            let mut options = File::options();
            let options = options.write(true).create_new(true).mode(0o600);
            options.open(self.files.join(name))?.write_all(value.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn remove(&self) {
        // What is not there need not go.
        let _ = fs::remove_dir_all(&self.files);
    }
}

/// Removes the build's own files of a step, however it ends.
struct Cleaned<'r>(&'r Run);

impl Drop for Cleaned<'_> {
    fn drop(&mut self) {
        self.0.remove();
    }
}

fn on_host(what: &str, source: io::Error) -> StepError {
    StepError::Host { what: what.to_owned(), source }
}

impl AnsibleStep {
    /// What the inventory says of the guest.
    fn variables(&self, login: &Login) -> Map<String, Value> {
        let text = |path: &Path| Value::from(path.to_string_lossy().into_owned());
        let mut variables = Map::new();
        let mut set = |name: &str, value: Value| drop(variables.insert(name.into(), value));
        set("ansible_connection", "ssh".into());
        set("ansible_host", openssh::HOST.into());
        set("ansible_user", login.user.clone().into());
        set("ansible_ssh_private_key_file", text(&login.key));
        // The proxy command and the host key are in the configuration.
        set(
            "ansible_ssh_common_args",
            format!("-F {}", shell_word(&login.config.to_string_lossy())).into(),
        );
        set("ansible_python_interpreter", self.python.as_deref().unwrap_or("auto_silent").into());
        variables
    }

    /// Makes a command of Ansible that finds its files.
    fn command(&self, program: &str, login: &Login) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.run.playbook.folder());
        command.envs(host::environment(login));
        // A color is for terminals. A guest on its first boot may be slow: Ansible's own 10 seconds are for servers.
        let settings: [(&str, OsString); 7] = [
            ("ANSIBLE_TIMEOUT", "60".into()),
            ("ANSIBLE_NOCOLOR", "1".into()),
            ("ANSIBLE_RETRY_FILES_ENABLED", "False".into()),
            ("ANSIBLE_HOST_KEY_CHECKING", "True".into()),
            ("ANSIBLE_PIPELINING", "True".into()),
            ("ANSIBLE_SSH_ARGS", "-o ControlMaster=auto -o ControlPersist=60s".into()),
            ("ANSIBLE_SSH_CONTROL_PATH", shared(login).into()),
        ];
        command.envs(settings);
        if self.run.galaxy().is_some() {
            let below = |name: &str, usual: &str| {
                format!("{}:{usual}", self.run.files.join(name).display())
            };
            let roles = "~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles";
            command.env("ANSIBLE_ROLES_PATH", below("roles", roles));
            let collections = "~/.ansible/collections:/usr/share/ansible/collections";
            command.env("ANSIBLE_COLLECTIONS_PATH", below("collections", collections));
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Installs the roles and collections of the requirements.
    async fn install(
        &self,
        login: &Login,
        begun: Instant,
        log: &mut dyn Log,
    ) -> Result<(), StepError> {
        let Some(requirements) = self.run.galaxy() else { return Ok(()) };
        let text =
            fs::read_to_string(requirements).map_err(|error| on_host("ansible-galaxy", error))?;
        for (kind, folder) in kinds(&text) {
            let mut command = self.command("ansible-galaxy", login);
            command.args([kind, "install", "-r"]).arg(absolute(requirements));
            command.arg("-p").arg(self.run.files.join(folder));
            process::run(command, "ansible-galaxy", self.run.left(begun), log).await?;
        }
        Ok(())
    }

    async fn play(&self, guest: &Guest, log: &mut dyn Log) -> Result<StepResult, StepError> {
        let begun = Instant::now();
        let what = "ansible-playbook";
        let missing = || on_host(what, io::Error::other("there is no way to log in to the guest"));
        let login = self.login.as_ref().ok_or_else(missing)?;
        self.run.prepare(guest, log).await?;
        let _cleaned = Cleaned(&self.run);
        self.run.write(self.variables(login)).map_err(|error| on_host(what, error))?;
        self.install(login, begun, log).await?;
        let mut command = self.command("ansible-playbook", login);
        command.arg("-i").arg(self.run.files.join(INVENTORY));
        let mut variables = OsString::from("@");
        variables.push(self.run.files.join(VARIABLES));
        command
            .arg("--extra-vars")
            .arg(variables)
            .args(&self.run.playbook.extra_args)
            .arg(self.run.playbook.name());
        let ended = process::run(command, what, self.run.left(begun), log).await;
        part(login).await;
        ended
    }
}

/// The socket of the connection that the tasks share; its path must be short.
fn shared(login: &Login) -> PathBuf {
    login.config.with_file_name("ansible")
}

/// Ends the shared connection: a layer of the guest should have none open.
async fn part(login: &Login) {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(&login.config).arg("-o");
    let mut path = OsString::from("ControlPath=");
    path.push(shared(login));
    ssh.arg(path).args(["-O", "exit", openssh::HOST]).kill_on_drop(true);
    // One that was never opened, or has ended, need not end.
    let _ = timeout(GOODBYE, ssh.output()).await;
}

/// Which kinds of things a file of requirements names, and the folder for each.
fn kinds(text: &str) -> Vec<(&'static str, &'static str)> {
    let has = |key: &str| text.lines().any(|line| line.trim_end().starts_with(key));
    let mut kinds = Vec::new();
    // The old form is a list of roles.
    if has("roles:") || has("- ") {
        kinds.push(("role", "roles"));
    }
    if has("collections:") {
        kinds.push(("collection", "collections"));
    }
    kinds
}

/// A text that Ansible does not take for a template.
fn literal(text: &str) -> Value {
    match ["{{", "{%", "{#"].iter().any(|begin| text.contains(begin)) {
        true => json!({ "__ansible_unsafe": text }),
        false => text.into(),
    }
}

/// Finds a program as the system would.
fn program(name: &str, hint: &str) -> Result<(), CheckError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|folder| folder.join(name).is_file()) {
        true => Ok(()),
        false => Err(CheckError::Program { name: name.into(), hint: hint.into() }),
    }
}

impl Step for AnsibleStep {
    fn title(&self) -> String {
        format!("ansible: {}", self.run.playbook.name())
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        let hint = "install Ansible (Debian: ansible-core), or run the playbook in the guest by `ansible_local`";
        program("ansible-playbook", hint)?;
        program("ssh", "install OpenSSH's client (Debian: openssh-client)")?;
        if self.run.galaxy().is_some() {
            program("ansible-galaxy", hint)?;
        }
        self.run.check()
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(self.play(guest, log))
    }
}

impl Step for LocalStep {
    fn title(&self) -> String {
        format!("ansible_local: {}", self.run.playbook.name())
    }

    fn check(&self, _: &CheckContext) -> Result<(), CheckError> {
        self.run.check()
    }

    fn run<'a>(&'a self, guest: &'a Guest, log: &'a mut dyn Log) -> StepFuture<'a> {
        Box::pin(async move {
            let begun = Instant::now();
            self.run.prepare(guest, log).await?;
            let _cleaned = Cleaned(&self.run);
            let local = [("ansible_connection", "local")];
            let local = local.map(|(name, value)| (name.to_owned(), Value::from(value)));
            let written = self.run.write(local.into_iter().collect());
            written.map_err(|error| on_host("ansible_local", error))?;
            self.uploads().run(guest, log).await?;
            let commands = ShellSource::Inline(vec![self.script()]);
            let timeout = self.run.left(begun);
            ShellStep { timeout, ..ShellStep::new(commands) }.run(guest, log).await
        })
    }
}

impl LocalStep {
    /// The playbook, what it needs, and what the build adds.
    fn uploads(&self) -> UploadStep {
        let upload = |folder: &Path, source: &str, to: String| Upload {
            folder: folder.into(),
            source: source.into(),
            to,
            mode: None,
            owner: None,
            privilege: Privilege::Login,
            render: None,
        };
        let there = &self.run.in_guest;
        let playbook = self.run.sources.iter().map(|source| {
            let above =
                source.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
            upload(
                self.run.playbook.folder(),
                source.trim_end_matches('/'),
                format!("{there}/play/{above}/"),
            )
        });
        let own = [INVENTORY, VARIABLES];
        let own = own.map(|name| upload(&self.run.files, name, format!("{there}/{name}")));
        let galaxy = self.run.galaxy().into_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            upload(folder_of(path), &name, format!("{there}/requirements.yml"))
        });
        UploadStep { uploads: playbook.chain(own).chain(galaxy).collect() }
    }

    fn script(&self) -> String {
        let there = shell_word(&self.run.in_guest);
        // However it ends: secrets may be in it.
        let removal = shell_word(&format!("cd && rm -rf {there}"));
        let mut lines = vec![
            format!("trap {removal} EXIT"),
            "trap 'exit 1' HUP INT TERM".into(),
            format!("cd && cd {there}/play"),
            "command -v ansible-playbook >/dev/null || { \
             echo 'ansible-playbook is not in the guest; `bootstrap` can install it' >&2; exit 127; }"
                .into(),
            "export ANSIBLE_NOCOLOR=1 ANSIBLE_RETRY_FILES_ENABLED=False".into(),
        ];
        if let Some(galaxy) = self.run.galaxy() {
            let text = fs::read_to_string(galaxy).unwrap_or_default();
            for (kind, folder) in kinds(&text) {
                lines.push(format!(
                    "ansible-galaxy {kind} install -r ../requirements.yml -p ../{folder}"
                ));
            }
            lines.push(
                "export ANSIBLE_ROLES_PATH=\"$PWD/../roles:$HOME/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles\" \
                 ANSIBLE_COLLECTIONS_PATH=\"$PWD/../collections:$HOME/.ansible/collections:/usr/share/ansible/collections\""
                    .into(),
            );
        }
        let arguments: Vec<String> =
            self.run.playbook.extra_args.iter().map(|one| shell_word(one)).collect();
        lines.push(format!(
            "ansible-playbook -i ../{INVENTORY} --extra-vars @../{VARIABLES} {} {}",
            arguments.join(" "),
            shell_word(&self.run.playbook.name())
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
#[path = "ansible_tests.rs"]
mod tests;
