//! The words for the guest's shell that start, wrap and kill a command.
//!
//! One SSH channel carries a whole command. The text given to `exec` is constant and tiny, because sudo, auditd and `ps`
//! record it: a shell that evaluates the first line of its standard input. That line reads the wrapper (line by line
//! with the shell's own `read`, which never takes a byte too many from a pipe) and the script into a temporary folder
//! that only the command's user may enter, then sources the wrapper: it exports the environment, changes the folder,
//! says which process group it is in, runs the program, removes the folder and exits with the program's status.
//!
//! Everything is POSIX shell, tried with dash, bash and busybox; of the guest's programs it needs `mktemp`, `cat`, `rm`
//! and, for a command that reads standard input, `dd`.

use crate::command::{Command, Privilege, Program, shell_word};
use crate::seed::nocloud::is_user_name;

use super::{SessionError, Sudo, SudoPassword};

/// The exit code of our own words: the program did not begin.
pub(super) const NOT_STARTED: u32 = 125;

/// A command in the words of the guest's shell.
pub(super) struct Remote {
    /// What `exec` is asked to run.
    pub(super) exec: String,
    /// What is sent to its standard input, all of it.
    pub(super) stdin: Vec<u8>,
    /// The word that begins our own lines on standard output.
    pub(super) mark: String,
    /// Whether another program, sudo or su, stands before the shell.
    pub(super) as_user: Option<String>,
}

/// Who is logged in.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) login: &'a str,
    pub(super) password: Option<&'a SudoPassword>,
}

/// Where the command runs, as the wrapper tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) process: u32,
    pub(super) group: u32,
    pub(super) folder: String,
}

impl Place {
    /// Reads the rest of the wrapper's line: process, group, folder.
    pub(super) fn parse(text: &str) -> Option<Place> {
        let mut fields = text.splitn(3, ' ');
        let process = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Place { process, group, folder: fields.next()?.to_owned() })
    }
}

/// Puts a command into words. `mark` is a word that the command's output does not hold by chance.
pub(super) fn words(command: &Command, who: Who<'_>, mark: &str) -> Result<Remote, SessionError> {
    let Entry { exec, as_user, input: mut stdin } = entry(&command.privilege, who)?;
    let mut wrapper = String::new();
    for (name, value) in &command.env {
        if !is_variable_name(name) {
            return Err(SessionError::VariableName { name: name.clone() });
        }
        wrapper.push_str(&format!(
            "export {name}={}\n",
            quoted(value, &format!("The value of {name}"))?
        ));
    }
    if let Some(folder) = &command.workdir {
        let folder = quoted(folder, "The working directory")?;
        wrapper.push_str(&format!("cd {folder} || {{ rm -rf \"$kb_d\"; exit {NOT_STARTED}; }}\n"));
    }
    let (program, script) = match &command.program {
        Program::Arguments(arguments) => (join(arguments)?, None),
        Program::Script { name, content, interpreter, arguments } => {
            let interpreter = match interpreter {
                Some(words) if !words.is_empty() => words.clone(),
                _ => shebang(content),
            };
            let name = file_name(name);
            let line = format!("{} \"$kb_d\"/{name} {}", join(&interpreter)?, join(arguments)?);
            (line.trim_end().to_owned(), Some((name, content)))
        }
    };
    let input = if command.stdin.is_some() { "" } else { " </dev/null" };
    wrapper.push_str(&format!(
        "read -r kb_a kb_b kb_c kb_e kb_g kb_f <\"/proc/$$/stat\" || kb_g=$$\n\
         printf '%s run %s %s %s\\n' \"$kb_n\" \"$$\" \"$kb_g\" \"$kb_d\"\n\
         {program}{input}\n\
         kb_s=$?\n\
         rm -rf \"$kb_d\"\n\
         exit \"$kb_s\"\n"
    ));
    // Input that ends early, because the connection broke or we gave up, must not run as half a script.
    let receive = match &script {
        None => String::new(),
        Some((name, content)) => {
            let (file, length) = (format!("\"$kb_d\"/{name}"), content.len());
            let copy = match command.stdin {
                None => format!("cat >{file}"),
                Some(_) => format!("dd bs=1 count={length} of={file} 2>/dev/null"),
            };
            format!(
                "{copy} || kb_w=1; kb_c=$(wc -c <{file}); [ $((kb_c)) -eq {length} ] || kb_w=1; "
            )
        }
    };
    let first = format!(
        "kb_n={mark}; printf '%s shell\\n' \"$kb_n\"; kb_u=$(umask); umask 077; kb_w=0; \
         kb_d=$(mktemp -d \"${{TMPDIR:-/tmp}}/kvmbake.XXXXXX\" 2>/dev/null) || kb_d=$(mktemp -d /tmp/kvmbake.XXXXXX) || exit {NOT_STARTED}; \
         while IFS= read -r kb_l && [ \"$kb_l\" != \"$kb_n\" ]; do printf '%s\\n' \"$kb_l\" || kb_w=1; done >\"$kb_d\"/.run; \
         [ \"$kb_l\" = \"$kb_n\" ] || kb_w=1; {receive}\
         [ \"$kb_w\" = 0 ] || {{ rm -rf \"$kb_d\"; exit {NOT_STARTED}; }}; umask \"$kb_u\"; . \"$kb_d\"/.run\n"
    );
    stdin.extend_from_slice(first.as_bytes());
    stdin.extend_from_slice(wrapper.as_bytes());
    stdin.extend_from_slice(format!("{mark}\n").as_bytes());
    if let Some((_, content)) = script {
        stdin.extend_from_slice(content);
    }
    stdin.extend_from_slice(command.stdin.as_deref().unwrap_or_default());
    Ok(Remote { exec, stdin, mark: mark.to_owned(), as_user })
}

/// Puts one line of shell into words, without any folder: what it starts cannot be killed by [`kill_words`].
pub(super) fn line_words(
    line: &str,
    privilege: &Privilege,
    who: Who<'_>,
    mark: &str,
) -> Result<Remote, SessionError> {
    let Entry { exec, as_user, input: mut stdin } = entry(privilege, who)?;
    let line = format!("printf '%s shell\\n%s run 0 0 -\\n' {mark} {mark}; {line}\n");
    stdin.extend_from_slice(line.as_bytes());
    Ok(Remote { exec, stdin, mark: mark.to_owned(), as_user })
}

/// The words that kill a command, all its group: TERM, five seconds, KILL. They end with 0 once the group is gone.
pub(super) fn kill_words(
    place: &Place,
    privilege: &Privilege,
    who: Who<'_>,
) -> Result<(String, Vec<u8>), SessionError> {
    let Entry { exec, input: mut stdin, .. } = entry(privilege, who)?;
    let Place { process, group, folder } = place;
    // A guest may say anything; 0 and 1 would stand for more than the command.
    let (process, group) = (process.max(&2), group.max(&2));
    let folder = quoted(folder, "The temporary folder")?;
    // Where the server gives its commands no group of their own, the group is ours too: then only the process is killed.
    let line = format!(
        "read -r kb_a kb_b kb_c kb_e kb_o kb_f <\"/proc/$$/stat\"; kb_t=-{group}; \
         [ \"$kb_o\" = {group} ] && kb_t={process}; kb_i=0; kill -s TERM -- \"$kb_t\" 2>/dev/null; \
         while kill -s 0 -- \"$kb_t\" 2>/dev/null && [ \"$kb_i\" -lt 50 ]; do \
         kb_i=$((kb_i + 1)); [ \"$kb_i\" != 25 ] || kill -s KILL -- \"$kb_t\" 2>/dev/null; \
         sleep 0.2 2>/dev/null || sleep 1; done; rm -rf {folder}; ! kill -s 0 -- \"$kb_t\" 2>/dev/null\n"
    );
    stdin.extend_from_slice(line.as_bytes());
    Ok((exec, stdin))
}

/// The way to a shell with the right rights.
struct Entry {
    /// The constant that `exec` runs.
    exec: String,
    /// Who stands between the login and the shell.
    as_user: Option<String>,
    /// What comes on standard input before all else.
    input: Vec<u8>,
}

fn entry(privilege: &Privilege, who: Who<'_>) -> Result<Entry, SessionError> {
    const EVAL: &str = "IFS= read -r b && eval \"$b\"";
    let login = who.login;
    let plain =
        || Entry { exec: format!("exec /bin/sh -c '{EVAL}'"), as_user: None, input: Vec::new() };
    let by_sudo = |user: Option<&str>| {
        let Sudo { exec, input, skip } = Sudo::new(user, who.password);
        let as_user = Some(user.unwrap_or("root").to_owned());
        Entry { exec: format!("{exec} -c '{skip}{EVAL}'"), as_user, input }
    };
    Ok(match privilege {
        Privilege::Login => plain(),
        Privilege::Root if login == "root" => plain(),
        Privilege::Root => by_sudo(None),
        Privilege::User(name) if name == login => plain(),
        Privilege::User(name) if !is_user_name(name) => {
            return Err(SessionError::UserName { name: name.clone() });
        }
        Privilege::User(name) if login == "root" => Entry {
            exec: format!("exec su -s /bin/sh -c '{EVAL}' {name}"),
            as_user: Some(name.clone()),
            input: Vec::new(),
        },
        Privilege::User(name) => by_sudo(Some(name)),
    })
}

/// The interpreter that a script's first line names, with its one argument, as the kernel reads it.
fn shebang(script: &[u8]) -> Vec<String> {
    let line = script.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let named =
        line.strip_prefix(b"#!").and_then(|rest| std::str::from_utf8(rest).ok()).map(str::trim);
    match named.filter(|rest| !rest.is_empty()) {
        None => vec!["/bin/sh".into()],
        Some(rest) => rest.splitn(2, [' ', '\t']).map(|word| word.trim().to_owned()).collect(),
    }
}

/// The last part of a name, if it is harmless as a file name and as a word.
fn file_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    let safe: String = last
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect();
    match safe.chars().next() {
        Some(first) if first.is_ascii_alphanumeric() || first == '_' => {
            safe.chars().take(100).collect()
        }
        _ => "script".into(),
    }
}

fn join(words: &[String]) -> Result<String, SessionError> {
    let words: Result<Vec<String>, SessionError> =
        words.iter().map(|word| quoted(word, "An argument")).collect();
    Ok(words?.join(" "))
}

fn quoted(text: &str, what: &str) -> Result<String, SessionError> {
    if text.contains('\0') {
        return Err(SessionError::ZeroByte { what: what.to_owned() });
    }
    Ok(shell_word(text))
}

/// Whether a shell takes it as the name of a variable.
pub(crate) fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Output, Stdio};

    fn named(login: &str) -> Who<'_> {
        Who { login, password: None }
    }

    /// Runs the words as sshd would, with the shell that stands at `shell` in the place of `/bin/sh`.
    fn run(shell: &str, command: &Command) -> Output {
        let remote = words(command, named("root"), "mark123").expect("words");
        let exec = remote.exec.replace("/bin/sh", shell);
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", &exec])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        child.stdin.take().expect("stdin").write_all(&remote.stdin).expect("write");
        child.wait_with_output().expect("output")
    }

    fn shells() -> [&'static str; 3] {
        for (shell, package) in
            [("/bin/dash", "dash"), ("/bin/bash", "bash"), ("/bin/busybox", "busybox")]
        {
            assert!(
                std::path::Path::new(shell).exists(),
                "{shell} is missing: install the Debian package {package}"
            );
        }
        ["/bin/dash", "/bin/bash", "/bin/busybox sh"]
    }

    #[test]
    fn every_shell_runs_a_script_with_environment_folder_arguments_and_input() {
        for shell in shells() {
            let mut command = Command::script("a b.sh", "#!/bin/cat\n");
            command.env.push(("A".into(), "it's\n$HOME `x` \"y\"\n".into()));
            command.workdir = Some("/usr/share".into());
            command.stdin = Some(b"one\ntwo\n\xff".to_vec());
            command.program = Program::Script {
                name: "../a b.sh".into(),
                content: b"pwd; printf %s \"$A\"; echo \"$# $2\"; basename \"$0\"; cat; exit 7\n"
                    .to_vec(),
                interpreter: None,
                arguments: vec!["1".into(), "x'y z".into()],
            };
            let output = run(shell, &command);
            let (head, rest) = output.stdout.split_at(14);
            assert_eq!(head, b"mark123 shell\n", "{shell}");
            let end = rest.iter().position(|&byte| byte == b'\n').expect("line");
            let place = std::str::from_utf8(&rest[..end])
                .expect("text")
                .strip_prefix("mark123 run ")
                .expect("mark");
            let place = Place::parse(place).expect("place");
            assert!(
                place.process > 1 && place.group > 1 && place.folder.contains("/kvmbake."),
                "{place:?}"
            );
            assert!(!std::path::Path::new(&place.folder).exists());
            let told = &rest[end + 1..];
            assert_eq!(
                told, b"/usr/share\nit's\n$HOME `x` \"y\"\n2 x'y z\na_b.sh\none\ntwo\n\xff",
                "{shell}"
            );
            assert_eq!(output.status.code(), Some(7));
            assert!(
                output.stderr.is_empty(),
                "{shell}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    #[test]
    fn input_that_ends_early_runs_nothing() {
        for shell in shells() {
            let folder = tempfile::tempdir().expect("folder");
            let witness = folder.path().join("ran");
            let command =
                Command::script("s", format!("echo >{0}\n# more\necho >{0}\n", witness.display()));
            let remote = words(&command, named("root"), "mark123").expect("words");
            for cut in 0..remote.stdin.len() {
                // All of it takes long: every place near a boundary, and some between.
                let near = remote.stdin[..cut].ends_with(b"\n") || remote.stdin[cut] == b'\n';
                if !near && cut % 97 != 0 {
                    continue;
                }
                let mut child = std::process::Command::new("/bin/sh")
                    .args(["-c", &remote.exec.replace("/bin/sh", shell)])
                    .env("TMPDIR", folder.path())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sh");
                // A shell that has given up closes its input early.
                let _ = child.stdin.take().expect("stdin").write_all(&remote.stdin[..cut]);
                assert!(!child.wait().expect("status").success(), "{shell}, {cut}");
                assert!(!witness.exists(), "{shell}, {cut}");
            }
            assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0, "{shell}");
        }
    }

    #[test]
    fn every_shell_runs_arguments_and_says_when_the_folder_is_missing() {
        for shell in shells() {
            let output = run(shell, &Command::new(["printf", "%s|", "a b", "$HOME", "'"]));
            assert!(output.stdout.ends_with(b"\na b|$HOME|'|"), "{shell}");
            let mut lost = Command::new(["true"]);
            lost.workdir = Some("/does not exist".into());
            let output = run(shell, &lost);
            assert_eq!(output.status.code(), Some(125));
            assert_eq!(output.stdout, b"mark123 shell\n");
            assert!(String::from_utf8_lossy(&output.stderr).contains("/does not exist"));
        }
    }

    #[test]
    fn the_first_line_of_a_script_is_read_as_the_kernel_reads_it() {
        assert_eq!(shebang(b"echo"), ["/bin/sh"]);
        assert_eq!(shebang(b"#! /usr/bin/env  -S python3 -u\n"), ["/usr/bin/env", "-S python3 -u"]);
        assert_eq!(shebang(b"#!/bin/bash\necho"), ["/bin/bash"]);
    }

    #[test]
    fn what_no_shell_takes_is_refused() {
        let with = |name: &str, value: &str| {
            let mut command = Command::new(["true"]);
            command.env.push((name.into(), value.into()));
            words(&command, named("x"), "m").map(|_| ())
        };
        assert!(matches!(with("A-B", ""), Err(SessionError::VariableName { .. })));
        assert!(matches!(with("", ""), Err(SessionError::VariableName { .. })));
        assert!(matches!(with("A", "x\0"), Err(SessionError::ZeroByte { .. })));
        let odd = Command::new(["true"]).with_privilege(Privilege::User("a b".into()));
        assert!(matches!(words(&odd, named("x"), "m"), Err(SessionError::UserName { .. })));
    }

    #[test]
    fn nothing_of_the_command_is_in_what_sudo_logs() {
        let mut command = Command::script("s", "echo secret").with_privilege(Privilege::Root);
        command.env.push(("TOKEN".into(), "hunter2".into()));
        let remote = words(&command, named("debian"), "m").expect("words");
        assert_eq!(remote.exec, "exec sudo -n -H -- /bin/sh -c 'IFS= read -r b && eval \"$b\"'");
    }
}
