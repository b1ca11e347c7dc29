//! Network interfaces under the kernel's own names, `eth0` and on, for images that move between platforms: the
//! predictable names tell where a card is plugged in, which is another place on each of them.
//!
//! An empty `80-net-setup-link.rules` in `/etc/udev/rules.d` takes the place of the rule that renames (systemd,
//! "Predictable Network Interface Names"). The initramfs holds a copy of the rules, so it is made anew where its maker is
//! one that we know.

use std::time::Duration;

use crate::command::{Command, Privilege};
use crate::session::{Session, SessionError};

/// Why interfaces could not be left with their names.
#[derive(Debug, thiserror::Error)]
pub enum Eth0Error {
    /// The guest's words for it failed.
    #[error("udev's rule could not be replaced in the guest: {message}")]
    Failed {
        /// What was printed last.
        message: String,
    },
    /// The guest could not be asked.
    #[error("udev's rule could not be replaced in the guest")]
    Session(#[from] SessionError),
}

/// Makes the guest leave its interfaces with the kernel's names from its next boot on, at most within `limit`.
///
/// # Errors
/// The login cannot become root, the file or the initramfs cannot be written, or the guest cannot be asked.
pub async fn keep_eth0(session: &Session, limit: Duration) -> Result<(), Eth0Error> {
    let command = Command::script("eth0-names", include_str!("eth0.sh"));
    let command = command.with_privilege(Privilege::Root).with_timeout(limit);
    let captured = session.capture(&command).await?;
    if captured.status.success() {
        return Ok(());
    }
    let message = captured.stderr.trim().lines().last().unwrap_or("no reason given").to_owned();
    Err(Eth0Error::Failed { message })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_rule_is_shadowed_and_the_initramfs_made_anew_by_whoever_makes_it() {
        for shell in ["/bin/dash", "/bin/bash"] {
            for (tool, expected) in [
                ("update-initramfs", "-u -k all"),
                ("dracut", "--force --regenerate-all"),
                ("none", ""),
            ] {
                let folder = tempfile::tempdir().expect("folder");
                let root = folder.path();
                let tools = root.join("tools");
                std::fs::create_dir_all(&tools).expect("folder");
                let path = tools.join(tool);
                let log = root.join("log");
                let text = format!("#!/bin/sh\necho \"$*\" >> {}\n", log.display());
                std::fs::write(&path, text).expect("write");
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("mode");
                for program in ["ln", "mkdir", "readlink"] {
                    let real = ["/usr/bin", "/bin"].map(|folder| format!("{folder}/{program}"));
                    let real = real.iter().find(|path| std::path::Path::new(path).exists());
                    std::os::unix::fs::symlink(real.expect(program), tools.join(program))
                        .expect("link");
                }
                let script = include_str!("eth0.sh")
                    .replace("/etc/udev", &format!("{}/etc/udev", root.display()))
                    .replace("$PATH:/usr/sbin:/sbin", &tools.display().to_string());
                for _ in 0..2 {
                    let status = std::process::Command::new(shell).args(["-c", &script]).status();
                    assert!(status.expect(shell).success());
                }
                let rule = root.join("etc/udev/rules.d/80-net-setup-link.rules");
                assert_eq!(std::fs::read_link(rule).expect("link").to_str(), Some("/dev/null"));
                // The second time there is nothing to do.
                let log = std::fs::read_to_string(log).unwrap_or_default();
                assert_eq!(log.trim(), expected, "{tool}");
            }
        }
    }
}
