//! The guest of one build, over all of its boots: booted, reached over SSH, and reached again
//! after a reboot.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvmbake_disk::{Block, MemoryBlock};
use kvmbake_net::{DialError, Link, NatHandle};
use kvmbake_provision::key::BuildKey;
use kvmbake_provision::session::{self, Attempts, GaveUp, HostKey, Session, connect_until};
use kvmbake_provision::step::Guest as Provisioned;
use kvmbake_vmm::memory::SavedMemory;
use kvmbake_vmm::virtio::block::{BlockDevice, BlockOptions};
use kvmbake_vmm::virtio::net::NetDevice;
use kvmbake_vmm::virtio::rng::RngDevice;
use kvmbake_vmm::virtio::{BalloonDevice, VirtioDevice};
use kvmbake_vmm::{Exit, Machine, MachineState};
use serde::{Deserialize, Serialize};

use super::cancel::Cancel;
use super::chain::Suspended;
use super::console::{Console, Distress};
use super::control::Control;
use super::disk::GuestDisk;
use super::life::{Ended, Life};
use super::network::Network;
use super::plan::{self, Plan};
use super::reach::{Reach, mute_for};
use crate::control::Login;
use crate::error::{Blame, Error, Excerpt};
use crate::profile::units::Elapsed;
use crate::report::{Event, Report, Stage};

/// The port of SSH.
const SSH: u16 = 22;
/// How long one dial waits for an answer.
const DIAL: Duration = Duration::from_secs(5);
/// How long the handshake and the log-in may take once the port answers.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Most reboots of a build; a guest that only reboots would never end.
const MAXIMUM_BOOTS: u32 = 32;

/// What does not change from boot to boot.
pub struct Setup {
    /// What to build.
    pub plan: Arc<Plan>,
    /// The disk that the build writes.
    pub disk: Arc<GuestDisk>,
    /// The seed disk's bytes.
    pub seed: Option<Arc<MemoryBlock>>,
    /// The key to log in with.
    pub key: Arc<BuildKey>,
    /// The console.
    pub console: Console,
    /// The network, over all boots.
    pub network: Arc<Network>,
    /// Where news go.
    pub report: Arc<dyn Report>,
    /// What others may know of the guest.
    pub control: Control,
    /// Whether to stop.
    pub cancel: Cancel,
}

/// The guest, running.
pub struct Guest {
    pub(super) setup: Setup,
    pub(super) life: Life,
    session: Option<Provisioned>,
    /// The host key of the first session; the later ones must show the same.
    host_key: Option<HostKey>,
    boots: u32,
    /// What the first boot used; unknown of a guest that was not booted here.
    pub kernel: Option<Booted>,
}

/// The kernel of a boot, for the manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Booted {
    /// Where kernel, initrd and command line came from.
    pub origin: String,
    /// The command line.
    pub cmdline: String,
}

impl Guest {
    /// Boots the guest for the first time.
    ///
    /// # Errors
    /// No kernel, no machine.
    pub async fn boot(setup: Setup) -> Result<Guest, Error> {
        let (life, kernel) = start(&setup, Origin::Disk).await?;
        Ok(Guest { setup, life, session: None, host_key: None, boots: 1, kernel })
    }

    /// Lets a suspended guest go on. Returns what is saved of its memory besides.
    ///
    /// # Errors
    /// This host cannot run it.
    pub async fn resume(setup: Setup, suspended: Suspended) -> Result<(Guest, SavedMemory), Error> {
        let Suspended { state, memory } = suspended;
        let mut memory = Some(memory);
        let (life, kernel) = start(&setup, Origin::Memory(Box::new(state), &mut memory)).await?;
        let guest = Guest { setup, life, session: None, host_key: None, boots: 1, kernel };
        let lost = || Error::new(Blame::Internal, "The saved memory is gone");
        Ok((guest, memory.ok_or_else(lost)?))
    }

    /// Waits until the guest takes commands, however often it reboots on the way there.
    ///
    /// # Errors
    /// It did not within the profile's time, with all that is known of why; or the guest ended.
    pub async fn connect(&mut self) -> Result<&Session, Error> {
        let deadline = Instant::now() + self.setup.plan.profile.ssh.timeout;
        while self.session.as_ref().is_none_or(|guest| guest.session.is_closed()) {
            self.session = None;
            let left = deadline.saturating_duration_since(Instant::now());
            let login = session::Login {
                timeout: HANDSHAKE,
                host_key: self.host_key.clone(),
                sudo_password: self.setup.plan.profile.ssh.sudo_password.clone(),
                ..session::Login::new(&self.setup.plan.profile.ssh.user, &self.setup.key)
            };
            let (console, nat) = (&self.setup.console, &self.life.nat);
            let after = |_: &Attempts| match mute_for(
                &console.milestones(),
                &nat.activity(),
                Instant::now(),
            ) {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            };
            let attempts = connect_until(|| dial(nat.clone()), &login, left, after);
            match self.watch(attempts).await {
                Ok(Ok(session)) => {
                    self.host_key = Some(session.host_key().clone());
                    let (user, key) = (&login.user, Arc::clone(&self.setup.key));
                    self.setup.control.set_login(user, key, session.host_key().clone());
                    let (environment, directory) = (Vec::new(), std::path::PathBuf::new());
                    self.session = Some(Provisioned { session, environment, directory });
                }
                Ok(Err(gave_up)) => return Err(self.unreachable(&gave_up)),
                Err(Ended::Exit(exit)) if matches!(*exit, Exit::Reset) => self.boot_again().await?,
                Err(ended) => return Err(self.explain(&ended)),
            }
        }
        Ok(&self.provisioned()?.session)
    }

    /// Whether somebody has ever logged in to it.
    pub fn was_reached(&self) -> bool {
        self.host_key.is_some()
    }

    /// Returns the guest as steps see it.
    ///
    /// # Errors
    /// [`Guest::connect`] was not called, a defect of ours.
    pub fn provisioned(&self) -> Result<&Provisioned, Error> {
        self.session
            .as_ref()
            .ok_or_else(|| Error::new(Blame::Internal, "There is no session with the guest"))
    }

    /// Writes what OpenSSH's programs, and those that use them, need to log in to the guest: with
    /// `ssh -F` and the configuration's path the guest is the host `guest`.
    ///
    /// # Errors
    /// [`Guest::connect`] was not called, the build has no control socket, or a file cannot be written.
    pub fn openssh(&self) -> Result<Login, Error> {
        self.setup.control.openssh()
    }

    /// Whether the guest takes commands without a new session.
    pub fn has_session(&self) -> bool {
        self.session.as_ref().is_some_and(|guest| !guest.session.is_closed())
    }

    /// Runs `work` with the session until it is done or the guest ended.
    ///
    /// # Errors
    /// The guest ended, or the user stopped the build.
    pub async fn watch<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        self.life.watch(&self.setup.console, &self.setup.cancel, work).await
    }

    /// Waits a moment for what explains a connection that broke.
    pub async fn verdict(&self) -> Option<Ended> {
        self.life.verdict(&self.setup.console, &self.setup.cancel).await
    }

    /// Boots again after the guest reset its machine.
    ///
    /// # Errors
    /// No kernel, no machine, or too many reboots.
    pub async fn boot_again(&mut self) -> Result<(), Error> {
        self.session = None;
        self.boots += 1;
        if self.boots > MAXIMUM_BOOTS {
            return Err(self.failed(format!("The guest reset itself {MAXIMUM_BOOTS} times")));
        }
        let (life, kernel) = start(&self.setup, Origin::Disk).await?;
        let origin = kernel.map_or_else(String::new, |kernel| kernel.origin);
        self.setup.report.event(Event::Note {
            stage: Stage::Boot,
            text: &format!("the guest rebooted; {origin}"),
        });
        self.life = life;
        Ok(())
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.life.press_power_button();
    }

    /// Turns the end of the guest into an error.
    pub fn explain(&self, ended: &Ended) -> Error {
        match ended {
            Ended::Cancelled => Error::interrupted(),
            Ended::Distress(Distress::Panic(message)) => {
                self.failed(format!("The guest panicked: {message}"))
            }
            Ended::Distress(Distress::EmergencyShell(line)) => {
                self.failed(format!("The guest's boot ended in an emergency shell: {line}"))
            }
            Ended::Exit(exit) => match exit.as_ref() {
                Exit::Shutdown => self.failed("The guest switched itself off"),
                Exit::Reset => self.failed("The guest reset itself"),
                Exit::Stopped => Error::interrupted(),
                Exit::Failed(failure) => self.failed(format!("The machine stopped: {failure}")),
            },
        }
    }

    /// An error of the guest, with the end of its console.
    pub fn failed(&self, message: impl Into<String>) -> Error {
        let disk = self.setup.disk.counts();
        let error = if disk.errors > 0 {
            Error::guest(message).hint("The host could not serve the guest's disk; is it full?")
        } else {
            Error::guest(message)
        };
        error.excerpt("last lines of the console", self.setup.console.last_lines())
    }

    /// Why nobody could log in: how far the guest came, seen from outside.
    fn unreachable(&self, gave_up: &GaveUp) -> Error {
        let boot = self.setup.console.milestones();
        let activity = self.life.nat.activity();
        let reach = Reach {
            boot: &boot,
            disk: self.setup.disk.counts(),
            activity,
            requests: self.setup.network.recent().lines(),
            attempts: &gave_up.attempts,
            user: &self.setup.plan.profile.ssh.user,
        };
        let waited = Elapsed(gave_up.waited);
        let cause = reach.cause();
        let message = match mute_for(&boot, &activity, Instant::now()) {
            Some(mute) => format!(
                "SSH will not come up: the console has shown a login prompt for {}, and {cause}",
                Elapsed(mute)
            ),
            None => format!("SSH did not come up within {waited}: {cause}"),
        };
        let mut error = self.failed(message);
        error.hint = reach.hint().or(error.hint.take());
        let far = Excerpt { title: "how far the guest came".into(), lines: reach.lines() };
        error.excerpts.insert(0, far);
        let history = gave_up.attempts.causes().iter().map(|attempt| {
            let first = Elapsed(attempt.first);
            format!("from {first} on, {} times: {}", attempt.count, attempt.error)
        });
        error.excerpt("attempts to log in", history.collect())
    }
}

/// Dials the guest's SSH port through its network.
async fn dial(nat: NatHandle) -> std::io::Result<tokio::net::UnixStream> {
    use std::io::{Error, ErrorKind};
    let dialled =
        tokio::task::spawn_blocking(move || nat.dial(SSH, DIAL)).await.map_err(Error::other)?;
    let stream = dialled.map_err(|error| {
        let kind = match error {
            DialError::Refused { .. } => ErrorKind::ConnectionRefused,
            _ => ErrorKind::TimedOut,
        };
        Error::new(kind, error)
    })?;
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// Where a machine comes from.
enum Origin<'m> {
    /// The kernel on the disk as it is now.
    Disk,
    /// A machine that was saved, and its memory, which is lent for as long as starting takes.
    Memory(Box<MachineState>, &'m mut Option<SavedMemory>),
}

/// Starts the machine. Says which kernel was booted, if one was.
async fn start(setup: &Setup, origin: Origin<'_>) -> Result<(Life, Option<Booted>), Error> {
    let plan = Arc::clone(&setup.plan);
    let disk = setup.disk.block();
    // Reading and unpacking a kernel or a memory takes a while, and Ctrl-C is to be heard meanwhile.
    let (mut machine, booted, state) = match origin {
        Origin::Disk => {
            let (machine, booted) = setup.loading(move || boot(&plan, disk)).await?;
            (machine, Some(booted), None)
        }
        Origin::Memory(state, memory) => {
            let lent = memory.take();
            let (machine, lent) = setup.loading(move || fill(&plan, lent)).await?;
            *memory = lent;
            (machine, None, Some(state))
        }
    };
    let (link, handle) = setup.network.link()?;
    machine.set_console(setup.console.writer());
    for device in devices(setup, link) {
        machine.add_virtio(device).map_err(|error| no_machine(&error))?;
    }
    if let Some(state) = state {
        machine.restore(&state).map_err(|error| no_machine(&error))?;
    }
    let running = machine.start().map_err(|error| no_machine(&error))?;
    setup.control.set_running(handle.clone(), running.handle());
    Ok((Life::new(running, handle), booted))
}

impl Setup {
    /// Runs `work` on a thread of its own, until it is done or the user stops the build.
    async fn loading<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        tokio::select! {
            () = self.cancel.wait() => Err(Error::interrupted()),
            loaded = tokio::task::spawn_blocking(work) => loaded.map_err(|error| {
                Error::new(Blame::Internal, "Loading the machine died").because(&error)
            })?,
        }
    }
}

/// Makes a machine with the kernel on `disk` loaded.
fn boot(plan: &Plan, disk: Arc<dyn Block>) -> Result<(Machine, Booted), Error> {
    let kernel = plan::discover(disk, &plan.boot, &plan.profile.image.source.value.to_string())?;
    let cmdline = plan.profile.secrets.redact(&kernel.cmdline).into_owned();
    let booted = Booted { origin: kernel.origin.clone(), cmdline };
    let mut machine = Machine::new(&plan.machine()).map_err(|error| no_machine(&error))?;
    machine.load(&kernel).map_err(|error| no_machine(&error))?;
    Ok((machine, booted))
}

/// Makes a machine with the memory that was saved.
fn fill(plan: &Plan, saved: Option<SavedMemory>) -> Result<(Machine, Option<SavedMemory>), Error> {
    let failed = |error: &dyn std::error::Error| {
        let mut failed = Error::input("Cannot restore the guest's memory");
        failed.causes.push(error.to_string());
        failed
    };
    let saved =
        saved.ok_or_else(|| Error::new(Blame::Internal, "There is no memory to restore"))?;
    let memory = saved.map().map_err(|error| failed(&error))?;
    let machine =
        Machine::with_memory(&plan.machine(), memory).map_err(|error| no_machine(&error))?;
    Ok((machine, Some(saved)))
}

/// The machine's virtio devices. Their order is part of what a saved machine expects.
fn devices(setup: &Setup, link: Box<dyn Link>) -> Vec<Box<dyn VirtioDevice>> {
    let block = |block: Arc<dyn Block>, serial: &str, queues: u16, read_only: bool| {
        let serial = serial.into();
        BlockDevice::new(block, BlockOptions { serial, queues, read_only, ..Default::default() })
    };
    let queues = u16::from(setup.plan.profile.machine.cpus.min(MAXIMUM_DISK_QUEUES));
    let mut devices: Vec<Box<dyn VirtioDevice>> =
        vec![Box::new(block(setup.disk.block(), "kvmbake-root", queues, false))];
    if let Some(seed) = &setup.seed {
        devices.push(Box::new(block(Arc::clone(seed) as _, "kvmbake-seed", 1, true)));
    }
    devices.push(Box::new(NetDevice::new(link)));
    devices.push(Box::new(RngDevice::new()));
    devices.push(Box::new(BalloonDevice::new()));
    devices
}

/// Queues beyond this only cost threads.
const MAXIMUM_DISK_QUEUES: u8 = 4;

fn no_machine(error: &kvmbake_vmm::Error) -> Error {
    let failed = Error::input("Cannot start the machine").because(error);
    failed.hint("`kvmbake doctor` says what is missing and what to do")
}
