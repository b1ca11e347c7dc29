//! The qcow2 encoder for compressed clusters: they lie one behind the other at any byte, and
//! share the host's clusters; what does not shrink is stored plain.

use super::layout::{COMPRESSED, COPIED, Layout};
use super::options::{Compression, Qcow2Options};
use crate::compress::{Codec, Packed, Packing, Packs};
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
}

impl CompressedEncoder {
    pub(super) fn plan(
        disk: &DiskInfo,
        options: &Qcow2Options,
    ) -> Result<CompressedEncoder, String> {
        let codec = match (options.compression, options.level) {
            (Compression::Zlib, level) => Codec::Deflate4K(level.unwrap_or(6)),
            (Compression::Zstd, level) => Codec::Zstd(level.unwrap_or(3)),
        };
        let layout = Layout::plan(disk, options)?;
        Ok(CompressedEncoder { layout, codec, pending: Vec::new(), place: 0, end: 0 })
    }

    fn store(&mut self, packed: &Packed<'_>, output: &Output) -> Result<(), Error> {
        if self.layout.begins_table(packed.unit) {
            self.close(output)?;
            self.layout.finish_table(output)?;
        }
        if !packed.compressed {
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
        Some(Packing { codec: self.codec, unit, keep_plain: true })
    }

    fn write_packed(&mut self, packs: &Packs, output: &Output) -> Result<(), Error> {
        packs.iter().try_for_each(|packed| self.store(&packed, output))
    }

    fn finish(
        &mut self,
        _identity: &Identity,
        output: &Output,
        _cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        self.close(output)?;
        self.layout.finish(output)
    }
}
