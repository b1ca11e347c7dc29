//! The guest's serial console: written to `serial.log`, its last lines kept for failure reports,
//! watched for the signs of a guest that will not come up, and shown to those who look at it. Whatever
//! is written or shown has its secrets hidden.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::watch;

use super::milestones::Milestones;
use crate::secret::{Secrets, Stream};

/// Lines of a failure report.
const REPORT_LINES: usize = 20;
/// Lines kept; a panic is reported with all of them, for an oops stands above it.
const KEPT_LINES: usize = 24;
/// Lines of the report on a panic: what was kept, the panic, its call trace.
const PANIC_LINES: usize = 40;
/// Longest line kept; what a guest prints beyond it is only in the log.
const LINE_LIMIT: usize = 400;
/// Largest `serial.log`; a guest that prints without end must not fill the disk.
const LOG_LIMIT: u64 = 64 << 20;

/// Bytes kept for those who begin to look.
const KEPT_BYTES: usize = 16 << 10;
/// Pieces that may wait for one who looks; what comes beyond is lost for them.
const WAITING: usize = 256;

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
    /// The last lines; after a panic, those around its first line.
    last: VecDeque<String>,
    panicked: bool,
    /// The last bytes as they are shown.
    recent: VecDeque<u8>,
    viewers: Vec<SyncSender<Vec<u8>>>,
    /// How far the boot under way has come.
    boot: Milestones,
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
            last: VecDeque::with_capacity(PANIC_LINES),
            panicked: false,
            recent: VecDeque::new(),
            viewers: Vec::new(),
            boot: Milestones::new(Instant::now()),
            announce,
        };
        Ok(Console { shared: Arc::new(Mutex::new(shared)), distress })
    }

    /// Returns a writer for one boot's machine; the boot begins now.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        lock(&self.shared).boot = Milestones::new(Instant::now());
        Box::new(Writer(Arc::clone(&self.shared)))
    }

    /// Returns the lines for a failure report: the last ones, the unfinished one included, or those around
    /// a panic.
    pub fn last_lines(&self) -> Vec<String> {
        let shared = lock(&self.shared);
        let mut lines: Vec<String> = shared.last.iter().cloned().collect();
        if !shared.line.is_empty() && lines.len() < PANIC_LINES {
            lines.push(shown(&shared.line));
        }
        let count = if shared.panicked { PANIC_LINES } else { REPORT_LINES };
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Returns how far the boot under way has come.
    pub fn milestones(&self) -> Milestones {
        lock(&self.shared).boot.clone()
    }

    /// Returns the last bytes, and a channel that gets all that follow.
    pub fn view(&self) -> (Vec<u8>, Receiver<Vec<u8>>) {
        let (sender, receiver) = sync_channel(WAITING);
        let mut shared = lock(&self.shared);
        shared.viewers.push(sender);
        (shared.recent.iter().copied().collect(), receiver)
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
        let mut shown = Vec::with_capacity(bytes.len());
        self.secrets.push(bytes, &mut |bytes| shown.extend_from_slice(bytes));
        if self.logged < LOG_LIMIT {
            // A log that cannot be written must not stop the guest; the disk it shares with the
            // images reports the same trouble where it matters.
            let _ = self.log.write_all(&shown);
            self.logged += shown.len() as u64;
        }
        self.show(shown);
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

    /// Passes on what those who look are to see. None of them can hold the guest up.
    fn show(&mut self, shown: Vec<u8>) {
        let kept = &shown[shown.len().saturating_sub(KEPT_BYTES)..];
        let excess = (self.recent.len() + kept.len()).saturating_sub(KEPT_BYTES);
        self.recent.drain(..excess);
        self.recent.extend(kept);
        self.viewers.retain(|viewer| {
            !matches!(viewer.try_send(shown.clone()), Err(TrySendError::Disconnected(_)))
        });
    }

    fn end_line(&mut self) {
        let line = shown(&self.line);
        self.line.clear();
        self.boot.line(&line, Instant::now());
        let distress = recognise(&line);
        self.keep(line, matches!(distress, Some(Distress::Panic(_))));
        if let Some(distress) = distress {
            self.announce(distress);
        }
    }

    /// Keeps a line for the report.
    fn keep(&mut self, line: String, panic: bool) {
        self.panicked |= panic;
        if !self.panicked && self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        if self.last.len() < PANIC_LINES {
            self.last.push_back(line);
        }
    }

    /// A prompt never ends its line.
    fn watch_prompt(&mut self) {
        if self.line.ends_with(b"login: ") {
            let line = shown(&self.line);
            self.boot.unfinished(line.as_bytes(), Instant::now());
        }
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
        assert_eq!(console.last_lines(), ["OK started", "login: "]);
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
        assert_eq!(console.last_lines()[18..], ["line 998", "line 999"]);
        assert_eq!(console.last_lines().len(), 20);
        writer.write_all(b"login: ").unwrap();
        assert_eq!(console.last_lines()[18..], ["line 999", "login: "]);
    }

    #[test]
    fn a_report_shows_the_panic_with_what_led_to_it_and_its_trace_however_long_that_is() {
        let (_folder, console) = console();
        let mut writer = console.writer();
        for number in 0..100 {
            writeln!(writer, "before {number}").unwrap();
        }
        writer.write_all(b"Kernel panic - not syncing: Fatal exception\n").unwrap();
        writer.write_all(b"Call Trace:\n").unwrap();
        let lines = console.last_lines();
        assert_eq!(lines[lines.len() - 3..][0], "before 99");
        for number in 0..100 {
            writeln!(writer, "after {number}").unwrap();
        }
        let lines = console.last_lines();
        assert_eq!(lines.len(), 40);
        assert_eq!((&*lines[0], &*lines[23]), ("before 76", "before 99"));
        assert_eq!(lines[24], "Kernel panic - not syncing: Fatal exception");
        assert_eq!((&*lines[25], &*lines[39]), ("Call Trace:", "after 13"));
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
    fn each_boot_is_followed_anew() {
        let (_folder, console) = console();
        let boot = b"[    0.000000] Linux version 6.1\r\n\r\n\x1b[1mweb login: \r\nweb login: ";
        console.writer().write_all(boot).unwrap();
        let text = console.milestones().text();
        assert!(text.starts_with("kernel after ") && text.contains(", login prompt"), "{text}");
        drop(console.writer());
        assert!(console.milestones().prompt(Instant::now()).is_none());
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
    fn who_looks_sees_the_last_bytes_and_all_that_follow_but_no_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::default();
        secrets.add("hunter2");
        let console = Console::create(&folder.path().join("serial.log"), &secrets).unwrap();
        let mut writer = console.writer();
        writer.write_all(&[b'x'; KEPT_BYTES]).unwrap();
        writer.write_all(b"\x1b[1mlogin: ").unwrap();
        let (recent, output) = console.view();
        assert_eq!(recent.len(), KEPT_BYTES);
        assert!(recent.starts_with(b"x") && recent.ends_with(b"x\x1b[1mlogin: "));
        writer.write_all(b"hunter2\r\n").unwrap();
        assert_eq!(output.try_recv().unwrap(), b"***\r\n");
        // One who does not read loses what comes, and holds nobody up.
        for _ in 0..2 * WAITING {
            writer.write_all(b".").unwrap();
        }
        assert_eq!(output.try_iter().count(), WAITING);
        drop(output);
        writer.write_all(b".").unwrap();
        assert!(lock(&console.shared).viewers.is_empty());
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let (_folder, console) = console();
        console.writer().write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(console.last_lines()[0].len(), LINE_LIMIT);
    }
}
