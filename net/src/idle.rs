//! The table that UDP flows and pings share: flows found by who talks to whom, each with a socket of
//! the host to read from, which end when nothing has passed for a while, or when the table is full
//! and it is the one idle for longest.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};

#[derive(Debug)]
struct Entry<K, F> {
    key: K,
    flow: F,
    /// Whether the flow waits in the backlog.
    queued: bool,
}

/// The table itself.
#[derive(Debug)]
pub(crate) struct IdleFlows<K, F> {
    entries: Slab<Entry<K, F>>,
    by_key: HashMap<K, Slot>,
    timers: Timers,
    /// Flows whose sockets may hold something for the guest.
    backlog: VecDeque<Slot>,
    limit: usize,
}

impl<K: Copy + Eq + Hash, F> IdleFlows<K, F> {
    /// Returns a table of at most `limit` flows, and at least one.
    pub(crate) fn new(limit: usize) -> IdleFlows<K, F> {
        IdleFlows {
            entries: Slab::new(),
            by_key: HashMap::new(),
            timers: Timers::default(),
            backlog: VecDeque::new(),
            limit: limit.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn find(&self, key: &K) -> Option<Slot> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &F> {
        self.entries.iter().map(|(_, entry)| &entry.flow)
    }

    /// Returns a flow that something passes on, whose idle time ends at `deadline`.
    pub(crate) fn used(&mut self, slot: Slot, deadline: Micros) -> Option<&mut F> {
        let entry = self.entries.get_mut(slot)?;
        self.timers.set(slot, Some(deadline));
        Some(&mut entry.flow)
    }

    /// Makes room for one more flow; returns the one that had to go.
    pub(crate) fn make_room(&mut self) -> Option<F> {
        if self.len() < self.limit {
            return None;
        }
        let (_, oldest) = self.timers.first()?;
        self.remove(oldest)
    }

    /// Returns the name that the next [`insert`](IdleFlows::insert) will give.
    pub(crate) fn next_slot(&self) -> Slot {
        self.entries.next_slot()
    }

    pub(crate) fn insert(&mut self, key: K, flow: F) -> Slot {
        let slot = self.entries.insert(Entry { key, flow, queued: false });
        self.by_key.insert(key, slot);
        slot
    }

    fn remove(&mut self, slot: Slot) -> Option<F> {
        self.timers.set(slot, None);
        let entry = self.entries.remove(slot)?;
        self.by_key.remove(&entry.key);
        Some(entry.flow)
    }

    /// Notes that a flow's socket has something to read.
    pub(crate) fn readable(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get_mut(slot)
            && !entry.queued
        {
            entry.queued = true;
            self.backlog.push_back(slot);
        }
    }

    /// Empties the sockets that have something by `drain`, which returns when the flow's idle time
    /// ends now, or `None` for want of room: then the rest waits.
    pub(crate) fn receive(&mut self, mut drain: impl FnMut(&mut F) -> Option<Micros>) {
        while let Some(&slot) = self.backlog.front() {
            if let Some(entry) = self.entries.get_mut(slot) {
                let Some(deadline) = drain(&mut entry.flow) else { return };
                entry.queued = false;
                self.timers.set(slot, Some(deadline));
            }
            self.backlog.pop_front();
        }
    }

    /// Whether [`receive`](IdleFlows::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes out a flow that has been idle for too long.
    pub(crate) fn pop_idle(&mut self, now: Micros) -> Option<F> {
        let slot = self.timers.pop_due(now)?;
        self.remove(slot)
    }

    /// Returns when the next flow may expire.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.timers.first().map(|(deadline, _)| deadline)
    }
}
