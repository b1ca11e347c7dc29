//! The events of one cell of a matrix: they go to the common report under the cell's name, and to the
//! cell's own log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Event, Report, Stage};

/// Tells a report of one cell.
pub struct OfCell {
    inner: Arc<dyn Report>,
    cell: String,
    log: Option<Arc<dyn Report>>,
    exported: AtomicBool,
}

impl OfCell {
    /// Tells `inner` under the name of `cell`, and `log`.
    pub fn new(inner: Arc<dyn Report>, cell: String, log: Option<Arc<dyn Report>>) -> Arc<OfCell> {
        Arc::new(OfCell { inner, cell, log, exported: AtomicBool::new(false) })
    }

    /// Returns whether images were written: a build that finds all of them writes none.
    pub fn has_exported(&self) -> bool {
        self.exported.load(Ordering::Relaxed)
    }
}

impl Report for OfCell {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::Started { stage: Stage::Export, .. }) {
            self.exported.store(true, Ordering::Relaxed);
        }
        if let Some(log) = &self.log {
            log.event(event);
        }
        self.inner.cell_event(&self.cell, event);
    }
}
