//! Playbooks with a real role on a real sshd, which the proxy command starts.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command as Process, Stdio};

use kvmbake_provision::Session;
use kvmbake_provision::key::BuildKey;

use super::super::heard::Heard;
use super::*;
use crate::profile::{Named, Place};

/// A server's process.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder with a server's configuration and what logs in to it.
struct Server {
    folder: tempfile::TempDir,
    login: Login,
    key: BuildKey,
}

impl Server {
    fn new() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut keygen = Process::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path("host_key"));
        assert!(keygen.status().unwrap().success());
        let key = BuildKey::generate("test").unwrap();
        fs::write(path("authorized"), key.public_openssh()).unwrap();
        fs::write(path("key"), key.private_openssh().unwrap().as_bytes()).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        // Made by the service's unit otherwise; sshd insists on it when it is root.
        let _ = fs::create_dir_all("/run/sshd");
        let at = folder.path().display();
        let sshd = format!(
            "HostKey {at}/host_key\nAuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n"
        );
        fs::write(path("sshd_config"), sshd).unwrap();
        let host_key = fs::read_to_string(path("host_key.pub")).unwrap();
        fs::write(path("known_hosts"), openssh::known_hosts(host_key.trim())).unwrap();
        let user = Process::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_string();
        let none = Path::new("/none");
        let config =
            openssh::config(&user, &path("key"), &path("known_hosts"), none, none).unwrap();
        // In the place of a way into a build's guest.
        let proxy = format!("ProxyCommand /usr/sbin/sshd -i -f {at}/sshd_config\n");
        let kept = config.lines().filter(|line| !line.contains("ProxyCommand"));
        let config: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(path("ssh_config"), format!("{config}  {proxy}")).unwrap();
        let login = Login { user, key: path("key"), host_key, config: path("ssh_config") };
        Server { folder, login, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn guest(&self) -> (Guest, Running) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let copy = theirs.try_clone().unwrap();
        let mut sshd = Process::new("/usr/sbin/sshd");
        sshd.args(["-i", "-f"]).arg(self.path("sshd_config")).stderr(Stdio::null());
        sshd.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(copy));
        let running = Running(sshd.spawn().unwrap());
        ours.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(ours).unwrap();
        let limit = Duration::from_secs(60);
        let session = Session::connect(stream, &self.login.user, &self.key, limit).await.unwrap();
        (Guest { session, environment: Vec::new(), directory: PathBuf::new() }, running)
    }

    /// Writes a playbook with a role that leaves a file.
    fn playbook(&self) -> Run {
        let play = self.path("play");
        fs::create_dir_all(play.join("roles/web/tasks")).unwrap();
        fs::create_dir_all(play.join("roles/web/templates")).unwrap();
        let site = "- hosts: web\n  gather_facts: false\n  roles: [web]\n";
        fs::write(play.join("site.yml"), site).unwrap();
        let task = "- name: leave a file\n  template: { src: out.j2, dest: \"{{ target }}\", mode: '0600' }\n";
        fs::write(play.join("roles/web/tasks/main.yml"), task).unwrap();
        fs::write(play.join("roles/web/templates/out.j2"), "{{ inventory_hostname }} {{ word }}\n")
            .unwrap();
        let target = self.path("out").display().to_string();
        let place =
            Place { path: self.path("p.toml"), line: 1, column: 1, width: 1, text: String::new() };
        let playbook = Playbook {
            file: Named { value: play.join("site.yml"), place },
            inputs: None,
            extra_args: vec!["-v".into()],
            extra_vars: vec![("target".into(), target), ("word".into(), "it's hidden".into())],
            groups: vec!["web".into()],
            host_name: "box".into(),
            galaxy: None,
            r#become: false,
            bootstrap: vec![format!("echo first >{}", self.path("first").display())],
            timeout: Some(Duration::from_secs(300)),
        };
        let means = Means { scratch: self.scratch(), ..Means::default() };
        let in_guest = self.path("in guest").display().to_string();
        Run { in_guest, ..Run::new(&playbook, &means) }
    }

    /// Returns the build's own folder.
    fn scratch(&self) -> PathBuf {
        let _ = fs::create_dir(self.path("scratch"));
        self.path("scratch")
    }

    /// Packs a role and a collection with one task each, and returns the requirements that name them.
    fn requirements(&self) -> PathBuf {
        let at = self.folder.path().display();
        let made = format!(
            "set -e; cd '{at}'; mkdir -p packed/tasks packed/meta collection/roles/greet/tasks
            echo '- copy: {{ dest: \"{{{{ target }}}}.role\", content: from a role, mode: preserve }}' > packed/tasks/main.yml
            printf 'galaxy_info: {{ author: us, description: d, license: MIT, min_ansible_version: \"2\" }}\n' > packed/meta/main.yml
            tar -czf packed.tar.gz packed
            printf 'namespace: ours\nname: tools\nversion: 1.0.0\nreadme: README.md\nauthors: [us]\n' > collection/galaxy.yml
            touch collection/README.md
            echo '- copy: {{ dest: \"{{{{ target }}}}.collection\", content: from a collection, mode: preserve }}' > collection/roles/greet/tasks/main.yml
            ansible-galaxy collection build collection >/dev/null"
        );
        assert!(Process::new("sh").args(["-c", &made]).status().unwrap().success());
        let text = format!(
            "roles:\n  - {{ name: packed, src: '{at}/packed.tar.gz' }}\n\
             collections:\n  - {{ name: '{at}/ours-tools-1.0.0.tar.gz', type: file }}\n"
        );
        fs::write(self.path("requirements.yml"), text).unwrap();
        self.path("requirements.yml")
    }

    fn python() -> Option<String> {
        Some("/usr/bin/python3".into())
    }
}

#[tokio::test]
async fn the_host_runs_a_role_on_the_guest_by_the_build_s_login() {
    let server = Server::new();
    let (guest, _running) = server.guest().await;
    let (run, login) = (server.playbook(), Some(server.login.clone()));
    let mut step = AnsibleStep { run, login, python: Server::python(), env: Vec::new() };
    step.check(&CheckContext::default()).unwrap();
    let mut heard = Heard::default();
    let result = step.run(&guest, &mut heard).await;
    assert!(result.is_ok(), "{result:?} {}", heard.0);
    assert!(heard.0.contains("changed=1"), "{}", heard.0);
    assert_eq!(fs::read_to_string(server.path("out")).unwrap(), "box it's hidden\n");
    assert_eq!(fs::read_to_string(server.path("first")).unwrap(), "first\n");
    assert!(!server.path("scratch/ansible").exists(), "the variables are removed");
    assert!(!server.path("ansible").exists(), "the shared connection has ended");
    // Another guest in its place is not spoken to.
    fs::write(
        server.path("known_hosts"),
        "guest ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n",
    )
    .unwrap();
    step.run.playbook.bootstrap.clear();
    let mut heard = Heard::default();
    let error = step.run(&guest, &mut heard).await.unwrap_err();
    assert_eq!(error.to_string(), "ansible-playbook failed: exit code 4");
    assert!(heard.0.contains("verification failed"), "{}", heard.0);
}

#[tokio::test]
async fn ansible_is_given_the_password_that_sudo_asks_for() {
    let server = Server::new();
    let (guest, _running) = server.guest().await;
    for password in ["it's \"secret\" \\", "{{ no_template }} {% nor block %}"] {
        let mut run = server.playbook();
        let template = server.path("play/roles/web/templates/out.j2");
        fs::write(template, "{{ ansible_become_password }}\n").unwrap();
        run.sudo_password = SudoPassword::new(password);
        let login = Some(server.login.clone());
        let step = AnsibleStep { run, login, python: Server::python(), env: Vec::new() };
        let mut heard = Heard::default();
        let result = step.run(&guest, &mut heard).await;
        assert!(result.is_ok(), "{result:?} {}", heard.0);
        assert_eq!(fs::read_to_string(server.path("out")).unwrap(), format!("{password}\n"));
    }
}

/// Returns a path from the working folder.
fn relative(path: &Path) -> PathBuf {
    let up =
        std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    up.join(path.strip_prefix("/").unwrap())
}

#[tokio::test]
async fn roles_and_collections_of_the_requirements_are_found_wherever_the_profile_lies() {
    let server = Server::new();
    let (guest, _running) = server.guest().await;
    let mut playbook = server.playbook().playbook;
    let site = "- hosts: web\n  gather_facts: false\n  roles: [web, packed, ours.tools.greet]\n";
    fs::write(server.path("play/site.yml"), site).unwrap();
    playbook.file.value = relative(&playbook.file.value);
    let galaxy = relative(&server.requirements());
    playbook.galaxy = Some(Named { value: galaxy, place: playbook.file.place.clone() });
    let login = Some(server.login.clone());
    let means = Means { scratch: relative(&server.scratch()), login, ..Means::default() };
    let run = Run::new(&playbook, &means);
    let step = AnsibleStep { run, login: means.login, python: Server::python(), env: Vec::new() };
    step.check(&CheckContext::default()).unwrap();
    let mut heard = Heard::default();
    let result = step.run(&guest, &mut heard).await;
    assert!(result.is_ok(), "{result:?} {}", heard.0);
    assert_eq!(fs::read_to_string(server.path("out.role")).unwrap(), "from a role");
    assert_eq!(fs::read_to_string(server.path("out.collection")).unwrap(), "from a collection");
    assert!(!server.path("scratch/ansible").exists(), "what was installed is removed");
    // The guest installs them itself.
    fs::remove_file(server.path("out.role")).unwrap();
    playbook.extra_args = vec!["-eansible_python_interpreter=/usr/bin/python3".into()];
    let in_guest = server.path("in guest").display().to_string();
    let means = Means { scratch: relative(&server.scratch()), ..Means::default() };
    let step = LocalStep { run: Run { in_guest, ..Run::new(&playbook, &means) } };
    let mut heard = Heard::default();
    let result = step.run(&guest, &mut heard).await;
    assert!(result.is_ok(), "{result:?} {}", heard.0);
    assert_eq!(fs::read_to_string(server.path("out.role")).unwrap(), "from a role");
}

#[tokio::test]
async fn the_guest_runs_a_role_on_itself() {
    let server = Server::new();
    let (guest, _running) = server.guest().await;
    let mut step = LocalStep { run: server.playbook() };
    step.run.playbook.extra_args.push("-e".into());
    step.run.playbook.extra_args.push("ansible_python_interpreter=/usr/bin/python3".into());
    let mut heard = Heard::default();
    let result = step.run(&guest, &mut heard).await;
    assert!(result.is_ok(), "{result:?} {}", heard.0);
    assert_eq!(fs::read_to_string(server.path("out")).unwrap(), "box it's hidden\n");
    assert!(!server.path("in guest").exists() && !server.path("scratch/ansible").exists());
    // A play that fails is the step's failure.
    fs::write(server.path("play/site.yml"), "- hosts: web\n  tasks: [{ fail: { msg: no } }]\n")
        .unwrap();
    let error = step.run(&guest, &mut ()).await.unwrap_err();
    assert_eq!(error.exit_code(), Some(2));
    assert!(!server.path("in guest").exists(), "nor does a failed one leave its variables");
}

#[tokio::test]
async fn commands_of_the_host_are_told_how_to_log_in() {
    let server = Server::new();
    let (guest, _running) = server.guest().await;
    let commands = [
        "test \"$(cat \"$KVMBAKE_SSH_KNOWN_HOSTS\")\" = \"guest $KVMBAKE_SSH_HOST_KEY\"",
        "ssh -F \"$KVMBAKE_SSH_CONFIG\" \"$KVMBAKE_SSH_HOST\" echo in the guest as '$USER' \"$WORD\"",
        "test -z \"${KVMBAKE_COMMANDS-}\"",
    ];
    let command = crate::profile::HostCommand {
        commands: commands.map(str::to_string).to_vec(),
        env: vec![("WORD".into(), "word".into())],
        workdir: server.path(""),
        timeout: None,
        inputs: Vec::new(),
    };
    let mut login = server.login.clone();
    login.host_key = login.host_key.trim().into();
    let step = host::step(&command, Some(login));
    let mut heard = Heard::default();
    let result = step.run(&guest, &mut heard).await;
    assert!(result.is_ok(), "{result:?} {}", heard.0);
    assert!(
        heard.0.contains(&format!("in the guest as {} word\n", server.login.user)),
        "{}",
        heard.0
    );
}

#[test]
fn requirements_are_told_by_their_kinds() {
    assert_eq!(kinds("- src: a\n"), [("role", "roles")]);
    assert_eq!(kinds("---\ncollections:\n  - name: a.b\n"), [("collection", "collections")]);
    assert_eq!(kinds("roles:\n  - a\ncollections:\n  - b.c\n").len(), 2);
}

#[test]
fn programs_that_are_missing_are_named_with_a_hint() {
    let error = program("kvmbake-no-such-program", "install it").unwrap_err();
    assert_eq!(error.to_string(), "`kvmbake-no-such-program` is not on this host: install it");
    program("sh", "").unwrap();
}
