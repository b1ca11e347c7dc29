//! Why a layer is made anew, in a person's words: what differs between a recipe and that of the
//! last run, or what became of the layer.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use super::digest::Digest;
use super::find::Miss;
use super::lines::{Hunk, common, diff};
use super::recipe::{Field, Recipe, Value};
use super::trace::Traced;
use crate::profile::units::Elapsed;
use crate::report::{self, printable};

/// Longest value shown, in characters.
const SHOWN: usize = 60;
/// Longest line of a difference, in characters.
const SHOWN_LINE: usize = 100;
/// Most lines of a difference.
const SHOWN_LINES: usize = 12;

/// One reason. `Display` gives it on one line, [`Change::details`] the difference in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// No earlier run of the profile had it.
    New,
    /// What it is built on is made anew.
    Parent,
    /// A value is another; `None` where the field is missing.
    Text {
        /// The field.
        name: String,
        /// The old value.
        was: Option<String>,
        /// The new value.
        is: Option<String>,
    },
    /// A file is another.
    File {
        /// The field.
        name: String,
        /// What a person calls the file.
        label: String,
        /// The old digest and the old text, as far as it was kept.
        was: (Digest, Option<String>),
        /// The new ones.
        is: (Digest, Option<String>),
    },
    /// A file's permissions are others.
    Mode {
        /// What a person calls the file.
        label: String,
        /// The old ones.
        was: u32,
        /// The new ones.
        is: u32,
    },
    /// A file came.
    Added {
        /// What a person calls the file.
        label: String,
    },
    /// A file went.
    Removed {
        /// What a person called the file.
        label: String,
    },
    /// A secret is another, came or went.
    Secret {
        /// The field.
        name: String,
    },
    /// A field is now of another nature, e.g. a file instead of a text.
    Nature {
        /// The field.
        name: String,
    },
    /// The same fields in another order.
    Order,
    /// The guest would be served something else.
    Served {
        /// The path as the guest asked for it.
        path: String,
        /// What it got.
        was: Option<Digest>,
        /// What it would get.
        is: Option<Digest>,
    },
    /// The layer is too old.
    Expired {
        /// How old it is.
        age: Duration,
        /// How old it may be.
        max_age: Duration,
    },
    /// The layer was damaged, and thrown away.
    Damaged {
        /// In which way.
        why: String,
    },
    /// The layer was removed from the cache.
    Evicted,
    /// The last run kept no layer of it.
    NotKept,
}

/// Returns why `recipe` has no layer. `earlier` is what the profile's last run had in its place;
/// `parent_missed` tells that what it is built on is made anew as well.
pub fn causes(
    recipe: &Recipe,
    earlier: Option<&Traced>,
    parent_missed: bool,
    miss: &Miss,
) -> Vec<Change> {
    let mut changes = earlier.map_or(vec![Change::New], |old| explain(&old.recipe, recipe));
    let unchanged = changes.is_empty();
    match miss.clone() {
        Miss::Served { path, was, is } => changes.push(Change::Served { path, was, is }),
        Miss::Expired { age, max_age } => changes.push(Change::Expired { age, max_age }),
        Miss::Damaged { why } => changes.push(Change::Damaged { why }),
        Miss::Absent if unchanged && !parent_missed => {
            let kept = earlier.is_some_and(|old| old.layer.is_some());
            changes.push(if kept { Change::Evicted } else { Change::NotKept });
        }
        Miss::Absent => {}
    }
    if parent_missed {
        changes.push(Change::Parent);
    }
    changes
}

/// Returns what differs between two recipes; nothing where both make the same layer.
pub fn explain(old: &Recipe, new: &Recipe) -> Vec<Change> {
    if old.same(new) {
        return Vec::new();
    }
    let before = numbered(old);
    let after = numbered(new);
    let mut changes = Vec::new();
    for (name, is) in after.iter().map(|(name, field)| (name, *field)) {
        match before.iter().find(|(known, _)| known == name) {
            Some((_, was)) => changes.extend(compare(was, is)),
            None => changes.push(appeared(is)),
        }
    }
    for (name, was) in &before {
        if !after.iter().any(|(known, _)| known == name) {
            changes.push(went(was));
        }
    }
    if changes.is_empty() {
        changes.push(if old.kind == new.kind { Change::Order } else { Change::New });
    }
    changes
}

/// The fields by name and by how many of the same name came before.
fn numbered(recipe: &Recipe) -> Vec<((&str, usize), &Field)> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut all = Vec::new();
    for field in &recipe.fields {
        let count = seen.entry(&field.name).or_default();
        all.push(((field.name.as_str(), *count), field));
        *count += 1;
    }
    all
}

fn compare(was: &Field, is: &Field) -> Vec<Change> {
    let name = is.name.clone();
    match (&was.value, &is.value) {
        (Value::Text(was), Value::Text(is)) if was != is => {
            vec![Change::Text { name, was: Some(was.clone()), is: Some(is.clone()) }]
        }
        (Value::Secret(was), Value::Secret(is)) if was != is => vec![Change::Secret { name }],
        (
            Value::File { digest: old, mode: old_mode, content: before, .. },
            Value::File { label, digest: new, mode: new_mode, content: after },
        ) => {
            let mut changes = Vec::new();
            if old != new {
                let (was, is) = ((*old, before.clone()), (*new, after.clone()));
                changes.push(Change::File { name, label: label.clone(), was, is });
            }
            if old_mode != new_mode {
                let label = label.clone();
                changes.push(Change::Mode { label, was: *old_mode, is: *new_mode });
            }
            changes
        }
        (one, other) if one == other => Vec::new(),
        _ => vec![Change::Nature { name }],
    }
}

fn appeared(field: &Field) -> Change {
    let name = field.name.clone();
    match &field.value {
        Value::Text(text) => Change::Text { name, was: None, is: Some(text.clone()) },
        Value::File { label, .. } => Change::Added { label: label.clone() },
        Value::Secret(_) => Change::Secret { name },
    }
}

fn went(field: &Field) -> Change {
    let name = field.name.clone();
    match &field.value {
        Value::Text(text) => Change::Text { name, was: Some(text.clone()), is: None },
        Value::File { label, .. } => Change::Removed { label: label.clone() },
        Value::Secret(_) => Change::Secret { name },
    }
}

/// Returns for each new recipe which of the old ones stood in its place: an equal one, or the one
/// in the same place among those that changed. One that was put in between has none.
pub fn counterparts(old: &[Traced], new: &[Recipe]) -> Vec<Option<usize>> {
    let keys = |recipe: &Recipe| (recipe.key(None), recipe.kind);
    let before: Vec<_> = old.iter().map(|traced| keys(&traced.recipe)).collect();
    let after: Vec<_> = new.iter().map(keys).collect();
    let mut found = vec![None; new.len()];
    let (mut from, mut to) = (0, 0);
    let end = (old.len(), new.len());
    for (left, right) in common(&before, &after, |one, other| one == other).into_iter().chain([end])
    {
        for (was, is) in (from..left).zip(to..right) {
            found[is] = (before[was].1 == after[is].1).then_some(was);
        }
        if right < new.len() {
            found[right] = Some(left);
        }
        (from, to) = (left + 1, right + 1);
    }
    found
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let safe = |text: &str| shortened(text, SHOWN);
        match self {
            Change::New => f.write_str("never built"),
            Change::Parent => f.write_str("what it is built on is made anew"),
            Change::Text { name, was: None, is: Some(is) } => {
                write!(f, "{}: now {}", safe(name), value(is))
            }
            Change::Text { name, was: Some(was), is: None } => {
                write!(f, "{}: no longer {}", safe(name), value(was))
            }
            Change::Text { name, was, is } => {
                let (was, is) = (was.as_deref().unwrap_or(""), is.as_deref().unwrap_or(""));
                let long = [was, is].iter().any(|text| text.contains('\n'));
                if long {
                    return write!(f, "{}, {}", safe(name), counted(was, is));
                }
                write!(f, "{}: {} → {}", safe(name), value(was), value(is))
            }
            Change::File { label, was: (_, Some(was)), is: (_, Some(is)), .. } => {
                write!(f, "{}, {}", safe(label), counted(was, is))
            }
            Change::File { label, .. } => write!(f, "{}, another content", safe(label)),
            Change::Mode { label, was, is } => {
                write!(f, "{}, mode {was:04o} → {is:04o}", safe(label))
            }
            Change::Added { label } => write!(f, "{}, added", safe(label)),
            Change::Removed { label } => write!(f, "{}, removed", safe(label)),
            Change::Secret { name } => write!(f, "{}: changed", safe(name)),
            Change::Nature { name } => write!(f, "{}: given in another way", safe(name)),
            Change::Order => f.write_str("the order"),
            Change::Served { path, was: None, .. } => {
                write!(f, "{}, which the guest asked for, is there now", safe(path))
            }
            Change::Served { path, is: None, .. } => {
                write!(f, "{}, which the guest fetched, is gone", safe(path))
            }
            Change::Served { path, .. } => {
                write!(f, "{}, which the guest fetched, another content", safe(path))
            }
            Change::Expired { max_age, .. } if max_age.is_zero() => {
                f.write_str("asked to be made anew")
            }
            Change::Expired { age, max_age } => {
                write!(f, "{} old, may be {}", Elapsed(*age), Elapsed(*max_age))
            }
            Change::Damaged { why } => write!(f, "thrown away: {}", shortened(why, 200)),
            Change::Evicted => f.write_str("removed from the cache"),
            Change::NotKept => f.write_str("not kept by the last run"),
        }
    }
}

impl Change {
    /// Returns the difference in short, a few lines as diff(1) writes them, safe to print.
    pub fn details(&self) -> Vec<String> {
        match self {
            Change::Text { was: Some(was), is: Some(is), .. }
                if was.contains('\n') || is.contains('\n') =>
            {
                listed(&diff(was, is))
            }
            Change::File { was: (_, Some(was)), is: (_, Some(is)), .. } => listed(&diff(was, is)),
            Change::File { was: (was, _), is: (is, _), .. }
            | Change::Served { was: Some(was), is: Some(is), .. } => {
                vec![format!("- blake3 {}", was.prefix(16)), format!("+ blake3 {}", is.prefix(16))]
            }
            _ => Vec::new(),
        }
    }
}

/// How many lines differ: a replaced one counts once.
fn counted(was: &str, is: &str) -> String {
    let lines: usize =
        diff(was, is).iter().map(|hunk| hunk.removed.len().max(hunk.added.len())).sum();
    format!("{lines} {}", if lines == 1 { "line" } else { "lines" })
}

fn listed(hunks: &[Hunk<'_, str>]) -> Vec<String> {
    let mut lines = Vec::new();
    for hunk in hunks {
        lines.push(format!("@ line {}", hunk.at + 1));
        let signed = |sign: &'static str| {
            move |line: &&str| {
                let missing = if line.ends_with('\n') { "" } else { " (no newline at the end)" };
                let text = line.strip_suffix('\n').unwrap_or(line);
                format!("{sign} {}{missing}", shortened(text, SHOWN_LINE))
            }
        };
        lines.extend(hunk.removed.iter().map(signed("-")));
        lines.extend(hunk.added.iter().map(signed("+")));
    }
    if lines.len() > SHOWN_LINES {
        let more = lines.len() - (SHOWN_LINES - 1);
        lines.truncate(SHOWN_LINES - 1);
        lines.push(format!("… and {more} more"));
    }
    lines
}

/// A value as it is shown: the empty one visibly.
fn value(text: &str) -> String {
    if text.is_empty() { "nothing".into() } else { shortened(text, SHOWN) }
}

/// The text on one line, safe to print, at most `width` characters.
fn shortened(text: &str, width: usize) -> String {
    report::shortened(&printable(text), width)
}

#[cfg(test)]
mod tests;
