//! How a guest comes to be at a position: from the memory of the last layer, or booted from its disk.

use std::sync::Arc;
use std::time::SystemTime;

use kvmbake_provision::clock::{self, ClockSet};
use kvmbake_provision::{Privilege, Reseeded};

use super::bake::{Bake, Walk};
use super::chain::{Chain, Suspended};
use super::disk::GuestDisk;
use super::guest::{Guest, Setup};
use super::hold::Failed;
use super::position::Position;
use super::stage::Stages;
use super::step;
use crate::cache::Layer;
use crate::error::{Blame, Error};
use crate::report::Stage;

impl Bake<'_> {
    /// Starts a guest for `position` from where the chain stands.
    pub(super) async fn start(&self, walk: &mut Walk, position: Position) -> Result<Guest, Failed> {
        let stages = Stages::new(self.report.as_ref());
        let tip = walk.chain.tip.clone();
        if let Some((suspended, layer)) = self.suspended(tip.as_ref()) {
            let about = format!("going on from memory (layer {})", layer.id().short());
            let setup = self.setup(&walk.chain)?;
            let resumed = stages
                .run(Stage::Boot, &about, async {
                    Ok((Guest::resume(setup, suspended).await?, about.clone()))
                })
                .await;
            match resumed {
                Ok((mut guest, memory)) => {
                    if let Err(error) = self.connect(&mut guest).await {
                        return Err(Failed::with(guest, error));
                    }
                    self.wake(&guest).await;
                    walk.memory = Some((memory, Some(layer.id())));
                    return Ok(guest);
                }
                Err(error) if error.blame == Blame::Interrupted => return Err(error.into()),
                Err(error) => self.tell_boot_instead(layer, &error.causes.join(": ")),
            }
        }
        let setup = self.setup(&walk.chain)?;
        let mut guest = stages
            .run(Stage::Boot, "reading the kernel from the image", async {
                let guest = Guest::boot(setup).await?;
                let origin =
                    guest.kernel.as_ref().map_or_else(String::new, |kernel| kernel.origin.clone());
                Ok((guest, origin))
            })
            .await?;
        let mut there = self.connect(&mut guest).await;
        if there.is_ok() && position != Position::Boot {
            let limit = self.plan.profile.ssh.timeout;
            there = step::wait_for_cloud_init(&mut guest, &stages, limit).await;
        }
        match there {
            Ok(()) => Ok(guest),
            Err(error) => Err(Failed::with(guest, error)),
        }
    }

    /// Returns the machine of `tip` if this host can go on with it; says so when it cannot.
    fn suspended<'l>(&self, tip: Option<&'l Layer>) -> Option<(Suspended, &'l Layer)> {
        let layer = tip.filter(|_| self.plan.profile.cache.memory)?;
        let cache = self.layers.as_ref()?.cache();
        let config = self.plan.machine();
        match Suspended::open(layer, config.memory, cache, self.cancel.flag()) {
            Ok(suspended) => suspended.map(|suspended| (suspended, layer)),
            Err(why) => {
                self.tell_boot_instead(layer, &why);
                None
            }
        }
    }

    fn tell_boot_instead(&self, layer: &Layer, why: &str) {
        let id = layer.id().short();
        let text = format!("layer {id} cannot go on from its memory: {why}; booting its disk");
        self.note(Stage::Boot, &text);
    }

    async fn connect(&self, guest: &mut Guest) -> Result<(), Error> {
        Stages::new(self.report.as_ref())
            .run(Stage::Ssh, "waiting for the guest", async {
                let server = guest.connect().await?.server().to_string();
                Ok(((), format!("{}@guest, {server}", self.plan.profile.ssh.user)))
            })
            .await
    }

    /// Gives a guest that has slept the right time, and random numbers that no other guest of the
    /// same layer draws. What cannot be done is worth a note.
    async fn wake(&self, guest: &Guest) {
        let Ok(provisioned) = guest.provisioned() else { return };
        let session = &provisioned.session;
        let both = async {
            tokio::join!(
                clock::set(session, &Privilege::Root, SystemTime::now),
                kvmbake_provision::reseed(session, &Privilege::Root),
            )
        };
        // A guest that ended meanwhile is found out by what comes next.
        let Ok((set, reseeded)) = guest.watch(both).await else { return };
        let late = match set {
            Ok(ClockSet::Set { .. }) => None,
            Ok(ClockSet::NotAllowed { message }) => Some(message),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = late {
            self.note(Stage::Ssh, &format!("the guest's clock stays behind: {why}"));
        }
        let same = match reseeded {
            Ok(Reseeded::Now | Reseeded::Soon) => None,
            Ok(Reseeded::No { message }) => Some(message),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = same {
            let text = format!("the guest's random numbers may repeat those of another run: {why}");
            self.note(Stage::Ssh, &text);
        }
    }

    fn setup(&self, chain: &Chain) -> Result<Setup, Error> {
        // What another guest fetched is no business of this one's layers.
        drop(self.network.fetched().take());
        let disk = GuestDisk::new(self.scratch, Arc::clone(&chain.disk), self.plan.build_size)
            .map_err(|error| Error::input("Cannot create the build's overlay").because(&error))?;
        Ok(Setup {
            plan: Arc::clone(&self.plan),
            disk: Arc::new(disk),
            seed: self.seed.clone(),
            key: Arc::clone(&self.key),
            console: self.console.clone(),
            network: Arc::clone(&self.network),
            report: Arc::clone(&self.report),
            control: self.control.clone(),
            cancel: self.cancel.clone(),
        })
    }
}
