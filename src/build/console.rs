//! The guest's serial console: written to `serial.log`, its last lines kept for failure reports,
//! and watched for the signs of a guest that will not come up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::secret::{Secrets, Stream};

/// Lines kept for failure reports.
const KEPT_LINES: usize = 40;
/// Longest line kept; what a guest prints beyond it is only in the log.
const LINE_LIMIT: usize = 400;
/// Largest `serial.log`; a guest that prints without end must not fill the disk.
const LOG_LIMIT: u64 = 64 << 20;

/// What the console tells about a guest that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distress {
    /// The kernel panicked: its message.
    Panic(String),
    /// The boot ended in a shell that waits for a person: the line that says so.
    EmergencyShell(String),
}

/// The console of one build, over all boots of its guest.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Mutex<Shared>>,
    distress: watch::Receiver<Option<Distress>>,
}

struct Shared {
    log: File,
    /// Keeps secrets out of the log.
    secrets: Stream,
    logged: u64,
    line: Vec<u8>,
    last: VecDeque<String>,
    announce: watch::Sender<Option<Distress>>,
}

impl Console {
    /// Starts a console that logs to a new file at `path`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, secrets: &Secrets) -> io::Result<Console> {
        let (announce, distress) = watch::channel(None);
        let log = File::create_new(path)?;
        let line = Vec::with_capacity(LINE_LIMIT);
        let shared = Shared {
            log,
            secrets: secrets.stream(),
            logged: 0,
            line,
            last: VecDeque::with_capacity(KEPT_LINES),
            announce,
        };
        Ok(Console { shared: Arc::new(Mutex::new(shared)), distress })
    }

    /// Returns a writer for one boot's machine.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(Writer(Arc::clone(&self.shared)))
    }

    /// Returns the last lines, the unfinished one included.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let shared = lock(&self.shared);
        let mut lines: Vec<String> = shared.last.iter().cloned().collect();
        if !shared.line.is_empty() {
            lines.push(shown(&shared.line));
        }
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Waits until the console shows that the guest cannot go on.
    pub async fn distress(&self) -> Distress {
        let mut distress = self.distress.clone();
        let seen = distress.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone());
        match seen {
            Some(distress) => distress,
            None => std::future::pending().await,
        }
    }
}

struct Writer(Arc<Mutex<Shared>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was held back as the beginning of a secret is none when nothing follows.
impl Drop for Shared {
    fn drop(&mut self) {
        let log = &mut self.log;
        self.secrets.finish(&mut |bytes| drop(log.write_all(bytes)));
    }
}

impl Shared {
    fn take(&mut self, bytes: &[u8]) {
        if self.logged < LOG_LIMIT {
            // A log that cannot be written must not stop the guest; the disk it shares with the
            // images reports the same trouble where it matters.
            let log = &mut self.log;
            self.secrets.push(bytes, &mut |bytes| drop(log.write_all(bytes)));
            self.logged += bytes.len() as u64;
        }
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ if self.line.len() < LINE_LIMIT => {
                    self.line.push(byte);
                    if byte == b' ' || byte == b'#' {
                        self.watch_prompt();
                    }
                }
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = shown(&self.line);
        self.line.clear();
        if let Some(distress) = recognise(&line) {
            self.announce(distress);
        }
        if self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// A prompt never ends its line.
    fn watch_prompt(&mut self) {
        if self.line.ends_with(b"(initramfs) ") {
            self.announce(Distress::EmergencyShell(
                "the initramfs's shell asks for commands".into(),
            ));
        }
    }

    fn announce(&self, distress: Distress) {
        self.announce.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(distress);
            }
            first
        });
    }
}

/// What a finished line says about the guest.
fn recognise(line: &str) -> Option<Distress> {
    if let Some(at) = line.find("Kernel panic - not syncing") {
        return Some(Distress::Panic(line[at..].to_string()));
    }
    let emergency = [
        "You are in emergency mode",
        "Entering emergency mode",
        "Give root password for maintenance",
    ];
    emergency
        .iter()
        .any(|sign| line.contains(sign))
        .then(|| Distress::EmergencyShell(line.trim().to_string()))
}

/// A line as text, its escape sequences left out.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut shown = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' && chars.next_if_eq(&'[').is_some() {
            // ECMA-48 §5.4: parameters, then one final character of columns 4 to 7.
            while chars.next_if(|c| !('\x40'..='\x7e').contains(c)).is_some() {}
            chars.next();
        } else if !c.is_control() || c == '\t' {
            shown.push(c);
        }
    }
    shown
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::TempDir, Console) {
        let folder = tempfile::tempdir().unwrap();
        let console =
            Console::create(&folder.path().join("serial.log"), &Secrets::default()).unwrap();
        (folder, console)
    }

    #[test]
    fn the_log_is_verbatim_and_the_kept_lines_are_clean() {
        let (folder, console) = console();
        console.writer().write_all(b"\x1b[0;32mOK\x1b[0m started\r\nlogin: ").unwrap();
        assert_eq!(console.last_lines(9), ["OK started", "login: "]);
        let log = std::fs::read(folder.path().join("serial.log")).unwrap();
        assert_eq!(log, b"\x1b[0;32mOK\x1b[0m started\r\nlogin: ");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let (_folder, console) = console();
        let mut writer = console.writer();
        for number in 0..1000 {
            writeln!(writer, "line {number}").unwrap();
        }
        assert_eq!(console.last_lines(2), ["line 998", "line 999"]);
        assert_eq!(console.last_lines(9999).len(), KEPT_LINES);
    }

    #[tokio::test]
    async fn a_panic_split_over_writes_is_seen_and_the_first_one_stays() {
        let (_folder, console) = console();
        let mut writer = console.writer();
        writer.write_all(b"[    1.0] Kernel panic - not sync").unwrap();
        writer
            .write_all(b"ing: sysrq triggered crash\nKernel panic - not syncing: second\n")
            .unwrap();
        let expected = "Kernel panic - not syncing: sysrq triggered crash";
        assert_eq!(console.distress().await, Distress::Panic(expected.into()));
    }

    #[tokio::test]
    async fn the_initramfs_prompt_is_seen_without_a_line_end() {
        let (_folder, console) = console();
        console.writer().write_all(b"ALERT! gone\r\n(initramfs) ").unwrap();
        assert!(matches!(console.distress().await, Distress::EmergencyShell(_)));
    }

    #[test]
    fn the_log_holds_no_secret_however_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::default();
        secrets.add("hunter2");
        let path = folder.path().join("serial.log");
        let console = Console::create(&path, &secrets).unwrap();
        for piece in ["password hun", "ter2\nhunter1 hunt"] {
            console.writer().write_all(piece.as_bytes()).unwrap();
        }
        drop(console);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "password ***\nhunter1 hunt");
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let (_folder, console) = console();
        console.writer().write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(console.last_lines(1)[0].len(), LINE_LIMIT);
    }
}
