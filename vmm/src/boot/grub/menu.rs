//! The menu that a script builds, and what one of its entries loads.

use super::script::Block;
use crate::boot::volumes::Location;

/// One entry of the menu.
#[derive(Debug, Clone)]
pub struct MenuEntry {
    /// The title on the screen.
    pub title: String,
    /// The id, by which `default` may name it.
    pub id: Option<String>,
    /// `$0`, `$1`… inside the entry: the title, then further arguments.
    pub(super) arguments: Vec<String>,
    pub(super) body: EntryBody,
}

#[derive(Debug, Clone)]
pub(super) enum EntryBody {
    /// Commands that load something.
    Script(Block),
    /// Commands that build another menu.
    Submenu(Block),
    /// A boot loader entry that `blscfg` has read, relative to a volume.
    Loader { entry: std::rc::Rc<crate::boot::bls::Entry>, volume: usize },
}

impl MenuEntry {
    /// Returns whether `default` may call it by `name`; a title's `>` may be doubled.
    pub fn is_named(&self, name: &str) -> bool {
        self.id.as_deref() == Some(name)
            || self.title == name
            || self.title == name.replace(">>", ">")
    }
}

/// What running an entry has loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The kernel.
    pub kernel: Option<Location>,
    /// The initrds, to be joined in order.
    pub initrds: Vec<Location>,
    /// The command line, with `BOOT_IMAGE=` as GRUB puts it in front.
    pub cmdline: String,
    /// Commands that went wrong, or load what is not Linux.
    pub problems: Vec<String>,
}

/// Finds the entry that `default` names: an index, an id, or a title. Returns its index and what
/// is left of the name for the submenu behind it.
pub(super) fn choose<'a>(menu: &[MenuEntry], default: &'a str) -> Option<(usize, &'a str)> {
    let (name, rest) = split_path(default);
    let trimmed = name.trim();
    // An id may begin with, or be, digits: names win over numbers that lead nowhere.
    let index = trimmed.parse().ok().filter(|index: &usize| *index < menu.len());
    let index = index.or_else(|| menu.iter().position(|entry| entry.is_named(name)));
    // A title may hold a `>` that was not doubled.
    match index {
        Some(index) => Some((index, rest)),
        None => Some((menu.iter().position(|entry| entry.is_named(default))?, "")),
    }
}

/// Splits at the first `>` that is not doubled.
fn split_path(path: &str) -> (&str, &str) {
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'>' {
            if bytes.get(at + 1) != Some(&b'>') {
                return (&path[..at], &path[at + 1..]);
            }
            at += 1;
        }
        at += 1;
    }
    (path, "")
}
