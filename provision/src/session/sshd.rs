//! A real OpenSSH server for the tests: `sshd -i` at the other end of a socket pair, no port, everything in a folder.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;

use super::{Login, Session};
use crate::key::BuildKey;

pub(crate) struct Sshd {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) key: BuildKey,
    pub(crate) user: String,
}

/// One server process, ended with its whole group on drop.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn kill(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a folder with these shell scripts as programs: what a guest finds first on its PATH.
pub(crate) fn scripts(scripts: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for (name, body) in scripts {
        let program = folder.path().join(name);
        std::fs::write(&program, format!("#!/bin/sh\n{body}\n")).expect("write");
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("mode");
    }
    folder
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Sshd {
    pub(crate) fn new() -> Sshd {
        Sshd::with("")
    }

    /// A server with further lines in its configuration.
    pub(crate) fn with(extra: &str) -> Sshd {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(path("host"))
            .status()
            .expect("ssh-keygen is missing: install the Debian package openssh-client");
        assert!(made.success());
        let key = BuildKey::generate("test").expect("key");
        std::fs::write(path("authorized"), format!("{}\n", key.public_openssh())).expect("write");
        // Made by the service's unit otherwise; sshd insists on it when it is root.
        let _ = std::fs::create_dir_all("/run/sshd");
        // Of several lines only the first counts; the guest's temporary files stay in the test's folder.
        std::fs::create_dir(path("tmp")).expect("folder");
        let environment = format!("SetEnv TMPDIR={}", path("tmp").display());
        let extra = match extra.strip_prefix("SetEnv") {
            Some(more) => format!("{environment}{more}"),
            None => format!("{environment}\n{extra}"),
        };
        let config = format!(
            "{extra}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nLogLevel VERBOSE\n\
             PidFile none\nPrintMotd no\n",
            folder.path().display()
        );
        std::fs::write(path("config"), config).expect("write");
        let user = Command::new("id").arg("-un").output().expect("id").stdout;
        Sshd { folder, key, user: String::from_utf8(user).expect("text").trim().to_owned() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a server process; the other end of its stream, and the process.
    pub(crate) fn serve(&self) -> (UnixStream, Server) {
        assert!(
            Path::new("/usr/sbin/sshd").exists(),
            "/usr/sbin/sshd is missing: install the Debian package openssh-server"
        );
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
        let copy = theirs.try_clone().expect("clone");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("log");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-i", "-e", "-f"])
            .arg(self.path("config"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(copy)))
            .stderr(Stdio::from(log))
            .process_group(0)
            .spawn()
            .expect("sshd");
        ours.set_nonblocking(true).expect("nonblocking");
        (UnixStream::from_std(ours).expect("stream"), Server(child))
    }

    pub(crate) fn login(&self) -> Login {
        Login { timeout: Duration::from_secs(60), ..Login::new(&self.user, &self.key) }
    }

    pub(crate) async fn session(&self) -> (Session, Server) {
        let (stream, server) = self.serve();
        match Session::log_in(stream, &self.login()).await {
            Ok(session) => (session, server),
            Err(error) => {
                panic!("{error}: {}", std::fs::read_to_string(self.path("log")).unwrap_or_default())
            }
        }
    }
}
