//! The faults of a profile, collected while it is read, so that a person mends them in one go.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use super::source::{Fault, Place, Source};

/// The faults found so far, shared by all readers of one profile.
pub struct Faults<'s> {
    source: &'s Source,
    list: RefCell<Vec<Fault>>,
}

impl<'s> Faults<'s> {
    /// An empty list for `source`.
    pub fn new(source: &'s Source) -> Self {
        Faults { source, list: RefCell::default() }
    }

    /// Adds a fault at `span`.
    pub fn add(&self, span: &Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.add_at(self.source.place(span), message.into(), hint);
    }

    /// Adds a fault at a place that was read before.
    pub fn add_at(&self, place: Place, message: String, hint: Option<String>) {
        self.list.borrow_mut().push(Fault { message, place, hint });
    }

    /// Returns the profile's text at `span`.
    pub fn raw(&self, span: &Range<usize>) -> &str {
        self.source.raw(span)
    }

    /// Returns the faults in the order of their places.
    pub fn into_sorted(self) -> Vec<Fault> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|fault| fault.place.order());
        list
    }

    /// Returns an empty list for the same source.
    pub fn of_same_source(&self) -> Faults<'s> {
        Faults::new(self.source)
    }

    /// Returns the folder that relative paths at `span` start from.
    pub fn folder(&self, span: &Range<usize>) -> &Path {
        self.source.folder_at(span)
    }
}
