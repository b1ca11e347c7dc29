//! One JSON object a line on standard output, for programs. Every object has `event` and
//! `elapsed` (seconds since the start).

use std::io::Write;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Event, Report};
use crate::error::Error;

/// Writes JSON lines.
pub struct Json {
    started: Instant,
}

impl Json {
    /// Starts the clock.
    pub fn new() -> Json {
        Json { started: Instant::now() }
    }

    fn print(&self, mut value: Value) {
        value["elapsed"] = json!(milliseconds(self.started.elapsed()));
        let mut line = value.to_string();
        line.push('\n');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

impl Report for Json {
    fn event(&self, event: Event<'_>) {
        self.print(object(&event));
    }

    fn cell_event(&self, cell: &str, event: Event<'_>) {
        let mut value = object(&event);
        value["cell"] = json!(cell);
        self.print(value);
    }
}

/// Seconds with three decimals: finer is noise.
fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

fn object(event: &Event<'_>) -> Value {
    match *event {
        Event::Planned { action, position, title, remark } => json!({
            "event": "planned", "action": action, "position": position, "title": title,
            "remark": remark,
        }),
        Event::Started { stage, step, detail } => {
            json!({"event": "started", "stage": stage.name(), "step": step, "detail": detail})
        }
        Event::Finished { stage, step, detail, took } => json!({
            "event": "finished", "stage": stage.name(), "step": step, "detail": detail,
            "seconds": milliseconds(took),
        }),
        Event::Note { stage, text } => {
            json!({"event": "note", "stage": stage.name(), "text": text})
        }
        Event::Output { step, stderr, line } => json!({
            "event": "output", "step": step, "stream": if stderr { "stderr" } else { "stdout" },
            "line": line,
        }),
        Event::Progress { stage, phase, done, total } => json!({
            "event": "progress", "stage": stage.name(), "phase": phase, "done": done, "total": total,
        }),
        Event::Done { folder, took, .. } => {
            json!({"event": "done", "folder": folder, "seconds": milliseconds(took)})
        }
        Event::Kept { error, help } => {
            let mut value = failure(error);
            value["event"] = "kept".into();
            value["help"] = help.into();
            value
        }
        Event::Failed(error) => failure(error),
        Event::Cells(cells) => {
            let cells = cells.iter().map(|one| {
                json!({
                    "cell": one.cell, "result": one.result, "seconds": milliseconds(one.took),
                    "folder": one.folder,
                })
            });
            json!({"event": "cells", "cells": cells.collect::<Vec<_>>()})
        }
    }
}

fn failure(error: &Error) -> Value {
    let faults: Vec<Value> = error
        .faults
        .iter()
        .map(|fault| {
            json!({
                "message": fault.message, "file": fault.place.path.display().to_string(),
                "line": fault.place.line, "column": fault.place.column, "hint": fault.hint,
            })
        })
        .collect();
    let excerpts: Vec<Value> = error
        .excerpts
        .iter()
        .map(|excerpt| json!({"title": excerpt.title, "lines": excerpt.lines}))
        .collect();
    json!({
        "event": "failed", "message": error.to_string(), "causes": error.causes, "hint": error.hint,
        "faults": faults, "excerpts": excerpts, "exit_code": error.blame.exit_code(),
    })
}
