//! The qcow2 encoder for compressed clusters: they lie one behind the other at any byte, and
//! share the host's clusters; what does not shrink is stored plain. With a backing file only the
//! clusters that differ from it are stored.

use std::sync::Arc;

use super::base::Base;
use super::layout::{COMPRESSED, COPIED, Layout, ZERO};
use super::options::{Compression, Qcow2Options};
use crate::compress::{Codec, Form, Packed, Packing, Packs};
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::output::{Cancel, Output};

/// Compressed bytes are written in pieces of this length.
const FLUSH: usize = 1 << 20;

/// Writes a compressed qcow2 image.
pub(crate) struct CompressedEncoder {
    layout: Layout,
    codec: Codec,
    /// Compressed bytes not yet written, and the byte of the file where they go.
    pending: Vec<u8>,
    place: u64,
    /// Where the last cluster given out to compressed data ends; equal to the end of `pending`
    /// when there is no room left in it.
    end: u64,
    base: Option<Base>,
}

impl CompressedEncoder {
    pub(super) fn plan(
        disk: &DiskInfo,
        options: &Qcow2Options,
        base: Option<Base>,
    ) -> Result<CompressedEncoder, String> {
        let codec = match (options.compression, options.level) {
            (Compression::Zlib, level) => Codec::Deflate4K(level.unwrap_or(6)),
            (Compression::Zstd, level) => Codec::Zstd(level),
        };
        let layout = Layout::plan(disk, options)?;
        Ok(CompressedEncoder { layout, codec, pending: Vec::new(), place: 0, end: 0, base })
    }

    /// Maps as zeroes what the backing file holds before `end` and was not passed.
    fn hide(&mut self, end: u64, output: &Output) -> Result<(), Error> {
        let end = end.min(self.layout.size());
        while let Some(base) = &mut self.base
            && let Some(cluster) = base.next_hidden(end)?
        {
            self.begin_table(cluster, output)?;
            self.layout.map(cluster, ZERO, output)?;
        }
        Ok(())
    }

    /// Ends the L2 table before the cluster, if it begins another one.
    fn begin_table(&mut self, cluster: u64, output: &Output) -> Result<(), Error> {
        if self.layout.begins_table(cluster) && self.layout.fills_block() {
            // Nobody shares a cluster whose uses are written.
            self.close(output)?;
        }
        self.layout.begin_table(cluster, output)
    }

    fn store(&mut self, packed: &Packed<'_>, output: &Output) -> Result<(), Error> {
        self.begin_table(packed.unit, output)?;
        if packed.form == Form::Plain {
            // The open cluster stays open: others may follow it.
            let place = self.layout.allocate(1);
            output.write_at(packed.bytes, place)?;
            return self.layout.map(packed.unit, place | COPIED, output);
        }
        // Shorter than a cluster, so it touches two at most.
        let len = packed.bytes.len() as u64;
        let cluster = self.layout.cluster();
        let mut start = self.place + self.pending.len() as u64;
        if start + len <= self.end {
            self.layout.share(start / cluster);
        } else {
            let more = self.layout.allocate(1);
            if more == self.end && start < self.end {
                self.layout.share(start / cluster);
            } else {
                self.flush(output)?;
                (start, self.place) = (more, more);
            }
            self.end = more + cluster;
        }
        self.pending.extend_from_slice(packed.bytes);
        let sectors = (start + len - 1) / 512 - start / 512;
        let offset_bits = 62 - (self.layout.cluster_bits() - 8);
        let entry = COMPRESSED | sectors << offset_bits | start;
        self.layout.map(packed.unit, entry, output)?;
        if self.pending.len() >= FLUSH {
            self.flush(output)?;
        }
        Ok(())
    }

    /// Writes what is pending.
    fn flush(&mut self, output: &Output) -> Result<(), Error> {
        output.write_at(&self.pending, self.place)?;
        self.place += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes what is pending, and begins the next in a new cluster.
    fn close(&mut self, output: &Output) -> Result<(), Error> {
        self.flush(output)?;
        self.end = self.place;
        Ok(())
    }
}

impl Encoder for CompressedEncoder {
    fn virtual_size(&self) -> u64 {
        self.layout.size()
    }

    fn packing(&self) -> Option<Packing> {
        let unit = self.layout.cluster() as usize;
        let base = self.base.as_ref().map(|base| Arc::clone(base.disk()));
        Some(Packing { codec: self.codec, unit, keep_plain: true, base })
    }

    fn write_packed(&mut self, packs: &Packs, output: &Output) -> Result<(), Error> {
        for packed in packs.iter() {
            let start = packed.unit * self.layout.cluster();
            self.hide(start, output)?;
            if let Some(base) = &mut self.base {
                base.pass(start + self.layout.cluster());
            }
            if packed.form != Form::Known {
                self.store(&packed, output)?;
            }
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
        self.close(output)?;
        self.layout.finish(output)
    }
}
