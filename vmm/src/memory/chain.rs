//! What a chain of layers holds, page by page: for each page the youngest layer that says something of it.

use std::ops::Range;

use super::MemoryError;
use super::page_map::{PageKind, PageMap, PageRun};

/// Pages whose content is in one layer's file, one after the other. What is in no extent is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) pages: u64,
    /// The layer, counted from the oldest.
    pub(super) layer: usize,
}

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.first + self.pages
    }

    /// Returns the part of the extent from `start` to `end`, which must be within it.
    fn cut(&self, start: u64, end: u64) -> Self {
        Self { first: start, pages: end - start, layer: self.layer }
    }
}

/// Returns the extents of layers `maps`, the oldest first.
pub(super) fn flatten<'m>(maps: impl IntoIterator<Item = &'m PageMap>) -> Vec<Extent> {
    let mut extents = Vec::new();
    for (layer, map) in maps.into_iter().enumerate() {
        extents = overlay(&extents, map, layer);
    }
    extents
}

/// Returns `below` with the runs of `map` over it.
fn overlay(below: &[Extent], map: &PageMap, layer: usize) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::with_capacity(below.len() + map.runs().len());
    let mut rest = below.iter().copied();
    let mut next = rest.next();
    for run in map.runs() {
        while let Some(extent) = next.filter(|extent| extent.first < run.first) {
            push(&mut merged, extent.cut(extent.first, extent.end().min(run.first)));
            if extent.end() > run.first {
                next = Some(extent.cut(run.first, extent.end()));
                break;
            }
            next = rest.next();
        }
        while let Some(extent) = next.filter(|extent| extent.first < run.end()) {
            if extent.end() > run.end() {
                next = Some(extent.cut(run.end(), extent.end()));
                break;
            }
            next = rest.next();
        }
        if run.kind == PageKind::Data {
            push(&mut merged, Extent { first: run.first, pages: run.pages, layer });
        }
    }
    next.into_iter().chain(rest).for_each(|extent| push(&mut merged, extent));
    merged
}

fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.end() == extent.first && last.layer == extent.layer => {
            last.pages += extent.pages;
        }
        _ => extents.push(extent),
    }
}

/// Returns `pages` cut where the source changes, in order: each part with its layer, `None` where the chain is zero.
pub(super) fn sources(
    extents: &[Extent],
    pages: Range<u64>,
) -> impl Iterator<Item = (Range<u64>, Option<usize>)> + '_ {
    cuts(extents, |extent| (extent.first..extent.end(), extent.layer), pages)
}

/// Returns `pages` cut where `map` says something else, in order.
fn kinds(
    map: &PageMap,
    pages: Range<u64>,
) -> impl Iterator<Item = (Range<u64>, Option<PageKind>)> + '_ {
    cuts(map.runs(), |run| (run.first..run.end(), run.kind), pages)
}

/// Returns `pages` cut at the borders of the sorted `items`, each part with the value of the item that it is in.
fn cuts<T, V>(
    items: &[T],
    read: impl Fn(&T) -> (Range<u64>, V),
    pages: Range<u64>,
) -> impl Iterator<Item = (Range<u64>, Option<V>)> {
    let mut index = items.partition_point(|item| read(item).0.end <= pages.start);
    let mut at = pages.start;
    std::iter::from_fn(move || {
        if at >= pages.end {
            return None;
        }
        let start = at;
        let value = match items.get(index).map(&read) {
            Some((range, value)) if range.start <= start => {
                at = range.end.min(pages.end);
                index += 1;
                Some(value)
            }
            next => {
                at = next.map_or(pages.end, |(range, _)| range.start.min(pages.end));
                None
            }
        };
        Some((start..at, value))
    })
}

/// Returns `map` with what `later` changes of it, as one layer over a chain that holds `below`.
pub(super) fn merge(
    map: &PageMap,
    later: &PageMap,
    below: &[Extent],
) -> Result<PageMap, MemoryError> {
    let mut merged = PageMap::new(map.ram_pages());
    let mut add = |pages: Range<u64>, kind| {
        merged.push(PageRun { first: pages.start, pages: pages.end - pages.start, kind })
    };
    for (pages, kind) in kinds(later, 0..map.ram_pages()) {
        match kind {
            Some(PageKind::Data) => add(pages, PageKind::Data)?,
            // Zero over nothing needs no word.
            Some(PageKind::Zero) => {
                for (pages, _) in sources(below, pages).filter(|(_, layer)| layer.is_some()) {
                    add(pages, PageKind::Zero)?;
                }
            }
            None => {
                for (pages, kind) in kinds(map, pages) {
                    if let Some(kind) = kind {
                        add(pages, kind)?;
                    }
                }
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver::Dice;

    const PAGES: u64 = 200;

    /// A map of random runs.
    fn random_map(dice: &mut Dice) -> PageMap {
        let mut map = PageMap::new(PAGES);
        let mut at = dice.below(20);
        while at < PAGES {
            let pages = (1 + dice.below(12)).min(PAGES - at);
            let kind = dice.pick(&[PageKind::Data, PageKind::Data, PageKind::Zero]);
            map.push(PageRun { first: at, pages, kind }).unwrap();
            at += pages + dice.below(15);
        }
        map
    }

    #[test]
    fn flattening_agrees_with_applying_layer_after_layer() {
        for seed in 0..300 {
            let mut dice = Dice::new(seed);
            let maps: Vec<PageMap> =
                (0..1 + dice.below(6)).map(|_| random_map(&mut dice)).collect();
            let mut expected = vec![None; PAGES as usize];
            for (layer, map) in maps.iter().enumerate() {
                for run in map.runs() {
                    let source = (run.kind == PageKind::Data).then_some(layer);
                    expected[run.first as usize..run.end() as usize].fill(source);
                }
            }
            let extents = flatten(&maps);
            for pair in extents.windows(2) {
                let touching = pair[0].end() == pair[1].first && pair[0].layer == pair[1].layer;
                assert!(pair[0].end() <= pair[1].first && !touching, "{pair:?}");
            }
            let mut found = vec![Some(usize::MAX); PAGES as usize];
            let start = dice.below(PAGES);
            for (range, layer) in sources(&extents, start..PAGES) {
                found[range.start as usize..range.end as usize].fill(layer);
            }
            assert_eq!(found[start as usize..], expected[start as usize..], "seed {seed}");
        }
    }
}
