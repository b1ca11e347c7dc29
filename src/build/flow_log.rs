//! `net.jsonl`: one JSON object a line for each flow of the guest's and each request that we served,
//! so that what a build fetched can be told afterwards.
//!
//! Lines are written by a thread of its own, since the network's may not wait. When it falls behind
//! lines are lost, and counted; the file has a limit.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use kvmbake_net::{Flow, Outcome};
use kvmbake_provision::http::Served;
use serde_json::{Value, json};

use crate::calendar::rfc3339_milliseconds;
use crate::report::{Event, Report, Stage};

/// Lines that may wait to be written.
const WAITING: usize = 4096;
/// Longest log in bytes.
const LIMIT: u64 = 64 << 20;

/// A log, open until it is finished.
pub struct FlowLog {
    sender: SyncSender<Message>,
    lost: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A request that was answered.
pub struct Request<'r> {
    /// Where it was sent.
    pub at: SocketAddrV4,
    /// What became of it.
    pub served: &'r Served,
}

enum Message {
    /// A line, and what a person is told of it.
    Line(Value, Option<String>),
    End,
}

impl FlowLog {
    /// Starts a new file at `path`, in place of an earlier one.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, report: Arc<dyn Report>) -> io::Result<Arc<FlowLog>> {
        let file = File::create(path)?;
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("flow log".into())
            .spawn(move || write(file, &receiver, report.as_ref()))?;
        let thread = Mutex::new(Some(thread));
        Ok(Arc::new(FlowLog { sender, lost: AtomicU64::new(0), thread }))
    }

    /// Notes a flow; a denied one is told live as well.
    pub fn flow(&self, flow: &Flow) {
        let told = match &flow.outcome {
            Outcome::Denied(why) => Some(denied(flow, why)),
            _ => None,
        };
        self.send(|| line_of(flow, SystemTime::now()), told);
    }

    /// Notes a request.
    pub fn request(&self, request: &Request<'_>) {
        let Request { at, served } = request;
        let line = || {
            json!({
                "time": rfc3339_milliseconds(began(SystemTime::now(), served.duration)),
                "kind": "http", "peer": at.to_string(), "method": served.method,
                "path": served.path, "status": served.status, "to_guest": served.bytes,
            })
        };
        self.send(line, None);
    }

    fn send(&self, line: impl FnOnce() -> Value, told: Option<String>) {
        let mut line = line();
        let lost = self.lost.swap(0, Ordering::AcqRel);
        if lost > 0 {
            line["lost_before"] = lost.into();
        }
        if self.sender.try_send(Message::Line(line, told)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::AcqRel);
        }
    }

    /// Waits until all lines are written.
    pub fn finish(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.sender.send(Message::End);
            let _ = thread.join();
        }
    }
}

fn write(file: File, lines: &Receiver<Message>, report: &dyn Report) {
    let mut file = BufWriter::new(file);
    let mut written = 0;
    while let Some(message) = next(&mut file, lines) {
        let Message::Line(line, told) = message else { break };
        if let Some(text) = told {
            report.event(Event::Note { stage: Stage::Net, text: &text });
        }
        let mut line = line.to_string();
        line.push('\n');
        if written < LIMIT {
            written += line.len() as u64;
            if written >= LIMIT {
                line = "{\"kind\":\"limit\"}\n".into();
            }
            // A log that cannot be written must not stop the build; the disk it shares with the
            // images reports the same trouble where it matters.
            let _ = file.write_all(line.as_bytes());
        }
    }
    let _ = file.flush();
}

/// Returns the next message; what is written is on its way to the file while there is none.
fn next(file: &mut impl Write, lines: &Receiver<Message>) -> Option<Message> {
    lines.try_recv().ok().or_else(|| {
        let _ = file.flush();
        lines.recv().ok()
    })
}

fn began(now: SystemTime, age: Duration) -> SystemTime {
    now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn line_of(flow: &Flow, now: SystemTime) -> Value {
    let mut line = json!({
        "time": rfc3339_milliseconds(began(now, flow.age)),
        "kind": flow.protocol.as_str(), "peer": flow.peer.to_string(),
        "guest_port": flow.guest_port, "from_guest": flow.from_guest, "to_guest": flow.to_guest,
        "seconds": flow.age.as_millis() as f64 / 1000.0, "result": flow.outcome.as_str(),
    });
    if let Some(name) = &flow.name {
        line["name"] = (**name).into();
    }
    if flow.inbound {
        line["inbound"] = true.into();
    }
    if let Outcome::Denied(why) = &flow.outcome {
        line["reason"] = why.as_str().into();
    }
    if flow.untold > 0 {
        line["untold_before"] = flow.untold.into();
    }
    line
}

/// A denied flow as a person is told of it.
pub fn denied(flow: &Flow, why: &str) -> String {
    let untold = match flow.untold {
        0 => String::new(),
        untold => format!("; {untold} before it were not told"),
    };
    let protocol = flow.protocol.as_str();
    match (&flow.name, flow.protocol) {
        (Some(name), kvmbake_net::Protocol::Dns) => format!("denied dns {name}: {why}{untold}"),
        (Some(name), _) => format!("denied {protocol} {} ({name}): {why}{untold}", flow.peer),
        (None, _) => format!("denied {protocol} {}: {why}{untold}", flow.peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Notes;
    use kvmbake_net::Protocol;

    fn flow(outcome: Outcome) -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            inbound: false,
            guest_port: 4000,
            peer: "192.0.2.1:443".parse().unwrap(),
            name: Some("deb.test".into()),
            age: Duration::from_millis(1500),
            from_guest: 10,
            to_guest: 2000,
            outcome,
            untold: 0,
        }
    }

    #[test]
    fn flows_and_requests_are_lines_and_denied_flows_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.jsonl");
        let report = Arc::new(Notes::default());
        let log = FlowLog::create(&path, Arc::clone(&report) as _).unwrap();
        log.flow(&flow(Outcome::Closed));
        log.flow(&flow(Outcome::Denied("the network is restricted".into())));
        let served = Served {
            method: "GET".into(),
            path: "/vm-bootstrap".into(),
            target: "/vm-bootstrap".into(),
            status: 200,
            bytes: 12,
            duration: Duration::ZERO,
        };
        log.request(&Request { at: "10.0.2.100:80".parse().unwrap(), served: &served });
        log.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["kind"], "tcp");
        assert_eq!(lines[0]["name"], "deb.test");
        assert_eq!(lines[0]["peer"], "192.0.2.1:443");
        assert_eq!((&lines[0]["from_guest"], &lines[0]["to_guest"]), (&10.into(), &2000.into()));
        assert_eq!((&lines[0]["seconds"], &lines[0]["result"]), (&1.5.into(), &"closed".into()));
        assert_eq!(lines[1]["reason"], "the network is restricted");
        assert_eq!(lines[2]["path"], "/vm-bootstrap");
        assert_eq!(lines[2]["status"], 200);
        let told = report.take();
        let expected = "denied tcp 192.0.2.1:443 (deb.test): the network is restricted";
        assert_eq!(*told, [expected]);
    }
}
