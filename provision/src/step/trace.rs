//! Inline commands as one script that tells where it is.
//!
//! All commands of a step share one shell, so that `cd` and variables last from one to the next. Between them stands a
//! call that prints a mark on standard output: [`Trace`] takes the marks out of the stream again, which gives the
//! command that runs now and, after a failure, the one that failed.

use crate::output::{Output, Stream, Tail};

use super::Log;

/// Begins a mark; a control character that text does not hold.
const BEGIN: u8 = 0x1e;

/// The longest mark.
const MAX_MARK: usize = 64;

/// Returns the script for these commands. With codes other than 0 among `expected`, no command may stop at the first
/// failure inside it: only its last status counts.
pub(super) fn script(commands: &[String], mark: &str, expected: &[i32]) -> String {
    // Between two commands 0 is always right, also where another code is expected of the last.
    let codes: Vec<String> = [0].iter().chain(expected).map(i32::to_string).collect();
    let mut script = String::new();
    if expected == [0] {
        script.push_str("set -e\n");
    }
    // A standard output that was redirected into a file is no place for marks.
    script.push_str(&format!(
        "kvmbake_next() {{\n  case $? in {}) ;; *) exit $?;; esac\n  [ -f /dev/stdout ] || printf '\\036%s %s\\n' {mark} \"$1\"\n}}\n",
        codes.join("|")
    ));
    for (index, command) in commands.iter().enumerate() {
        // The first call comes after nothing that could have failed.
        let reset = if index == 0 { ":\n" } else { "" };
        script.push_str(&format!("{reset}kvmbake_next {}\n{command}\n", index + 1));
    }
    script
}

/// Whether the program of these words runs such a script.
pub(super) fn is_posix_shell(interpreter: &[String]) -> bool {
    let name = interpreter.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path));
    matches!(name, "sh" | "bash" | "dash" | "ash" | "ksh" | "mksh" | "zsh" | "busybox")
}

/// Passes output on to a log, without the marks, and keeps the last lines.
pub(super) struct Trace<'a> {
    log: &'a mut dyn Log,
    /// The last lines, of the current command only.
    pub(super) tail: Tail,
    /// The command that runs, counted from 1; 0 before the first.
    pub(super) current: usize,
    commands: &'a [String],
    mark: Option<String>,
    held: Vec<u8>,
    limit: usize,
}

impl<'a> Trace<'a> {
    pub(super) fn new(log: &'a mut dyn Log, limit: usize) -> Trace<'a> {
        Trace {
            log,
            tail: Tail::new(limit),
            current: 0,
            commands: &[],
            mark: None,
            held: Vec::new(),
            limit,
        }
    }

    /// Looks for the marks of a script that [`script`] made.
    pub(super) fn of_commands(mut self, commands: &'a [String], mark: &str) -> Trace<'a> {
        self.commands = commands;
        self.mark = Some(mark.to_owned());
        self
    }

    /// Passes on what was held back as the possible beginning of a mark.
    pub(super) fn finish(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.pass(Stream::Stdout, &held);
    }

    fn pass(&mut self, stream: Stream, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.tail.write(stream, bytes);
            self.log.write(stream, bytes);
        }
    }

    /// The number in a whole mark, without its first and last byte.
    fn number(&self, mark: &[u8]) -> Option<usize> {
        let text = std::str::from_utf8(mark).ok()?;
        let number: usize = text.strip_prefix(self.mark.as_deref()?)?.trim_start().parse().ok()?;
        (1..=self.commands.len()).contains(&number).then_some(number)
    }
}

impl Output for Trace<'_> {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr || self.mark.is_none() {
            return self.pass(stream, bytes);
        }
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let Some(begin) = rest.iter().position(|&byte| byte == BEGIN) {
            self.pass(stream, &rest[..begin]);
            rest = &rest[begin..];
            match rest.iter().take(MAX_MARK).position(|&byte| byte == b'\n') {
                Some(end) => match self.number(&rest[1..end]) {
                    Some(number) => {
                        self.current = number;
                        self.tail = Tail::new(self.limit);
                        self.log.command(number, self.commands.len(), &self.commands[number - 1]);
                        rest = &rest[end + 1..];
                    }
                    None => {
                        self.pass(stream, &rest[..1]);
                        rest = &rest[1..];
                    }
                },
                None if rest.len() < MAX_MARK => {
                    self.held = rest.to_vec();
                    return;
                }
                None => {
                    self.pass(stream, &rest[..1]);
                    rest = &rest[1..];
                }
            }
        }
        self.pass(stream, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[derive(Default)]
    struct Record {
        text: String,
        commands: Vec<usize>,
    }

    impl Output for Record {
        fn write(&mut self, _: Stream, bytes: &[u8]) {
            self.text.push_str(&String::from_utf8_lossy(bytes));
        }
    }

    impl Log for Record {
        fn command(&mut self, number: usize, _: usize, _: &str) {
            self.commands.push(number);
        }
        fn note(&mut self, _: &str) {}
    }

    fn commands(list: &[&str]) -> Vec<String> {
        list.iter().map(|&command| command.to_owned()).collect()
    }

    #[test]
    fn marks_are_taken_out_wherever_the_stream_is_cut() {
        let list = commands(&["a", "b"]);
        let stream = b"noise\x1eno mark\n\x1em 1\nout\x1em 2\n\x1em 3\nlast\x1e";
        for size in 1..stream.len() {
            let mut record = Record::default();
            let mut trace = Trace::new(&mut record, 3).of_commands(&list, "m");
            for piece in stream.chunks(size) {
                trace.write(Stream::Stdout, piece);
            }
            trace.finish();
            assert_eq!(trace.current, 2);
            assert_eq!(record.text, "noise\x1eno mark\nout\x1em 3\nlast\x1e", "pieces of {size}");
            assert_eq!(record.commands, [1, 2]);
        }
    }

    /// Runs the script; the status and the number of the command it stopped in.
    fn run(shell: &str, list: &[&str], expected: &[i32]) -> (i32, usize, String) {
        let list = commands(list);
        let words: Vec<&str> = shell.split(' ').collect();
        let output = Command::new(words[0])
            .args(&words[1..])
            .args(["-c", &script(&list, "m", expected)])
            .output()
            .expect("shell");
        let mut record = Record::default();
        let mut trace = Trace::new(&mut record, 3).of_commands(&list, "m");
        trace.write(Stream::Stdout, &output.stdout);
        trace.finish();
        let current = trace.current;
        (output.status.code().unwrap_or(-1), current, record.text)
    }

    #[test]
    fn the_failing_command_is_found_in_every_shell() {
        for shell in ["/bin/dash", "/bin/bash", "/bin/busybox sh"] {
            let done = run(shell, &["cd /usr", "A=1", "echo $A; pwd"], &[0]);
            assert_eq!(done, (0, 3, "1\n/usr\n".into()), "{shell}");
            assert_eq!(
                run(shell, &["true", "echo x\n(exit 7)\necho y", "echo z"], &[0]),
                (7, 2, "x\n".into()),
                "{shell}"
            );
            assert_eq!(
                run(shell, &["false && true", "echo z"], &[0]),
                (1, 1, String::new()),
                "{shell}"
            );
            assert_eq!(run(shell, &["true", "exit 5"], &[0]), (5, 2, String::new()), "{shell}");
            assert_eq!(
                run(shell, &["(exit 3)", "echo on", "(exit 3)"], &[0, 3]),
                (3, 3, "on\n".into()),
                "{shell}"
            );
            assert_eq!(
                run(shell, &["(exit 4)", "echo on"], &[0, 3]),
                (4, 1, String::new()),
                "{shell}"
            );
        }
    }
}
