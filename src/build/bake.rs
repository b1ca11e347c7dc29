//! From the base to a goal, one position after the other: what the cache has is taken, the rest is
//! made in the guest and kept. A guest runs only while there is something to make; it comes from the
//! last layer's memory, or is booted from the last layer's disk.
//!
//! Of several builds that want the same layer one makes it, and the others wait for it. A build holds
//! the right to one layer at a time, in the order of positions, so no two wait for each other.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use kvmbake_disk::MemoryBlock;
use kvmbake_provision::key::BuildKey;
use kvmbake_vmm::memory::SavedMemory;

use super::cancel::Cancel;
use super::chain::{Chain, Notes};
use super::console::Console;
use super::control::Control;
use super::guest::Guest;
use super::hold::{Failed, Hold, Stopped, Waiting};
use super::layers::Layers;
use super::network::Network;
use super::outlook::Outlook;
use super::plan::Plan;
use super::position::Position;
use super::stage::Stages;
use super::step::transfer::DOWNLOADS;
use super::{breakpoint, step};
use crate::cache::{Begun, Building, CacheError, Layer, LayerId, Parent, Publishing, Recipe};
use crate::error::Error;
use crate::report::{Event, Report, Stage};

/// What a build works with.
pub struct Bake<'b> {
    /// What to build.
    pub plan: Arc<Plan>,
    /// The cache, when it is used.
    pub layers: Option<Layers>,
    /// The folder for the overlays of guests.
    pub scratch: &'b Path,
    /// Where the console goes.
    pub console: Console,
    /// The key to log in with.
    pub key: Arc<BuildKey>,
    /// The guest's network.
    pub network: Arc<Network>,
    /// The seed disk.
    pub seed: Option<Arc<MemoryBlock>>,
    /// Whether to stop at the profile's breakpoints.
    pub breakpoints: bool,
    /// Where news go.
    pub report: Arc<dyn Report>,
    /// What others may know of the build.
    pub control: Control,
    /// What a person may do after a failure; none where nobody is asked.
    pub hold: Option<Hold>,
    /// Whether to stop.
    pub cancel: Cancel,
}

/// Where a build has come to.
pub struct Reached {
    /// The disk, and what is known of it.
    pub chain: Chain,
    /// The guest, when one runs.
    pub guest: Option<Guest>,
    /// The layer of the last position, when it is in the cache.
    pub layer: Option<LayerId>,
    /// The layers that were made on the way, and are kept.
    pub kept: Vec<(Position, LayerId)>,
    /// Its publication, when that is still under way.
    pending: Option<Publishing>,
}

impl Reached {
    /// Waits until the last layer is in the cache; says why it is not, when it is not.
    pub async fn settle(&mut self) -> Option<CacheError> {
        let pending = self.pending.take()?;
        wait(pending).await.err()
    }
}

/// A build on its way.
pub(super) struct Walk {
    pub(super) chain: Chain,
    guest: Option<Guest>,
    /// What the cache holds of the guest's memory, and the layer that holds the last of it.
    pub(super) memory: Option<(SavedMemory, Option<LayerId>)>,
    /// The last layer, still being published.
    pub(super) pending: Option<Publishing>,
    /// The layers made so far.
    pub(super) kept: Vec<(Position, LayerId)>,
    /// Whether the next layer would have its parent in the cache.
    pub(super) keeping: bool,
}

impl Walk {
    fn new(chain: Chain, keeping: bool) -> Walk {
        Walk { chain, guest: None, memory: None, pending: None, kept: Vec::new(), keeping }
    }

    /// Returns the layer that the next one is built on.
    pub(super) fn parent(&self) -> Option<LayerId> {
        match &self.pending {
            Some(pending) => Some(pending.id()),
            None => self.chain.tip.as_ref().map(Layer::id),
        }
    }

    /// Hands over the layer that the next one is built on.
    pub(super) fn take_parent(&mut self) -> Parent {
        match self.pending.take() {
            Some(pending) => Parent::Pending(pending),
            None => self.chain.tip.as_ref().into(),
        }
    }
}

impl Bake<'_> {
    /// Goes as far as the last position of `outlook`.
    ///
    /// # Errors
    /// Whatever ended the build; or that it is to begin anew, with another plan.
    pub async fn run(&self, outlook: &Outlook) -> Result<Reached, Stopped> {
        let chain = Chain::new(Arc::clone(&self.plan.base));
        let mut walk = Walk::new(chain, self.layers.is_some());
        match self.walk(&mut walk, outlook).await {
            Ok(()) => {
                let layer = walk.keeping.then(|| walk.parent()).flatten();
                let Walk { chain, guest, kept, pending, .. } = walk;
                Ok(Reached { chain, guest, layer, kept, pending })
            }
            Err(error) => {
                // What was made before the failure is what the next run begins with. The guest must
                // not run on meanwhile; a second Ctrl-C ends the wait.
                walk.guest = None;
                if let Some(pending) = walk.pending.take()
                    && let Err(lost) = wait(pending).await
                {
                    self.stop_keeping(&mut walk, &lost);
                }
                Err(error)
            }
        }
    }

    async fn walk(&self, walk: &mut Walk, outlook: &Outlook) -> Result<(), Stopped> {
        let mut rest = outlook.entries.as_slice();
        for (_, layer) in outlook.cached() {
            walk.chain.push(layer.clone())?;
            rest = &rest[1..];
        }
        for entry in rest {
            self.stop_before(walk, entry.position).await?;
            let building = match &entry.recipe {
                Some(recipe) => self.turn(walk, entry.position, recipe).await?,
                None => {
                    walk.keeping = false;
                    Turn::Make(None)
                }
            };
            if let Turn::Make(building) = building {
                self.make(walk, entry.position, &entry.title, building).await?;
            }
        }
        Ok(())
    }

    /// Stops at the breakpoints before `position`. What a person does there is in no recipe, so nothing
    /// that follows is kept.
    async fn stop_before(&self, walk: &mut Walk, position: Position) -> Result<(), Error> {
        for stop in breakpoint::before(&self.plan.profile, position).filter(|_| self.breakpoints) {
            let guest = self.guest_for(walk, position).await;
            let mut guest = guest.map_err(|failed| failed.error)?;
            guest.connect().await?;
            breakpoint::stop(&guest, stop, position).await?;
            walk.guest = Some(guest);
            if walk.keeping {
                walk.keeping = false;
                self.note(Stage::Cache, "layers that follow a breakpoint are not kept");
            }
        }
        Ok(())
    }

    /// Returns the guest of what was reached; a new one, when none runs.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn guest_of(&self, mut reached: Reached) -> Result<Guest, Error> {
        if let Some(guest) = reached.guest.take() {
            return Ok(guest);
        }
        self.guest_on(reached.chain).await
    }

    /// Starts a guest on what stands there.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn guest_on(&self, chain: Chain) -> Result<Guest, Error> {
        let mut walk = Walk::new(chain, false);
        let started = self.start(&mut walk, Position::Sealed).await;
        started.map_err(|failed| failed.error)
    }

    /// Finds out whether `position` is to be made here.
    async fn turn(
        &self,
        walk: &mut Walk,
        position: Position,
        recipe: &Recipe,
    ) -> Result<Turn, Error> {
        let Some(layers) = self.layers.as_ref().filter(|_| walk.keeping) else {
            return Ok(Turn::Make(None));
        };
        let report = Arc::clone(&self.report);
        let waits = move |pid: Option<u32>| {
            let who = pid.map_or_else(
                || "another build".into(),
                |pid| format!("the build with process ID {pid}"),
            );
            let text = format!("waiting for {who}, which is making {position}");
            report.event(Event::Note { stage: Stage::Cache, text: &text });
        };
        let begun = layers.begin(position, recipe.clone(), walk.parent(), waits).await?;
        let look = match begun {
            Ok(look) => look,
            Err(error) => {
                self.stop_keeping(walk, &error);
                return Ok(Turn::Make(None));
            }
        };
        self.tell_discarded(&look.discarded);
        match look.found {
            Begun::Build(building) => Ok(Turn::Make(Some(building))),
            Begun::Found(layer) => {
                // Another build was faster. Our own guest has lived another life than this layer's.
                walk.guest = None;
                walk.memory = None;
                walk.pending = None;
                let text = format!("{position} is there now  (layer {})", layer.id().short());
                self.note(Stage::Cache, &text);
                walk.chain.push(layer)?;
                Ok(Turn::Found)
            }
        }
    }

    /// Makes `position` in the guest, and keeps it in `building`.
    async fn make(
        &self,
        walk: &mut Walk,
        position: Position,
        title: &str,
        building: Option<Building>,
    ) -> Result<(), Stopped> {
        let mut notes = Notes::default();
        let mut guest = match self.ready(walk, position, &mut notes).await {
            Ok(guest) => guest,
            Err(failed) => return Err(self.hold(position, title, building, failed).await),
        };
        match position {
            Position::Boot => {}
            Position::Step(number) => self.take_downloads(walk, number, building.as_ref())?,
            Position::Sealed => return Ok(self.seal(walk, guest, title, building).await?),
        }
        if let Some(building) = building {
            self.keep(walk, &mut guest, position, title, building, notes).await?;
        }
        walk.guest = Some(guest);
        Ok(())
    }

    /// Takes what a step downloaded into its layer, and into the chain.
    fn take_downloads(
        &self,
        walk: &mut Walk,
        number: usize,
        building: Option<&Building>,
    ) -> Result<(), Error> {
        let path = self.scratch.join(DOWNLOADS);
        let pack = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.and_then(|pack| {
                match building {
                    Some(building) => fs::rename(&path, building.path(DOWNLOADS))?,
                    None => fs::remove_file(&path)?,
                }
                Ok(pack)
            }),
        };
        let failed = |error| Error::input("Cannot keep what was downloaded").because(&error);
        walk.chain.downloads.push((number, Arc::new(pack.map_err(failed)?)));
        Ok(())
    }

    /// Returns a guest that is as it is to be at `position`, and notes how it came to that.
    async fn ready(
        &self,
        walk: &mut Walk,
        position: Position,
        notes: &mut Notes,
    ) -> Result<Guest, Failed> {
        let stages = Stages::new(self.report.as_ref());
        let mut guest = self.guest_for(walk, position).await?;
        let done = match position {
            Position::Boot => self.ready_for_steps(&mut guest, &stages).await.map(|()| {
                notes.kernel = guest.kernel.clone();
                walk.chain.kernel = guest.kernel.clone();
            }),
            Position::Step(number) => {
                let Some(definition) = self.plan.profile.steps.get(number - 1) else {
                    return Ok(guest);
                };
                let report = Arc::clone(&self.report);
                let done =
                    step::run(&mut guest, &stages, number, definition, report, self.scratch).await;
                done.map(|done| {
                    walk.chain.steps.push(done.clone());
                    notes.step = Some(done);
                })
            }
            Position::Sealed => Ok(()),
        };
        match done {
            Ok(()) => Ok(guest),
            Err(error) => Err(Failed::with(guest, error)),
        }
    }

    async fn ready_for_steps(&self, guest: &mut Guest, stages: &Stages<'_>) -> Result<(), Error> {
        step::wait_for_cloud_init(guest, stages, self.plan.profile.ssh.timeout).await?;
        match self.plan.profile.seed.eth0_names {
            true => step::keep_eth0(guest, stages).await,
            false => Ok(()),
        }
    }

    /// Returns the guest that runs, or starts one.
    async fn guest_for(&self, walk: &mut Walk, position: Position) -> Result<Guest, Failed> {
        match walk.guest.take() {
            Some(guest) => Ok(guest),
            None => self.start(walk, position).await,
        }
    }

    /// Waits with the guest of a failure until a person is done with it, if that is wanted. The right to
    /// build the layer goes back meanwhile.
    async fn hold(
        &self,
        position: Position,
        title: &str,
        building: Option<Building>,
        failed: Failed,
    ) -> Stopped {
        let Some(hold) = &self.hold else { return Stopped::Failed(failed.error) };
        let step = match position {
            Position::Step(number) => self.plan.profile.steps.get(number - 1),
            _ => None,
        };
        let on_error = hold.on_error(step.map(|step| step.on_error).unwrap_or_default());
        let has_layers = self.layers.is_some();
        drop(building);
        let what = match position {
            Position::Boot => "the boot".into(),
            Position::Step(number) => format!("step {number} ({title})"),
            Position::Sealed => "sealing".into(),
        };
        let (control, cancel) = (&self.control, &self.cancel);
        let report = self.report.as_ref();
        let reload = &hold.reload;
        Waiting { on_error, reload, what, has_layers, control, cancel, report }.wait(failed).await
    }

    fn tell_discarded(&self, discarded: &[crate::cache::Discarded]) {
        for gone in discarded {
            self.note(Stage::Cache, &format!("thrown away: {gone}"));
        }
    }

    pub(super) fn note(&self, stage: Stage, text: &str) {
        self.report.event(Event::Note { stage, text });
    }
}

/// Who makes a position.
enum Turn {
    /// It was made already.
    Found,
    /// This build, and keeps it there.
    Make(Option<Building>),
}

async fn wait(pending: Publishing) -> Result<Layer, CacheError> {
    tokio::task::spawn_blocking(move || pending.wait()).await.unwrap_or(Err(CacheError::Cancelled))
}
