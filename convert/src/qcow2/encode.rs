//! The qcow2 encoder for plain clusters: version 3, 16-bit refcounts, no feature bits.
//!
//! Clusters of zeroes are left unallocated; zero pages within a cluster are holes of the file.
//! With a backing file only the clusters that differ from it are stored.

use std::ops::Range;

use kvmbake_disk::is_zero;

use super::Qcow2Options;
use super::base::Base;
use super::layout::{COPIED, Layout, ZERO};
use crate::chunk::{CHUNK, Chunk, PAGE, read_padded};
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};

/// Writes a qcow2 image.
pub(crate) struct Qcow2Encoder {
    layout: Layout,
    /// A cluster longer than a chunk that the last chunk began: its number and place.
    open: Option<(u64, u64)>,
    base: Option<Base>,
    /// What the backing file has.
    known: Vec<u8>,
    /// What is to be done with each cluster of the chunk at hand.
    kinds: Vec<Kind>,
}

/// What is to be done with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zero,
    /// The backing file has the same.
    Known,
    Stored,
}

impl Qcow2Encoder {
    pub(super) fn plan(
        disk: &DiskInfo,
        options: &Qcow2Options,
        base: Option<Base>,
    ) -> Result<Qcow2Encoder, String> {
        if base.is_some() && options.cluster_size > CHUNK as u64 {
            return Err("a backing file needs clusters of at most 1 MiB".to_owned());
        }
        let layout = Layout::plan(disk, options)?;
        let (known, kinds) = (Vec::new(), Vec::new());
        Ok(Qcow2Encoder { layout, open: None, base, known, kinds })
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
        let mut kinds = std::mem::take(&mut self.kinds);
        kinds.clear();
        for start in (0..chunk.capacity()).step_by(cluster) {
            kinds.push(self.kind(chunk, start..start + cluster)?);
        }
        let mut end = 0;
        for run in kinds.chunk_by(|a, b| a == b) {
            let begin = end;
            end += run.len() * cluster;
            if run[0] == Kind::Zero {
                continue;
            }
            self.hide(chunk.offset() + begin as u64, output)?;
            if let Some(base) = &mut self.base {
                base.pass(chunk.offset() + end as u64);
            }
            if run[0] == Kind::Known {
                continue;
            }
            let place = self.layout.allocate(run.len() as u64);
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
        self.kinds = kinds;
        Ok(())
    }

    /// Returns what is to be done with a cluster of the chunk.
    fn kind(&mut self, chunk: &Chunk, range: Range<usize>) -> Result<Kind, Error> {
        if !chunk.has_data(range.clone()) {
            return Ok(Kind::Zero);
        }
        let Some(base) = &self.base else { return Ok(Kind::Stored) };
        self.known.resize(range.len(), 0);
        read_padded(base.disk(), &mut self.known, chunk.offset() + range.start as u64)?;
        let mut pages = range.step_by(PAGE.min(self.known.len()));
        let differs = self.known.chunks(PAGE).any(|known| {
            let start = pages.next().unwrap_or_default();
            match chunk.valid(start..start + known.len()) {
                Some(bytes) => bytes != known,
                None => !is_zero(known),
            }
        });
        Ok(if differs { Kind::Stored } else { Kind::Known })
    }

    /// Maps as zeroes what the backing file holds before `end` and was not passed.
    fn hide(&mut self, end: u64, output: &Output) -> Result<(), Error> {
        let end = end.min(self.layout.size());
        while let Some(base) = &mut self.base
            && let Some(cluster) = base.next_hidden(end)?
        {
            self.layout.map(cluster, ZERO, output)?;
        }
        Ok(())
    }
}

impl Encoder for Qcow2Encoder {
    fn virtual_size(&self) -> u64 {
        self.layout.size()
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, parts: &mut Parts) -> Result<(), Error> {
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
        self.hide(u64::MAX, output)?;
        self.layout.finish(output)
    }
}
