//! Deadlines of flows: a binary heap indexed by slot, so that a flow has at most one entry and
//! moving it costs no allocation.

use crate::slab::Slot;

/// Microseconds since the network's start.
pub(crate) type Micros = u64;

const ABSENT: u32 = u32::MAX;

/// The deadlines of one kind of flow.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: Vec<(Micros, Slot)>,
    /// Where the slot of each index stands in the heap.
    positions: Vec<u32>,
}

impl Timers {
    /// Sets or, with `None`, clears a slot's deadline.
    pub(crate) fn set(&mut self, slot: Slot, deadline: Option<Micros>) {
        let index = slot.index as usize;
        if index >= self.positions.len() {
            if deadline.is_none() {
                return;
            }
            self.positions.resize(index + 1, ABSENT);
        }
        match (self.positions[index], deadline) {
            (ABSENT, None) => {}
            (ABSENT, Some(deadline)) => {
                self.heap.push((deadline, slot));
                self.positions[index] = (self.heap.len() - 1) as u32;
                self.rise(self.heap.len() - 1);
            }
            (position, Some(deadline)) => {
                let position = position as usize;
                self.heap[position] = (deadline, slot);
                let position = self.rise(position);
                self.sink(position);
            }
            (position, None) => self.remove(position as usize),
        }
    }

    /// Returns the earliest deadline and whose it is.
    pub(crate) fn first(&self) -> Option<(Micros, Slot)> {
        self.heap.first().copied()
    }

    /// Takes out a slot whose deadline is not after `now`.
    pub(crate) fn pop_due(&mut self, now: Micros) -> Option<Slot> {
        let (deadline, slot) = self.first()?;
        if deadline > now {
            return None;
        }
        self.remove(0);
        Some(slot)
    }

    fn remove(&mut self, position: usize) {
        let last = self.heap.len() - 1;
        self.swap(position, last);
        if let Some((_, slot)) = self.heap.pop() {
            self.positions[slot.index as usize] = ABSENT;
        }
        if position < self.heap.len() {
            let position = self.rise(position);
            self.sink(position);
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.positions[self.heap[a].1.index as usize] = a as u32;
        self.positions[self.heap[b].1.index as usize] = b as u32;
    }

    fn rise(&mut self, mut position: usize) -> usize {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].0 <= self.heap[position].0 {
                break;
            }
            self.swap(position, parent);
            position = parent;
        }
        position
    }

    fn sink(&mut self, mut position: usize) {
        loop {
            let mut least = position;
            for child in [2 * position + 1, 2 * position + 2] {
                if child < self.heap.len() && self.heap[child].0 < self.heap[least].0 {
                    least = child;
                }
            }
            if least == position {
                return;
            }
            self.swap(position, least);
            position = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u32) -> Slot {
        Slot { index, generation: 0 }
    }

    #[test]
    fn deadlines_come_out_in_order_however_often_they_were_moved() {
        let mut timers = Timers::default();
        let mut state = 12345u64;
        let mut expected = vec![None; 50];
        for _ in 0..5000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let index = (state >> 33) as usize % 50;
            let deadline = (state >> 40) % 1000;
            let deadline = (deadline > 200).then_some(deadline);
            timers.set(slot(index as u32), deadline);
            expected[index] = deadline;
        }
        let mut order = Vec::new();
        while let Some((deadline, first)) = timers.first() {
            assert_eq!(timers.pop_due(deadline - 1), None);
            assert_eq!(timers.pop_due(deadline), Some(first));
            assert_eq!(expected[first.index as usize].take(), Some(deadline));
            order.push(deadline);
        }
        assert!(order.is_sorted());
        assert!(expected.iter().all(Option::is_none));
    }
}
