//! The cells of a matrix, one build each: as many at once as is asked for and the host's memory holds.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::build::{Cancel, Plan};
use crate::error::{Blame, Error};
use crate::profile::Cell;
use crate::profile::units::Size;
use crate::report::{self, CellResult, Event, OfCell, Redacted, Report, Stage};
use crate::secret::Secrets;

/// What a build takes beside its guest's memory: queues, encoders, the network's buffers.
const OVERHEAD: u64 = 256 << 20;

/// What the builds of several cells have in common.
pub struct Cells<'a> {
    /// Most builds at once.
    pub jobs: usize,
    /// Where the images and the logs go.
    pub output: &'a Path,
    /// Hears of all cells.
    pub report: Arc<dyn Report>,
    /// What no log shows.
    pub secrets: &'a Secrets,
    /// Whether to stop.
    pub cancel: Cancel,
}

impl Cells<'_> {
    /// Builds each of `plans` by `build`, which returns the folder of its images, if it makes any.
    /// Returns the exit code of the worst.
    ///
    /// # Errors
    /// The folder of the logs cannot be made.
    pub fn run(
        &self,
        plans: Vec<Arc<Plan>>,
        build: &(impl Fn(Arc<Plan>, Arc<dyn Report>) -> Result<Option<String>, Error> + Sync),
    ) -> Result<u8, Error> {
        fs::create_dir_all(self.output).map_err(|error| {
            Error::input(format!("Cannot create {}", self.output.display())).because(&error)
        })?;
        let count = plans.len();
        let results: Vec<Mutex<CellResult>> =
            plans.iter().map(|plan| Mutex::new(not_begun(&name(plan)))).collect();
        let codes = Mutex::new(0);
        let queue: Mutex<VecDeque<(usize, Arc<Plan>)>> =
            Mutex::new(plans.into_iter().enumerate().collect());
        let memory = Memory::new(available_memory());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.clamp(1, count.max(1)) {
                scope.spawn(|| {
                    while let Some((index, plan)) = self.next(&queue) {
                        let need = plan.machine().memory.saturating_add(OVERHEAD);
                        let _claim = memory.claim(need, &self.cancel, || self.tell_waits(&plan));
                        if self.cancel.is_set() {
                            break;
                        }
                        let (result, code) = self.one(plan, build);
                        *locked(&results[index]) = result;
                        let mut worst = locked(&codes);
                        *worst = code.max(*worst);
                    }
                });
            }
        });
        let results: Vec<CellResult> =
            results.into_iter().map(|one| locked(&one).clone()).collect();
        self.report.event(Event::Cells(&results));
        let worst = *locked(&codes);
        let interrupted = self.cancel.is_set().then(|| Blame::Interrupted.exit_code());
        Ok(worst.max(interrupted.unwrap_or(0)))
    }

    fn next(&self, queue: &Mutex<VecDeque<(usize, Arc<Plan>)>>) -> Option<(usize, Arc<Plan>)> {
        if self.cancel.is_set() { None } else { locked(queue).pop_front() }
    }

    fn one(
        &self,
        plan: Arc<Plan>,
        build: &impl Fn(Arc<Plan>, Arc<dyn Report>) -> Result<Option<String>, Error>,
    ) -> (CellResult, u8) {
        let cell = name(&plan);
        let begun = Instant::now();
        let log = self.log(&plan);
        let is_logged = log.is_ok();
        let report = OfCell::new(Arc::clone(&self.report), cell.clone(), log.ok());
        if !is_logged {
            let text = "its log cannot be written";
            report.event(Event::Note { stage: Stage::Cells, text });
        }
        let built = build(plan, Arc::clone(&report) as Arc<dyn Report>);
        let took = begun.elapsed();
        match built {
            Ok(folder) => {
                let has_images = folder.is_some();
                let result =
                    if has_images && !report.has_exported() { "unchanged" } else { "done" };
                (CellResult { cell, result, took, folder }, 0)
            }
            Err(error) => {
                report.event(Event::Failed(&error));
                let interrupted = error.blame == Blame::Interrupted;
                let result = if interrupted { "interrupted" } else { "failed" };
                (CellResult { cell, result, took, folder: None }, error.blame.exit_code())
            }
        }
    }

    /// The log of a cell, beside the folders of the images; that of an earlier run is replaced.
    fn log(&self, plan: &Plan) -> std::io::Result<Arc<dyn Report>> {
        let path = self.output.join(format!("{}.log", plan.profile.image.name));
        let file = File::create(path)?;
        Ok(Redacted::new(report::plain_to(Box::new(file)), self.secrets.clone()))
    }

    fn tell_waits(&self, plan: &Plan) {
        let need = Size(plan.machine().memory.saturating_add(OVERHEAD));
        let text = format!("waits until {need} of memory are free");
        self.report.cell_event(&name(plan), Event::Note { stage: Stage::Cells, text: &text });
    }
}

fn name(plan: &Plan) -> String {
    plan.profile.cell.as_ref().map_or_else(|| plan.profile.image.name.clone(), Cell::name)
}

fn not_begun(cell: &str) -> CellResult {
    CellResult { cell: cell.into(), result: "not begun", took: Duration::ZERO, folder: None }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host's memory, as builds claim it. One build may always run.
struct Memory {
    free: u64,
    claims: Mutex<Claims>,
    given_back: Condvar,
}

#[derive(Default)]
struct Claims {
    bytes: u64,
    count: usize,
}

/// Memory that a build has; given back when dropped.
struct Claim<'m> {
    memory: &'m Memory,
    bytes: u64,
}

impl Memory {
    /// Waits look at `cancel` so often.
    const TICK: Duration = Duration::from_millis(200);

    fn new(free: u64) -> Memory {
        Memory { free, claims: Mutex::default(), given_back: Condvar::new() }
    }

    /// Waits until `bytes` are free, or the command is stopped; `waits` hears that it has to.
    fn claim(&self, bytes: u64, cancel: &Cancel, waits: impl FnOnce()) -> Claim<'_> {
        let mut waits = Some(waits);
        let mut claims = locked(&self.claims);
        while claims.count > 0 && claims.bytes.saturating_add(bytes) > self.free && !cancel.is_set()
        {
            if let Some(waits) = waits.take() {
                waits();
            }
            let waited = self.given_back.wait_timeout(claims, Memory::TICK);
            claims = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        claims.bytes = claims.bytes.saturating_add(bytes);
        claims.count += 1;
        Claim { memory: self, bytes }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claims = locked(&self.memory.claims);
        claims.bytes = claims.bytes.saturating_sub(self.bytes);
        claims.count -= 1;
        self.memory.given_back.notify_all();
    }
}

/// Returns the bytes that new programs may take without swapping; no bound where the kernel does not say.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available_of(&text).unwrap_or(u64::MAX)
}

fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn available_memory_is_what_the_kernel_says() {
        let text = "MemTotal:       24528236 kB\nMemAvailable:    1024 kB\nSwapFree: 7 kB\n";
        assert_eq!(available_of(text), Some(1 << 20));
        assert_eq!(available_of("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn builds_at_once_take_no_more_memory_than_there_is() {
        let (memory, cancel) = (Memory::new(1000), Cancel::default());
        let (running, most, waited) =
            (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let _claim = memory.claim(400, &cancel, || {
                        waited.fetch_add(1, Ordering::SeqCst);
                    });
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(locked(&memory.claims).bytes, 0);
        // A build that is larger than the memory runs all the same, alone.
        let alone = memory.claim(5000, &cancel, || panic!("it waits for nobody"));
        cancel.set();
        drop(memory.claim(1, &cancel, || {}));
        drop(alone);
    }
}
