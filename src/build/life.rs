//! One boot of the guest: the running machine, its network, and the watch over both. Whatever the
//! build does with the guest, it does under this watch, so that a panic, a power-off or Ctrl-C ends
//! it at once instead of by a time-out.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvmbake_net::NatHandle;
use kvmbake_vmm::{Exit, Handle, Running};
use tokio::sync::watch;

use super::cancel::Cancel;
use super::console::{Console, Distress};

/// After the first line of a panic its call trace follows; the report should have it.
const PANIC_TRACE: Duration = Duration::from_millis(700);
/// How long a step's end waits to learn why its connection broke.
const VERDICT: Duration = Duration::from_secs(10);

/// Why the guest cannot be worked with any more.
#[derive(Debug, Clone)]
pub enum Ended {
    /// The user stopped the build.
    Cancelled,
    /// The console shows that the guest cannot go on.
    Distress(Distress),
    /// The machine ended.
    Exit(Arc<Exit>),
}

/// A running machine. Dropping it stops the machine and waits for its end.
pub struct Life {
    machine: Handle,
    /// The guest's network.
    pub nat: NatHandle,
    exit: watch::Receiver<Option<Arc<Exit>>>,
    waiter: Option<JoinHandle<()>>,
}

impl Life {
    /// Takes charge of a machine that was just started.
    pub fn new(running: Running, nat: NatHandle) -> Life {
        let machine = running.handle();
        let (announce, exit) = watch::channel(None);
        let waiter = std::thread::spawn(move || {
            let exit = running.wait();
            // The receiver may be gone already, when the build was.
            let _ = announce.send(Some(Arc::new(exit)));
        });
        Life { machine, nat, exit, waiter: Some(waiter) }
    }

    /// Returns a handle to the machine.
    pub fn machine(&self) -> Handle {
        self.machine.clone()
    }

    /// Presses the machine's power button.
    pub fn press_power_button(&self) {
        self.machine.power_button();
    }

    /// Returns what waits for the machine's end.
    pub fn end(&self) -> impl Future<Output = Arc<Exit>> + use<> {
        let mut exit = self.exit.clone();
        async move {
            let seen = exit.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone());
            // When the waiting thread died without a word, which no guest can make it do.
            seen.unwrap_or_else(|| Arc::new(Exit::Stopped))
        }
    }

    /// Runs `work` until it is done or the guest cannot be worked with any more.
    pub async fn watch<T>(
        &self,
        console: &Console,
        cancel: &Cancel,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        tokio::select! {
            biased;
            () = cancel.wait() => Err(Ended::Cancelled),
            distress = console.distress() => {
                tokio::time::sleep(PANIC_TRACE).await;
                Err(Ended::Distress(distress))
            }
            exit = self.end() => Err(Ended::Exit(exit)),
            done = work => Ok(done),
        }
    }

    /// Waits a moment for what explains a connection that broke: the machine's end or a panic.
    pub async fn verdict(&self, console: &Console, cancel: &Cancel) -> Option<Ended> {
        self.watch(console, cancel, tokio::time::sleep(VERDICT)).await.err()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.machine.stop();
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}
