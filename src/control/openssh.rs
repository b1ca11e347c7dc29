//! What OpenSSH's programs are told of a guest: ssh_config(5) and the `known_hosts` of sshd(8). They reach
//! the guest through `kvmbake nc`, so no port is opened on the host.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The name of the guest in the configuration.
pub const HOST: &str = "guest";

/// Returns a configuration in which [`HOST`] is the guest behind `socket`. `program` is kvmbake.
///
/// # Errors
/// A path cannot be written in a configuration.
pub fn config(
    user: &str,
    key: &Path,
    known_hosts: &Path,
    program: &Path,
    socket: &Path,
) -> io::Result<String> {
    let (key, known_hosts) = (quoted(key)?, quoted(known_hosts)?);
    let proxy = format!("{} nc {} %p", shell_word(program)?, shell_word(socket)?);
    if user.chars().any(|c| c.is_control() || c.is_whitespace() || c == '"') {
        return Err(unfit("the user's name"));
    }
    Ok(format!(
        "Host {HOST}\n  \
         HostName {HOST}\n  \
         Port 22\n  \
         User {user}\n  \
         IdentityFile {key}\n  \
         IdentitiesOnly yes\n  \
         IdentityAgent none\n  \
         PasswordAuthentication no\n  \
         KbdInteractiveAuthentication no\n  \
         HostKeyAlias {HOST}\n  \
         UserKnownHostsFile {known_hosts}\n  \
         GlobalKnownHostsFile /dev/null\n  \
         StrictHostKeyChecking yes\n  \
         UpdateHostKeys no\n  \
         ControlPath none\n  \
         ServerAliveInterval 20\n  \
         ServerAliveCountMax 6\n  \
         ProxyCommand {proxy}\n"
    ))
}

/// Returns the line by which OpenSSH knows the guest.
pub fn known_hosts(host_key: &str) -> String {
    format!("{HOST} {host_key}\n")
}

/// A path as an argument of a keyword: in double quotes, its percent signs doubled.
fn quoted(path: &Path) -> io::Result<String> {
    let text = text(path)?;
    match text.contains(['"', '\\', '$']) {
        false => Ok(format!("\"{}\"", text.replace('%', "%%"))),
        true => Err(unfit(text)),
    }
}

/// A path as a word of a command, which the user's shell reads after OpenSSH has its percent signs.
fn shell_word(path: &Path) -> io::Result<String> {
    Ok(format!("'{}'", text(path)?.replace('%', "%%").replace('\'', "'\\''")))
}

fn text(path: &Path) -> io::Result<&str> {
    let text = std::str::from_utf8(path.as_os_str().as_bytes());
    let text = text.map_err(|_| unfit(&path.to_string_lossy()))?;
    match text.chars().any(char::is_control) {
        false => Ok(text),
        true => Err(unfit(text)),
    }
}

fn unfit(text: &str) -> io::Error {
    let message = format!("{text:?} cannot be written in a configuration of OpenSSH");
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What OpenSSH makes of a configuration.
    fn understood(config: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, config).unwrap();
        let output = Command::new("ssh")
            .arg("-F")
            .arg(file)
            .args(["-G", HOST])
            .output()
            .expect("ssh is missing: install the Debian package openssh-client");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn openssh_reads_paths_with_blanks_and_percent_signs_as_they_are() {
        let path = Path::new;
        let config = config(
            "debian",
            path("/run/a b/100%/key"),
            path("/run/a b/known_hosts"),
            path("/opt/it's 100% mine/kvmbake"),
            path("/run/a b/control"),
        );
        let understood = understood(&config.unwrap());
        for line in [
            "user debian",
            "port 22",
            "userknownhostsfile /run/a b/known_hosts",
            "stricthostkeychecking true",
            "proxycommand '/opt/it'\\''s 100%% mine/kvmbake' nc '/run/a b/control' %p",
        ] {
            assert!(understood.lines().any(|found| found == line), "no {line} in\n{understood}");
        }
        assert!(understood.contains("identityfile /run/a b/100%"), "{understood}");
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let fine = Path::new("/run/x");
        for odd in ["/run/\"x", "/run/$x", "/run/a\nb"] {
            config("debian", Path::new(odd), fine, fine, fine).unwrap_err();
        }
        config("debian", fine, fine, Path::new("/opt/a\nProxyJump b"), fine).unwrap_err();
        config("de bian", fine, fine, fine, fine).unwrap_err();
    }
}
