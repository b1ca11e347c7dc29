//! The build's side of the cache: which layer a position would be, whether it is there, and why not.

use std::sync::Arc;
use std::time::Duration;

use super::cancel::Cancel;
use super::plan::Plan;
use super::position::Position;
use super::recipe;
use super::services::Services;
use crate::cache::{
    Begun, Cache, CacheError, Collected, Digest, Discarded, Layer, LayerId, Limits, Lookup, Miss,
    Recipe, Served, Trace, limit_from_environment,
};
use crate::error::{Blame, Error};

/// The cache as one build uses it.
#[derive(Clone)]
pub struct Layers {
    cache: Cache,
    plan: Arc<Plan>,
    services: Arc<Services>,
    /// The key that the build brings into the guest.
    public_key: Option<String>,
    /// From here on, nothing that is there is good enough.
    from: Option<Position>,
    cancel: Cancel,
}

/// The outcome of a look into the cache.
pub struct Look<T> {
    /// What was found.
    pub found: T,
    /// What was thrown away on the way.
    pub discarded: Vec<Discarded>,
}

impl Layers {
    /// Looks at `cache` for `plan`.
    ///
    /// # Errors
    /// A folder of the profile cannot be served.
    pub fn new(
        cache: Cache,
        plan: Arc<Plan>,
        public_key: Option<String>,
        from: Option<Position>,
        cancel: Cancel,
    ) -> Result<Layers, Error> {
        let services = Arc::new(Services::of(&plan.profile.net)?);
        Ok(Layers { cache, plan, services, public_key, from, cancel })
    }

    /// Returns the cache itself.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns the first position whose guest may not be kept: that of a step which says so. No
    /// later one can be kept either.
    pub fn kept_until(&self) -> Option<Position> {
        let steps = &self.plan.profile.steps;
        steps.iter().position(|step| !step.cache).map(|index| Position::Step(index + 1))
    }

    /// Returns whether the layer of `position` may be kept and used.
    pub fn keeps(&self, position: Position) -> bool {
        self.kept_until().is_none_or(|first| position < first)
    }

    /// Returns what defines the layer of `position`, its files read anew.
    ///
    /// # Errors
    /// A file cannot be read, or the user stopped the command.
    pub fn recipe(&self, position: Position) -> Result<Recipe, Error> {
        let key = self.public_key.as_deref();
        recipe::recipe(&self.plan, position, key, &self.cache, self.cancel.flag())
    }

    /// Looks for the layer that `recipe` makes of `parent`.
    ///
    /// # Errors
    /// The cache cannot be read, or the user stopped the command.
    pub async fn find(
        &self,
        position: Position,
        recipe: Recipe,
        parent: Option<LayerId>,
    ) -> Result<Look<Result<Layer, Miss>>, Error> {
        let found = self
            .blocking(position, recipe, parent, |cache, lookup| cache.find(lookup))
            .await?
            .map_err(|error| failed(&error))?;
        Ok(Look { found: found.result, discarded: found.discarded })
    }

    /// Takes the right to build the layer, or finds that another build has built it; `waits` hears
    /// when that takes a while.
    ///
    /// # Errors
    /// The cache cannot be written; the build may go on without. Or the user stopped the command.
    pub async fn begin(
        &self,
        position: Position,
        recipe: Recipe,
        parent: Option<LayerId>,
        mut waits: impl FnMut(Option<u32>) + Send + 'static,
    ) -> Result<Result<Look<Begun>, CacheError>, Error> {
        let begun = self
            .blocking(position, recipe, parent, move |cache, lookup| {
                cache.begin(lookup, &mut waits)
            })
            .await?;
        match begun {
            Err(CacheError::Cancelled) => Err(Error::interrupted()),
            Err(error) => Ok(Err(error)),
            Ok((found, discarded)) => Ok(Ok(Look { found, discarded })),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        position: Position,
        recipe: Recipe,
        parent: Option<LayerId>,
        work: impl FnOnce(&Cache, &Lookup<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let layers = self.clone();
        let work = move || {
            let served = |path: &str| layers.served(path);
            let lookup = Lookup {
                parent,
                recipe: &recipe,
                max_age: layers.max_age(position),
                served: &served,
                cancel: layers.cancel.flag(),
            };
            work(&layers.cache, &lookup)
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            Error::new(Blame::Internal, "A look into the cache died").because(&error)
        })
    }

    /// Returns the digest of what a guest would be served for what it asked for; `None` for nothing.
    pub fn served(&self, name: &str) -> Option<Digest> {
        self.services.served(name, &self.cache, self.cancel.flag())
    }

    /// Returns what the guest was served for each of `paths`.
    pub fn served_all(&self, paths: Vec<String>) -> Vec<Served> {
        let served = |path: String| Served { digest: self.served(&path), path };
        paths.into_iter().map(served).collect()
    }

    /// How old a layer of `position` may be.
    fn max_age(&self, position: Position) -> Option<Duration> {
        if self.from.is_some_and(|from| position >= from) {
            return Some(Duration::ZERO);
        }
        match position {
            Position::Step(number) => {
                self.plan.profile.steps.get(number - 1).and_then(|step| step.max_age)
            }
            _ => None,
        }
    }

    /// Brings the cache within its limit: compresses memory that has rested, and removes what was
    /// used longest ago.
    ///
    /// # Errors
    /// The limit is no size, or the cache cannot be read or written.
    pub async fn tidy(&self) -> Result<Collected, Error> {
        let (cache, cancel) = (self.cache.clone(), self.cancel.clone());
        let work = move || {
            let bytes = limit_from_environment()?;
            cache.gc(&Limits { bytes, pack: true, cancel: cancel.flag() })
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::new(Blame::Internal, "Tidying the cache died").because(&error))?
            .map_err(|error| failed(&error))
    }

    /// Returns the profile's last run.
    pub fn last_run(&self) -> Trace {
        self.cache.trace(&self.plan.profile.identity()).unwrap_or_default()
    }

    /// Remembers this run as the profile's last.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn remember_run(&self, run: &Trace) -> Result<(), CacheError> {
        self.cache.record_trace(&self.plan.profile.identity(), run)
    }
}

/// Turns an error of the cache into the build's.
pub fn failed(error: &CacheError) -> Error {
    if matches!(error, CacheError::Cancelled) {
        return Error::interrupted();
    }
    let mut failed = Error::input("Cannot use the cache").because(error);
    failed.hint = error.hint().map(str::to_string);
    failed
}
