//! The end of a build in the guest: our key taken out, what steps left for the end, everything written, the power off.
//!
//! The key's line goes from the `authorized_keys` of every account (and from where sshd and dropbear keep such files
//! centrally); other lines stay, and a file that held nothing else is deleted. cloud-init keeps the seed below
//! `/var/lib/cloud`: there the key is overwritten by as many letters, so that text and pickles stay readable. What stays
//! is the seed's other content (user-data, the instance id), fingerprints in logs, and copies that nobody can know of: a
//! step that copied a home folder, a user-data in base64. The session that does this goes on: sshd asked for the key
//! once. A login that sudo does not make root clears its own files, and the result says so.

use std::time::Duration;

use crate::command::{Command, ExitStatus, Privilege};
use crate::key::BuildKey;
use crate::output::{Output, Stream, Tail};
use crate::session::{Session, SessionError};

/// Why the guest could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key is still in a place that opens the guest, or that cloud-init may copy it from.
    #[error("The build's key is still in the guest: {}", files.join(", "))]
    KeyLeft {
        /// The files that hold it.
        files: Vec<String>,
    },
    /// The words that should do it failed.
    #[error("{what} failed in the guest with {status}: {message}")]
    Failed {
        /// What was to be done.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        message: String,
    },
    /// The guest could not be reached for it.
    #[error("{what} could not be done in the guest")]
    Session {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        source: SessionError,
    },
}

/// Where the key was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRemoval {
    /// Files that lost the key's line and keep others.
    pub removed: Vec<String>,
    /// Files that held nothing else and are gone.
    pub deleted: Vec<String>,
    /// Files in which the key was overwritten.
    pub overwritten: Vec<String>,
    /// Whether only the login's own files were looked through, because sudo did not let it become root.
    pub own_files_only: bool,
}

impl KeyRemoval {
    /// Whether the key was found anywhere.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.deleted.is_empty() && self.overwritten.is_empty()
    }
}

/// A script that a step left for the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// What it does, for messages.
    pub what: &'static str,
    /// The script, for root and `/bin/sh`.
    pub script: String,
}

/// Runs what a step left for the end, at most for `limit`; `output` gets what it prints.
///
/// # Errors
/// It failed, or the guest cannot be asked.
pub async fn run_last(
    session: &Session,
    last: &Last,
    limit: Duration,
    output: &mut dyn Output,
) -> Result<(), SealError> {
    let what = last.what;
    let command = Command::script("seal", last.script.as_str());
    let command = command.with_privilege(Privilege::Root).with_timeout(limit);
    let mut kept = Kept { output, tail: Tail::new(1) };
    let status = session
        .run(&command, &mut kept)
        .await
        .map_err(|source| SealError::Session { what, source })?;
    if status.success() {
        return Ok(());
    }
    let message = kept.tail.into_lines().pop().map_or_else(String::new, |line| line.text);
    Err(SealError::Failed { what, status, message })
}

/// Hands output on, and keeps the last line for an error.
struct Kept<'o> {
    output: &'o mut dyn Output,
    tail: Tail,
}

impl Output for Kept<'_> {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        self.tail.write(stream, bytes);
        self.output.write(stream, bytes);
    }
}

/// Takes the key out of the guest and writes everything to disk (`sync`), at most for `limit`.
///
/// # Errors
/// When it is still in one of the places afterwards, or the guest cannot be asked.
pub async fn remove_key(
    session: &Session,
    key: &BuildKey,
    limit: Duration,
) -> Result<KeyRemoval, SealError> {
    clean(session, removal_script(&key.public_blob()), limit).await
}

async fn clean(
    session: &Session,
    script: String,
    limit: Duration,
) -> Result<KeyRemoval, SealError> {
    let what = "Removing the build's key";
    let command = Command::script("seal", script).with_timeout(limit);
    let (tried, own_files_only) =
        match session.capture(&command.clone().with_privilege(Privilege::Root)).await {
            Err(SessionError::SudoRefused { .. }) => (session.capture(&command).await, true),
            tried => (tried, false),
        };
    let captured = tried.map_err(|source| SealError::Session { what, source })?;
    if !captured.status.success() {
        return Err(SealError::Failed {
            what,
            status: captured.status,
            message: captured.stderr.trim().to_owned(),
        });
    }
    let mut removal = KeyRemoval { own_files_only, ..KeyRemoval::default() };
    let mut left = Vec::new();
    for (done, path) in captured.stdout.lines().filter_map(|line| line.split_once('\t')) {
        let list = match done {
            "removed" => &mut removal.removed,
            "deleted" => &mut removal.deleted,
            "overwritten" => &mut removal.overwritten,
            _ => &mut left,
        };
        list.push(path.to_owned());
    }
    if left.is_empty() { Ok(removal) } else { Err(SealError::KeyLeft { files: left }) }
}

/// Asks the guest to power off, and removes `user` before it does. That the connection breaks meanwhile is what is hoped
/// for.
///
/// # Errors
/// When the user cannot be removed, the guest knows no way to power off, or cannot be asked.
pub async fn power_off(session: &Session, user: Option<&str>) -> Result<(), SealError> {
    let what = "Powering off";
    let removal = user.map_or_else(String::new, removal_of_user);
    let words = "PATH=$PATH:/usr/sbin:/sbin\n\
                 if [ -d /run/systemd/system ]; then systemctl poweroff && exit 0; fi\n\
                 poweroff || shutdown -h now || halt -p\n";
    let command = Command::script("poweroff", removal + words);
    let command = command.with_privilege(Privilege::Root).with_timeout(Duration::from_secs(60));
    match session.capture(&command).await {
        Ok(captured) => match captured.status {
            status if status.success() => Ok(()),
            // The shutdown that was asked for has reached the asking shell first.
            ExitStatus::Signal { .. } | ExitStatus::Code(143) => Ok(()),
            status => {
                Err(SealError::Failed { what, status, message: captured.stderr.trim().to_owned() })
            }
        },
        Err(error) if error.is_disconnect() => Ok(()),
        Err(source) => Err(SealError::Session { what, source }),
    }
}

/// `user` is known to be the name of one.
fn removal_of_user(user: &str) -> String {
    include_str!("remove_user.sh").replace("@USER@", user)
}

fn removal_script(blob: &str) -> String {
    let filler = "A".repeat(blob.len());
    include_str!("seal.sh").replace("@BLOB@", blob).replace("@FILLER@", &filler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::Sshd;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// Lets the script see a guest's file system that is a folder of the test.
    fn in_folder(root: &Path, blob: &str) -> String {
        let root = root.display();
        removal_script(blob)
            .replace("/etc/passwd", &format!("{root}/etc/passwd"))
            .replace("/etc/ssh", &format!("{root}/etc/ssh"))
            .replace("/etc/dropbear", &format!("{root}/etc/dropbear"))
            .replace("/var/lib/cloud", &format!("{root}/var/lib/cloud"))
            .replace("\"${TMPDIR:-/tmp}\"/kvmbake.?????? /tmp/", &format!("{root}/tmp/"))
    }

    fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, content).expect("write");
        path
    }

    #[test]
    fn the_key_is_gone_from_every_place_and_everything_else_stays() {
        let key = BuildKey::generate("seal").expect("key");
        let (line, blob) = (key.public_openssh(), key.public_blob());
        for shell in ["/bin/dash", "/bin/bash", "/bin/busybox sh"] {
            let folder = tempfile::tempdir().expect("folder");
            let root = folder.path();
            let homes = ["root", "home/debian", "home/o ther", "home/none"];
            let accounts: Vec<String> = homes
                .iter()
                .map(|home| format!("x:x:0:0::{}:/bin/sh\n", root.join(home).display()))
                .collect();
            write(
                root,
                "etc/passwd",
                accounts.concat() + "nobody:x:1:1::/nonexistent:/bin/false\nbin:x:2:2::/:/bin/sh\n",
            );
            let only = write(root, "home/debian/.ssh/authorized_keys", format!("{line}\n"));
            let forced = format!(
                "# mine\nssh-rsa AAAAB3 me\nno-pty,command=\"echo\" {line}\nssh-rsa AAAAC3 you\n"
            );
            let mixed = write(root, "root/.ssh/authorized_keys", forced);
            fs::set_permissions(&mixed, std::os::unix::fs::PermissionsExt::from_mode(0o640))
                .expect("mode");
            let before = fs::metadata(&mixed).expect("metadata");
            let other = write(root, "home/o ther/.ssh/authorized_keys2", "ssh-rsa AAAAD3 other\n");
            let spaced = write(root, "home/o ther/.ssh/a b", format!("ssh-rsa AAAAD3 x\n{line}\n"));
            let pickle = [
                b"\x80\x04\x95\0\n".as_slice(),
                line.as_bytes(),
                b"\0\r\n\xff no newline at the end",
            ]
            .concat();
            let pickled = write(root, "var/lib/cloud/instances/i-1/obj.pkl", &pickle);
            let script = write(
                root,
                "var/lib/cloud/instances/i-1/scripts/vendor/part-001",
                format!("key='{line}'\n"),
            );
            let cut_off = write(root, "tmp/kvmbake.Ab3_xY/step", "TOKEN=secret");
            let foreign = write(root, "tmp/kvmbake.log", "");
            let meta = write(
                root,
                "var/lib/cloud/instances/i-1/meta",
                format!("public-keys:\n  - \"{line}\"\nx: y\n"),
            );

            let words: Vec<&str> = shell.split(' ').collect();
            let output = std::process::Command::new(words[0])
                .args(&words[1..])
                .args(["-c", &in_folder(root, &blob)])
                .output()
                .expect("shell");
            assert!(output.status.success());
            let told = String::from_utf8(output.stdout).expect("text");
            let said =
                |done: &str, path: &Path| told.contains(&format!("{done}\t{}\n", path.display()));
            assert!(said("deleted", &only) && said("deleted", &script), "{shell}: {told}");
            assert!(said("removed", &mixed) && said("removed", &spaced), "{shell}: {told}");
            assert!(said("overwritten", &pickled) && said("overwritten", &meta), "{shell}: {told}");
            assert_eq!(told.lines().count(), 6, "{shell}: {told}");
            assert!(!only.exists() && !script.exists() && !cut_off.exists() && foreign.exists());
            assert_eq!(
                fs::read_to_string(&mixed).expect("text"),
                "# mine\nssh-rsa AAAAB3 me\nssh-rsa AAAAC3 you\n"
            );
            let after = fs::metadata(&mixed).expect("metadata");
            assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
            assert_eq!(fs::read_to_string(&other).expect("text"), "ssh-rsa AAAAD3 other\n");
            let bytes = fs::read(&pickled).expect("bytes");
            let filler = "A".repeat(blob.len());
            let expected = String::from_utf8_lossy(&pickle).replace(&blob, &filler);
            assert_eq!(String::from_utf8_lossy(&bytes), expected, "{shell}");
            assert_eq!(bytes.len(), pickle.len());
        }
    }

    #[tokio::test]
    async fn removal_over_a_session_tells_where_the_key_was() {
        // The words that a guest gets, on the files of a folder: this system's own are not for a test to clean.
        let sshd = Sshd::new();
        let (session, _server) = sshd.session().await;
        let root = sshd.path("guest");
        write(&root, "etc/passwd", format!("x:x:0:0::{}:/bin/sh\n", root.join("home").display()));
        let file = write(&root, "home/.ssh/authorized_keys", sshd.key.public_openssh());
        let script = in_folder(&root, &sshd.key.public_blob());
        let removal = clean(&session, script, Duration::from_secs(60)).await.expect("done");
        assert_eq!(removal.deleted, [file.display().to_string()]);
        let again = in_folder(&root, &sshd.key.public_blob());
        assert!(clean(&session, again, Duration::from_secs(60)).await.expect("done").is_empty());
    }

    #[test]
    fn a_user_is_removed_with_its_rules_and_other_rules_stay() {
        for (shell, program) in
            [("/bin/dash", "userdel"), ("/bin/bash", "userdel"), ("/bin/busybox sh", "deluser")]
        {
            let folder = tempfile::tempdir().expect("folder");
            let root = folder.path();
            let passwd =
                write(root, "etc/passwd", "root:x:0:0::/root:/bin/sh\nbuild:x:1:1::/h:/bin/sh\n");
            write(root, "etc/passwd-", "build:x:1:1::/h:/bin/sh\n");
            let own = write(root, "etc/sudoers.d/90-build", "# by hand\n\nbuild ALL=(ALL) ALL\n");
            let shared =
                write(root, "etc/sudoers.d/a", "build ALL=(ALL) ALL\nbuilder ALL=(ALL) ALL\n");
            let log = root.join("log");
            let body = format!(
                "echo \"$*\" >>{0}; sed -i '/^build:/d' {1}",
                log.display(),
                passwd.display()
            );
            let tools = crate::session::sshd::scripts(&[(program, &body)]);
            for name in ["grep", "rm", "sed"] {
                let path = ["/usr/bin", "/bin"].map(|folder| format!("{folder}/{name}"));
                let path = path.iter().find(|path| Path::new(path).exists()).expect(name);
                std::os::unix::fs::symlink(path, tools.path().join(name)).expect("link");
            }
            let run = |script: String| {
                let script = script
                    .replace("/etc/", &format!("{}/etc/", root.display()))
                    .replace("$PATH:/usr/sbin:/sbin", &tools.path().display().to_string());
                let words: Vec<&str> = shell.split(' ').collect();
                let mut command = std::process::Command::new(words[0]);
                command.args(&words[1..]).args(["-c", &script]).output().expect("shell")
            };
            let output = run(removal_of_user("build") + "echo on");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "on\n", "{output:?}");
            assert_eq!(fs::read_to_string(&log).expect("log").lines().count(), 1);
            assert!(!own.exists() && !root.join("etc/passwd-").exists());
            assert_eq!(fs::read_to_string(shared).expect("rules"), "builder ALL=(ALL) ALL\n");
            // Nobody of that name is nothing to do; one who stays is no reason to power off.
            assert_eq!(
                String::from_utf8_lossy(&run(removal_of_user("build") + "echo on").stdout),
                "on\n"
            );
            fs::write(&passwd, "build:x:1:1::/h:/bin/sh\n").expect("write");
            fs::remove_file(tools.path().join(program)).expect("remove");
            let output = run(removal_of_user("build") + "echo on");
            assert!(output.stdout.is_empty() && !output.status.success());
        }
    }

    #[tokio::test]
    async fn what_steps_left_is_told_and_its_failure_named() {
        let sshd = Sshd::with("");
        let (session, _server) = sshd.session().await;
        // The login of the test is root already, or has no sudo: both are told.
        let last =
            Last { what: "sysprep", script: "echo logs: 2 files; echo why >&2; exit 3".into() };
        let mut output = Vec::new();
        match run_last(&session, &last, Duration::from_secs(60), &mut output).await {
            Err(SealError::Failed { what, message, .. }) => {
                assert_eq!((what, message.as_str()), ("sysprep", "why"));
                assert!(String::from_utf8_lossy(&output).contains("logs: 2 files\n"));
            }
            Err(SealError::Session { source: SessionError::SudoRefused { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
