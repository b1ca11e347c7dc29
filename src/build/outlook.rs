//! What a build will do, before it does anything: which layers are there, which will be made, and
//! why each that is missing is missing.

use std::fmt;

use super::layers::Layers;
use super::position::Position;
use crate::cache::{
    Change, Discarded, Layer, LayerId, MACHINE_STATE, Miss, Recipe, Trace, Traced, causes,
    counterparts,
};
use crate::error::Error;
use crate::profile::Profile;
use crate::profile::units::Size;

/// The positions of a build up to its goal.
pub struct Outlook {
    /// In order.
    pub entries: Vec<Entry>,
    /// What was found damaged and thrown away.
    pub discarded: Vec<Discarded>,
}

/// One position.
pub struct Entry {
    /// Which.
    pub position: Position,
    /// What it is about.
    pub title: String,
    /// What defines its layer; none when the cache is not used for it.
    pub recipe: Option<Recipe>,
    /// Whether it is there.
    pub state: State,
}

/// Whether a position's layer is there.
pub enum State {
    /// It is.
    Cached(Layer),
    /// It is not, or may not be used.
    Run(Why),
}

/// Why a position is made.
pub enum Why {
    /// The cache is not used for it: why.
    NotKept(String),
    /// What is different from the profile's last run, or became of its layer.
    Causes(Vec<Change>),
}

impl Outlook {
    /// Looks at all positions up to `goal`. Without a cache everything runs.
    ///
    /// # Errors
    /// A file of the profile cannot be read, or the cache cannot, or the user stopped the command.
    pub async fn of(
        profile: &Profile,
        layers: Option<&Layers>,
        goal: Position,
    ) -> Result<Outlook, Error> {
        let mut outlook = Outlook { entries: Vec::new(), discarded: Vec::new() };
        let positions = Position::all(profile.steps.len()).take_while(|position| *position <= goal);
        let Some(layers) = layers else {
            outlook.entries.extend(positions.map(|position| {
                let title = position.title(profile);
                let state = State::Run(Why::NotKept("the cache is off".into()));
                Entry { position, title, recipe: None, state }
            }));
            return Ok(outlook);
        };
        let positions: Vec<Position> = positions.collect();
        let kept: Vec<Position> = positions.iter().copied().filter(|p| layers.keeps(*p)).collect();
        let recipes =
            kept.iter().map(|position| layers.recipe(*position)).collect::<Result<Vec<_>, _>>()?;
        let before = layers.last_run();
        let earlier = counterparts(&before.layers, &recipes);
        let mut recipes = recipes.into_iter().zip(earlier);
        for position in positions {
            let title = position.title(profile);
            let (recipe, state) = match recipes.next() {
                Some((recipe, earlier)) => {
                    let earlier = earlier.and_then(|index| before.layers.get(index));
                    let state = outlook.state(layers, position, &recipe, earlier).await?;
                    (Some(recipe), state)
                }
                None => (None, State::Run(Why::NotKept(not_kept(layers, position)))),
            };
            outlook.entries.push(Entry { position, title, recipe, state });
        }
        Ok(outlook)
    }

    async fn state(
        &mut self,
        layers: &Layers,
        position: Position,
        recipe: &Recipe,
        earlier: Option<&Traced>,
    ) -> Result<State, Error> {
        let parent = match self.entries.last() {
            None => None,
            Some(Entry { state: State::Cached(layer), .. }) => Some(layer.id()),
            // What differs here is worth knowing even though the layer would be made anyway.
            Some(_) => {
                return Ok(State::Run(Why::Causes(causes(recipe, earlier, true, &Miss::Absent))));
            }
        };
        let look = layers.find(position, recipe.clone(), parent).await?;
        self.discarded.extend(look.discarded);
        Ok(match look.found {
            Ok(layer) => State::Cached(layer),
            Err(miss) => State::Run(Why::Causes(causes(recipe, earlier, false, &miss))),
        })
    }

    /// Returns the run as the next one will be compared with it. `kept` are the layers that it made;
    /// `before` is the last run, of which stays what this one did not come to.
    pub fn traced(&self, kept: &[(Position, LayerId)], before: Trace) -> Trace {
        let traced = |entry: &Entry| {
            let made = kept.iter().find(|(position, _)| *position == entry.position);
            let layer = entry.layer().map(Layer::id).or(made.map(|(_, id)| *id));
            Some(Traced { title: entry.title.clone(), recipe: entry.recipe.clone()?, layer })
        };
        let mut layers: Vec<Traced> = self.entries.iter().filter_map(traced).collect();
        if layers.len() == self.entries.len() {
            layers.extend(before.layers.into_iter().skip(self.entries.len()));
        }
        Trace { layers }
    }

    /// Returns the layers that are there, from the first on without a gap.
    pub fn cached(&self) -> impl Iterator<Item = (&Entry, &Layer)> {
        self.entries.iter().map_while(|entry| Some((entry, entry.layer()?)))
    }
}

fn not_kept(layers: &Layers, position: Position) -> String {
    match layers.kept_until() {
        Some(first) if first != position => format!("follows {first}, which is not kept"),
        _ => "`cache = false`".into(),
    }
}

impl Entry {
    /// Returns the layer, when it is there.
    pub fn layer(&self) -> Option<&Layer> {
        match &self.state {
            State::Cached(layer) => Some(layer),
            State::Run(_) => None,
        }
    }

    /// Returns what becomes of it, in a word.
    pub fn action(&self) -> &'static str {
        match &self.state {
            State::Cached(_) => "cached",
            State::Run(_) => "run",
        }
    }

    /// Returns what a person should know beside its title: which layer it is, or why it is made.
    pub fn remark(&self) -> String {
        match &self.state {
            State::Cached(layer) => {
                let memory = if layer.file(MACHINE_STATE).is_some() { ", from memory" } else { "" };
                format!("layer {}, {}{memory}", layer.id().short(), Size(layer.allocated()))
            }
            State::Run(why) => why.to_string(),
        }
    }

    /// Returns the differences behind the reason, a few lines each.
    pub fn details(&self) -> Vec<String> {
        match &self.state {
            State::Run(Why::Causes(changes)) => changes.iter().flat_map(Change::details).collect(),
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NotKept(why) => f.write_str(why),
            Why::Causes(changes) => {
                let changed = changes.iter().filter(|change| is_difference(change));
                let changed: Vec<String> = changed.map(ToString::to_string).collect();
                if !changed.is_empty() {
                    return write!(f, "changed: {}", changed.join("; "));
                }
                // That the one above is made as well says nothing new of one that was never there.
                let told =
                    |change: &&Change| !matches!(change, Change::Parent) || changes.len() == 1;
                let others: Vec<String> =
                    changes.iter().filter(told).map(ToString::to_string).collect();
                f.write_str(&others.join("; "))
            }
        }
    }
}

/// Whether the change is one of what the profile says or of what it names.
fn is_difference(change: &Change) -> bool {
    !matches!(
        change,
        Change::New
            | Change::Parent
            | Change::Expired { .. }
            | Change::Damaged { .. }
            | Change::Evicted
            | Change::NotKept
    )
}
