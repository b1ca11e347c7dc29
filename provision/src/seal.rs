//! The end of a build in the guest: our key taken out, everything written, the power off.
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

/// Takes the key out, writes everything to disk and asks the guest to power off. The machine's S5 tells when it has.
///
/// # Errors
/// When the key could not be taken out everywhere, or the guest refuses to power off; the power button may still work.
pub async fn seal(
    session: &Session,
    key: &BuildKey,
    limit: Duration,
) -> Result<KeyRemoval, SealError> {
    let removal = remove_key(session, key, limit).await?;
    power_off(session).await?;
    Ok(removal)
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

/// Asks the guest to power off. That the connection breaks meanwhile is what is hoped for.
///
/// # Errors
/// When the guest knows no way to power off, or cannot be asked.
pub async fn power_off(session: &Session) -> Result<(), SealError> {
    let what = "Powering off";
    let words = "PATH=$PATH:/usr/sbin:/sbin\n\
                 if [ -d /run/systemd/system ]; then systemctl poweroff && exit 0; fi\n\
                 poweroff || shutdown -h now || halt -p\n";
    let command = Command::script("poweroff", words);
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
}
