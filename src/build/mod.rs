//! The pipeline: base → layers (boot, steps, sealed disk) → artifacts.
//!
//! What the cache holds of the layers is taken from there ([`outlook`]), the rest is made in the
//! guest ([`bake`]). One build works in a folder of its own ([`workspace`]), writes only overlays,
//! and publishes the finished folder by one rename. Whatever ends it early leaves nothing behind but
//! whole layers.

mod bake;
mod base;
pub mod breakpoint;
pub mod cancel;
mod capture;
mod chain;
mod console;
mod control;
mod digest;
mod disk;
pub mod export;
mod fetched;
mod flow_log;
mod guest;
mod hold;
mod images;
mod inputs;
mod keep;
mod layers;
mod life;
mod manifest;
mod milestones;
mod network;
mod outlook;
mod place;
pub mod plan;
mod position;
mod reach;
mod recent;
mod recipe;
mod reuse;
mod seal;
mod seed;
mod services;
mod stage;
mod start;
mod step;
mod terminal;
mod test;
mod workspace;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use kvmbake_disk::{Block, MemoryBlock, create_overlay};
use kvmbake_provision::key::BuildKey;

pub use cancel::Cancel;
pub use guest::Guest;
pub use hold::{Hold, OnError, Reload};
pub use inputs::Inputs;
pub use outlook::{Entry, Outlook};
pub use place::Place;
pub use plan::Plan;
pub use position::Position;
pub use test::{Verdict, for_test, newest};

use crate::cache::{Cache, LayerId};
use crate::checksum;
use crate::error::{Blame, Error};
use crate::profile::units::Size;
use crate::report::{Event, Report, Stage};
use bake::Bake;
use chain::Chain;
use console::Console;
use control::{Control, Opened, Told};
use hold::Stopped;
use layers::Layers;
use network::Network;
use stage::Stages;
use step::transfer;
use workspace::Workspace;

/// The overlay that is larger than what is below it.
const GROWN: &str = "grown.qcow2";
const SERIAL_LOG: &str = "serial.log";

/// What a person may ask of a build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Neither take layers from the cache nor keep any.
    pub no_cache: bool,
    /// From here on, make everything anew.
    pub from: Option<Position>,
    /// Write a new folder even when a finished one holds the same images.
    pub force: bool,
    /// Let the guest reach the profile's forwards and nothing else.
    pub offline: bool,
    /// Tell at the end what went on in the guest's network.
    pub stats: bool,
    /// Stop at the profile's breakpoints.
    pub breakpoints: bool,
}

/// One build under way.
pub struct Build {
    plan: Arc<Plan>,
    layers: Option<Layers>,
    key: Arc<BuildKey>,
    force: bool,
    offline: bool,
    stats: bool,
    breakpoints: bool,
    report: Arc<dyn Report>,
    control: Control,
    /// The control socket, from when the build has begun on.
    opened: OnceLock<Opened>,
    /// What a person may do after a failure.
    hold: Option<Hold>,
    cancel: Cancel,
    begun: Instant,
    now: SystemTime,
}

impl Build {
    /// Gets ready to build `plan`: opens the cache, and the key that goes with it.
    ///
    /// # Errors
    /// The cache cannot be used.
    pub fn new(
        plan: Arc<Plan>,
        options: &Options,
        report: Arc<dyn Report>,
        cancel: Cancel,
    ) -> Result<Build, Error> {
        let (key, layers) = key_and_layers(&plan, options.no_cache, options.from, &cancel)?;
        let Options { force, offline, stats, breakpoints, .. } = *options;
        let (begun, now) = (Instant::now(), SystemTime::now());
        let control = Control::new(&plan.profile, cancel.clone());
        let report: Arc<dyn Report> = Told::new(report, control.clone());
        Ok(Build {
            plan,
            layers,
            key,
            force,
            offline,
            stats,
            breakpoints,
            report,
            control,
            opened: OnceLock::new(),
            hold: None,
            cancel,
            begun,
            now,
        })
    }

    /// Lets a person look at the guest when something fails in it, and try again.
    pub fn holding(mut self, hold: Hold) -> Build {
        self.hold = Some(hold);
        self
    }

    /// Returns the build that is to be tried again, with another plan. What `--from` asked for has been
    /// made anew already.
    fn again(self, plan: Plan) -> Result<Build, Error> {
        let plan = Arc::new(plan);
        let (key, layers) = key_and_layers(&plan, self.layers.is_none(), None, &self.cancel)?;
        let now = SystemTime::now();
        Ok(Build { plan, key, layers, now, ..self })
    }

    /// Says what a build up to `goal` would do.
    ///
    /// # Errors
    /// A file of the profile cannot be read, or the cache cannot.
    pub async fn outlook(&self, goal: Position) -> Result<Outlook, Error> {
        Outlook::of(&self.plan.profile, self.layers.as_ref(), goal).await
    }

    /// Builds the images into a new folder below `output`, and returns that folder; or returns the
    /// folder of a finished build that holds the same.
    ///
    /// # Errors
    /// Whatever ended the build; nothing of it is left then but layers.
    pub async fn images(mut self, output: &Path) -> Result<PathBuf, Error> {
        loop {
            match self.try_images(output).await {
                Err(Stopped::Again(plan)) => self = self.again(*plan)?,
                ended => return ended.map_err(Stopped::into_error),
            }
        }
    }

    async fn try_images(&self, output: &Path) -> Result<PathBuf, Stopped> {
        clean(output, self.report.as_ref())?;
        let digest = self.base().await?;
        let outlook = self.told_outlook(Position::Sealed).await?;
        if let Some(folder) = self.unchanged(&outlook, output) {
            return Ok(folder);
        }
        let place = self.place(Some(output))?;
        let bake = self.bake(&place)?;
        let mut reached = bake.run(&outlook).await?;
        bake.network.finish();
        let sealed = reached.layer;
        let disk = self.grown(&reached.chain.disk, &place)?;
        let stages = Stages::new(self.report.as_ref());
        let images =
            stages.run(Stage::Export, "", self.write_images(disk, sealed, place.workspace()));
        let (images, ()) = tokio::join!(images, self.tidy());
        let images = images?;
        let digest = self.digest(digest).await?;
        self.deliver(&reached.chain, Some(place.workspace())).await?;
        let manifest = self.manifest(&reached.chain, digest, images);
        let lost = reached.settle().await;
        if let Some(layers) = &self.layers {
            self.remember_run(layers, &outlook, &reached.kept);
        }
        let failed = |error: std::io::Error| {
            Error::input(format!("Cannot finish the build in {}", output.display())).because(&error)
        };
        let workspace = place.into_workspace().map_err(failed)?;
        manifest.write(&workspace.path(""), &self.plan.profile.secrets).map_err(failed)?;
        let folder = workspace.publish().map_err(failed)?;
        match (lost, sealed) {
            (Some(error), _) => self.note(&format!("the sealed disk is not kept: {error}")),
            (None, Some(sealed)) => self.remember(sealed, &folder, &manifest),
            (None, None) => {}
        }
        self.done(&folder, &manifest.artifacts);
        Ok(folder)
    }

    /// Returns the sealed disk at the images' size. Its file systems stay as they are.
    fn grown(&self, disk: &Arc<dyn Block>, place: &Place) -> Result<Arc<dyn Block>, Error> {
        let size = self.plan.virtual_size;
        if disk.len() >= size {
            return Ok(Arc::clone(disk));
        }
        let grown = create_overlay(&place.overlays().join(GROWN), Arc::clone(disk), size);
        grown
            .map(|disk| disk as Arc<dyn Block>)
            .map_err(|error| Error::input("Cannot grow the build's disk").because(&error))
    }

    /// Goes as far as `goal`, and leaves its layer in the cache.
    ///
    /// # Errors
    /// Whatever ended the build, or kept the layer from the cache.
    pub async fn until(mut self, goal: Position) -> Result<(), Error> {
        loop {
            match self.try_until(goal).await {
                Err(Stopped::Again(plan)) => self = self.again(*plan)?,
                ended => return ended.map_err(Stopped::into_error),
            }
        }
    }

    async fn try_until(&self, goal: Position) -> Result<(), Stopped> {
        let (outlook, place) = self.ahead(goal).await?;
        let bake = self.bake(&place)?;
        let mut reached = bake.run(&outlook).await?;
        reached.guest = None;
        bake.network.finish();
        let lost = reached.settle().await;
        if let Some(layers) = &self.layers {
            self.remember_run(layers, &outlook, &reached.kept);
        }
        self.deliver(&reached.chain, None).await?;
        self.tidy().await;
        let text = match (lost, reached.layer) {
            (Some(error), _) => return Err(layers::failed(&error).into()),
            (None, Some(layer)) => format!("{goal} is in the cache  (layer {})", layer.short()),
            (None, None) => format!("{goal} was reached, and is not kept"),
        };
        self.note(&text);
        Ok(())
    }

    /// Gives a running guest as it is after `goal`, whose writes are thrown away with it. The place
    /// must live as long as the guest.
    ///
    /// # Errors
    /// Whatever ended the build.
    pub async fn guest_at(&self, goal: Position) -> Result<(Guest, Place), Error> {
        let (outlook, place) = self.ahead(goal).await?;
        let bake = self.bake(&place)?;
        let mut reached = bake.run(&outlook).await.map_err(Stopped::into_error)?;
        if let Some(error) = reached.settle().await {
            self.note(&format!("{goal} is not kept: {error}"));
        }
        let guest = bake.guest_of(reached).await?;
        Ok((guest, place))
    }

    /// Puts what steps downloaded to its places.
    async fn deliver(&self, chain: &Chain, workspace: Option<&Workspace>) -> Result<(), Error> {
        let (plan, packs) = (Arc::clone(&self.plan), chain.downloads.clone());
        let folder = workspace.map(|workspace| workspace.path(""));
        let work = move || transfer::deliver(&plan.profile, &packs, folder.as_deref());
        let done = tokio::task::spawn_blocking(work).await;
        let count = done.map_err(|error| {
            Error::new(Blame::Internal, "Writing the downloads died").because(&error)
        })??;
        if count > 0 {
            let text = format!("{count} downloaded files written");
            self.report.event(Event::Note { stage: Stage::Export, text: &text });
        }
        Ok(())
    }

    /// Gives a running guest of the plan's image as it is, whose writes are thrown away with it. The place must
    /// live as long as the guest.
    ///
    /// # Errors
    /// The guest did not come up.
    pub async fn guest_of_image(&self) -> Result<(Guest, Place), Error> {
        let place = self.place(None)?;
        let bake = self.bake(&place)?;
        let guest = bake.guest_on(Chain::new(Arc::clone(&self.plan.base))).await?;
        Ok((guest, place))
    }

    /// Brings the cache within its limit.
    async fn tidy(&self) {
        let Some(layers) = &self.layers else { return };
        match layers.tidy().await {
            Ok(collected) if !collected.removed.is_empty() => {
                let (count, freed) =
                    (collected.removed.len(), collected.before.saturating_sub(collected.after));
                self.note(&format!("{count} old layers removed, {}", Size(freed)));
            }
            Ok(_) => {}
            Err(error) if error.blame == Blame::Interrupted => {}
            Err(error) => self.note(&format!("old layers stay: {}", error.causes.join(": "))),
        }
    }

    /// Gets ready for a build without images.
    async fn ahead(&self, goal: Position) -> Result<(Outlook, Place), Error> {
        self.base().await?;
        let outlook = self.told_outlook(goal).await?;
        Ok((outlook, self.place(None)?))
    }

    /// Looks ahead and tells what was seen; the profile's recipes of today are what the next run's
    /// changes are told against.
    async fn told_outlook(&self, goal: Position) -> Result<Outlook, Error> {
        let outlook = self.outlook(goal).await?;
        let Some(layers) = &self.layers else { return Ok(outlook) };
        for gone in &outlook.discarded {
            self.note(&format!("thrown away: {gone}"));
        }
        for entry in &outlook.entries {
            self.report.event(Event::Planned {
                action: entry.action(),
                position: &entry.position.to_string(),
                title: &entry.title,
                remark: &entry.remark(),
            });
        }
        self.remember_run(layers, &outlook, &[]);
        Ok(outlook)
    }

    fn remember_run(&self, layers: &Layers, outlook: &Outlook, kept: &[(Position, LayerId)]) {
        let run = outlook.traced(kept, layers.last_run());
        if let Err(error) = layers.remember_run(&run) {
            self.note(&format!("the next run will not know what changed since this one: {error}"));
        }
    }

    fn place(&self, output: Option<&Path>) -> Result<Place, Error> {
        self.open_control(output);
        let cache = self.layers.as_ref().map(Layers::cache);
        Place::create(output, &self.plan.profile.image.name, self.now, cache)
    }

    /// Opens the control socket, unless it is there from an attempt before.
    fn open_control(&self, output: Option<&Path>) {
        if self.opened.get().is_some() {
            return;
        }
        match self.control.open(output) {
            Ok(opened) => drop(self.opened.set(opened)),
            Err(error) => {
                let why = error.in_one_line();
                self.note(&format!("nobody can attach to this build: {why}"));
            }
        }
    }

    fn bake<'p>(&self, place: &'p Place) -> Result<Bake<'p>, Error> {
        let path = place.workspace().path(SERIAL_LOG);
        let console = Console::create(&path, &self.plan.profile.secrets).map_err(|error| {
            Error::input(format!("Cannot create {}", path.display())).because(&error)
        })?;
        self.control.set_console(console.clone());
        let report = Arc::clone(&self.report);
        let folder = place.workspace().path("");
        let network = Network::open(&self.plan.profile, &folder, self.offline, self.stats, report)?;
        Ok(Bake {
            plan: Arc::clone(&self.plan),
            network: Arc::new(network),
            layers: self.layers.clone(),
            scratch: place.overlays(),
            console,
            key: Arc::clone(&self.key),
            seed: self.seed()?,
            breakpoints: self.breakpoints,
            report: Arc::clone(&self.report),
            control: self.control.clone(),
            hold: self.hold.clone(),
            cancel: self.cancel.clone(),
        })
    }

    /// The seed disk. Its instance id follows from the booted guest's recipe, or from the key where
    /// there is none: cloud-init sees a new instance in each build of another base, also when that is
    /// an image built here with the same key, and the same one after a reboot within a build.
    fn seed(&self) -> Result<Option<Arc<MemoryBlock>>, Error> {
        let public_key = self.key.public_openssh();
        let identity = match &self.layers {
            Some(layers) => layers.recipe(Position::Boot)?.key(None).to_string(),
            None => checksum::of_bytes(public_key.as_bytes()).to_string(),
        };
        let id: String = identity.trim_start_matches("sha256:").chars().take(16).collect();
        let key = self.plan.private_key.is_none().then_some(public_key);
        let image = seed::make(&self.plan.profile, &self.plan.seed, &format!("kvmbake-{id}"), key)
            .map_err(|error| Error::input("Cannot make the seed").because(&error))?;
        Ok(image.map(|image| Arc::new(MemoryBlock::read_only(image))))
    }

    fn note(&self, text: &str) {
        self.report.event(Event::Note { stage: Stage::Cache, text });
    }
}

/// Opens what `plan` is built with: the key, and the cache unless it is not to be used.
fn key_and_layers(
    plan: &Arc<Plan>,
    no_cache: bool,
    from: Option<Position>,
    cancel: &Cancel,
) -> Result<(Arc<BuildKey>, Option<Layers>), Error> {
    let cache = match plan.profile.cache.enabled && !no_cache {
        true => Some(Cache::open_default().map_err(|error| layers::failed(&error))?),
        false => None,
    };
    let key = Arc::new(key(plan, cache.as_ref())?);
    let public_key = plan.private_key.is_none().then(|| key.public_openssh());
    let layers = |cache| Layers::new(cache, Arc::clone(plan), public_key, from, cancel.clone());
    Ok((key, cache.map(layers).transpose()?))
}

/// The key that opens the guest: the profile's, the cache's, or one for this build alone.
fn key(plan: &Plan, cache: Option<&Cache>) -> Result<BuildKey, Error> {
    if let Some(key) = &plan.private_key {
        return Ok(key.clone());
    }
    match cache {
        Some(cache) => cache.ssh_key().map_err(|error| layers::failed(&error)),
        None => BuildKey::generate(&plan.profile.image.name)
            .map_err(|error| Error::new(Blame::Internal, "Cannot make a key").because(&error)),
    }
}

fn clean(output: &Path, report: &dyn Report) -> Result<(), Error> {
    let removed = workspace::remove_leftovers(output).map_err(|(path, error)| {
        Error::input(format!("Cannot remove what a dead build left at {}", path.display()))
            .because(&error)
    })?;
    for folder in removed {
        let text = format!("removed {}, which a dead build left", folder.display());
        report.event(Event::Note { stage: Stage::Clean, text: &text });
    }
    Ok(())
}
