//! How a build is told to stop: a flag that blocking work looks at, and a wake-up for async work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Set once, by a signal; cloned into everything that may take long.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl Cancel {
    /// Asks everything to stop.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.notify.notify_waiters();
    }

    /// Returns whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Returns the flag, for code that polls.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Waits until a stop is asked for.
    pub async fn wait(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is read, so that no wake-up falls between the two.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}
