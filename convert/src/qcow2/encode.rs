//! The qcow2 encoder for plain clusters: version 3, 16-bit refcounts, no feature bits.
//!
//! Clusters of zeroes are left unallocated; zero pages within a cluster are holes of the file.
//! With a backing file only the clusters that differ from it are stored.

use std::sync::Arc;

use kvmbake_disk::Block;

use super::Qcow2Options;
use super::layout::{COPIED, Layout, ZERO};
use crate::chunk::{CHUNK, Chunk, PAGE, is_zero, next_extent};
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};

/// Writes a qcow2 image.
pub(crate) struct Qcow2Encoder {
    layout: Layout,
    /// A cluster longer than a chunk that the last chunk began: its number and place.
    open: Option<(u64, u64)>,
    base: Option<Base>,
}

impl Qcow2Encoder {
    pub(super) fn plan(
        disk: &DiskInfo,
        options: &Qcow2Options,
        base: Option<Arc<dyn Block>>,
    ) -> Result<Qcow2Encoder, String> {
        if base.is_some() && options.cluster_size > CHUNK as u64 {
            return Err("a backing file needs clusters of at most 1 MiB".to_owned());
        }
        let base = base.map(|disk| Base { disk, covered: 0, bytes: Vec::new() });
        Ok(Qcow2Encoder { layout: Layout::plan(disk, options)?, open: None, base })
    }

    /// Stores a chunk in clusters not longer than it.
    fn write_clusters(
        &mut self,
        chunk: &Chunk,
        output: &Output,
        parts: &mut Parts,
    ) -> Result<(), Error> {
        let cluster = self.layout.cluster() as usize;
        let first = chunk.offset() / cluster as u64;
        let mut start = 0;
        while start < chunk.capacity() {
            let (begin, mut end) = (start, start);
            while end < chunk.capacity() && self.is_stored(chunk, end..end + cluster, output)? {
                end += cluster;
            }
            start = end + cluster;
            if begin == end {
                continue;
            }
            let place = self.layout.allocate(((end - begin) / cluster) as u64);
            let numbers = first + (begin / cluster) as u64..;
            let places = (place..place + (end - begin) as u64).step_by(cluster);
            for (number, at) in numbers.zip(places) {
                self.layout.map(number, at | COPIED, output)?;
            }
            if cluster < PAGE {
                parts.put(begin..end, place);
                continue;
            }
            for run in chunk.runs().filter(|run| run.start < end && run.end > begin) {
                let run = run.start.max(begin)..run.end.min(end);
                let at = place + (run.start - begin) as u64;
                parts.put(run, at);
            }
        }
        Ok(())
    }

    /// Returns whether a cluster of the chunk needs a place of its own.
    fn is_stored(
        &mut self,
        chunk: &Chunk,
        range: std::ops::Range<usize>,
        output: &Output,
    ) -> Result<bool, Error> {
        let has_data = chunk.has_data(range.clone());
        let Some(base) = &mut self.base else { return Ok(has_data) };
        let offset = chunk.offset() + range.start as u64;
        if !has_data {
            let end = offset + range.len() as u64;
            base.hide(offset, end, &mut self.layout, output)?;
            return Ok(false);
        }
        base.differs(chunk, range)
    }
}

impl Encoder for Qcow2Encoder {
    fn virtual_size(&self) -> u64 {
        self.layout.size()
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
        if let Some(base) = &mut self.base {
            base.hide(base.covered, chunk.offset(), &mut self.layout, output)?;
            base.covered = chunk.offset() + chunk.capacity() as u64;
        }
        if self.layout.cluster() <= chunk.capacity() as u64 {
            return self.write_clusters(chunk, output, parts);
        }
        let number = chunk.offset() / self.layout.cluster();
        let place = match self.open {
            Some((open, place)) if open == number => place,
            _ => {
                let place = self.layout.allocate(1);
                self.layout.map(number, place | COPIED, output)?;
                self.open = Some((number, place));
                place
            }
        };
        let within = chunk.offset() % self.layout.cluster();
        for run in chunk.runs() {
            parts.put(run.clone(), place + within + run.start as u64);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        _identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        if let Some(base) = &mut self.base {
            base.hide(base.covered, u64::MAX, &mut self.layout, output)?;
        }
        self.layout.finish(output)
    }
}

/// The backing file, of which the differences are stored.
struct Base {
    disk: Arc<dyn Block>,
    /// The disk is done up to here.
    covered: u64,
    bytes: Vec<u8>,
}

impl Base {
    /// Maps as zeroes what is zero on the disk and not in the backing file.
    fn hide(
        &self,
        start: u64,
        end: u64,
        layout: &mut Layout,
        output: &Output,
    ) -> Result<(), Error> {
        let end = end.min(self.disk.len()).min(layout.size());
        let mut next = start;
        while let Some(extent) = next_extent(&*self.disk, next, end)? {
            let first = extent.offset / layout.cluster();
            let last = (extent.end() - 1) / layout.cluster();
            for cluster in first..=last {
                layout.map(cluster, ZERO, output)?;
            }
            next = (last + 1) * layout.cluster();
        }
        Ok(())
    }

    /// Returns whether a part of the chunk is not what the backing file has there.
    fn differs(&mut self, chunk: &Chunk, range: std::ops::Range<usize>) -> Result<bool, Error> {
        self.bytes.resize(range.len(), 0);
        let offset = chunk.offset() + range.start as u64;
        let stored = self.disk.len().saturating_sub(offset).min(range.len() as u64) as usize;
        let (bytes, behind) = self.bytes.split_at_mut(stored);
        behind.fill(0);
        if !bytes.is_empty() {
            self.disk.read_at(bytes, offset)?;
        }
        let mut pages = range.step_by(PAGE.min(self.bytes.len()));
        Ok(self.bytes.chunks(PAGE).any(|base| {
            let start = pages.next().unwrap_or_default();
            match chunk.valid(start..start + base.len()) {
                Some(bytes) => bytes != base,
                None => !is_zero(base),
            }
        }))
    }
}
