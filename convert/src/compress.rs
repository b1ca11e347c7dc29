//! The compression of a disk's units (clusters or grains), of as many chunks at once as there are
//! threads: each has a [`Packer`] of its own.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvmbake_disk::Block;

use crate::chunk::{Chunk, read_padded};
use crate::deflate::Deflate;
use crate::error::Error;
use crate::output::Output;

/// How units are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// A zlib stream (RFC 1950), level 1 to 12, as VMDK grains are.
    Zlib(u8),
    /// Bare deflate (RFC 1951) with a window of 4 KiB, level 1 to 9, as qcow2 clusters are.
    ///
    /// QEMU's own reader would take longer distances, which rules out libdeflate here: others unpack
    /// into a buffer that grows, and keep no more than the window (dissect.hypervisor does).
    Deflate4K(u8),
    /// A Zstandard frame (RFC 8878), level 1 to 22; without one, what suits the unit.
    Zstd(Option<u8>),
}

/// How an encoder wants its units.
#[derive(Clone)]
pub(crate) struct Packing {
    pub(crate) codec: Codec,
    /// Bytes of a unit, a power of two of at least 512.
    pub(crate) unit: usize,
    /// Whether a unit that does not shrink is handed over as it is.
    pub(crate) keep_plain: bool,
    /// The image that the units need not be stored of where they are the same.
    pub(crate) base: Option<Arc<dyn Block>>,
}

/// What is handed over of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its compressed bytes.
    Packed,
    /// Its own bytes, because those are fewer.
    Plain,
    /// Nothing: the base has the same.
    Known,
}

/// A unit of the disk, packed.
pub(crate) struct Packed<'a> {
    /// The unit's number: its offset on the disk divided by its length.
    pub(crate) unit: u64,
    pub(crate) form: Form,
    pub(crate) bytes: &'a [u8],
}

/// Packed units in the disk's order.
#[derive(Default)]
pub(crate) struct Packs {
    bytes: Vec<u8>,
    /// Number, form, and place in `bytes`.
    units: Vec<(u64, Form, Range<usize>)>,
}

impl Packs {
    /// Returns the units.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Packed<'_>> {
        self.units.iter().map(|(unit, form, range)| Packed {
            unit: *unit,
            form: *form,
            bytes: &self.bytes[range.clone()],
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.units.clear();
    }

    fn add(&mut self, unit: u64, form: Form, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.units.push((unit, form, start..self.bytes.len()));
    }
}

/// One thread's compressor with its buffers.
pub(crate) struct Packer {
    coder: Coder,
    packing: Packing,
    whole: Vec<u8>,
    packed: Vec<u8>,
    /// What the base has.
    known: Vec<u8>,
}

enum Coder {
    Zlib(libdeflater::Compressor),
    Deflate4K(Box<Deflate>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    pub(crate) fn new(packing: Packing) -> io::Result<Packer> {
        let coder = match packing.codec {
            Codec::Zlib(level) => {
                let level = libdeflater::CompressionLvl::new(i32::from(level)).unwrap_or_default();
                Coder::Zlib(libdeflater::Compressor::new(level))
            }
            Codec::Deflate4K(level) => Coder::Deflate4K(Box::new(Deflate::new(level))),
            Codec::Zstd(level) => Coder::Zstd(zstd_compressor(level, packing.unit)?),
        };
        // Room for a unit that grows: to what cannot be packed each codec adds less than a hundredth.
        let packed = vec![0; packing.unit + packing.unit / 100 + 1024];
        let known = vec![0; if packing.base.is_some() { packing.unit } else { 0 }];
        Ok(Packer { coder, packing, whole: Vec::new(), packed, known })
    }

    /// Packs every unit of the chunks that is not zero, for `output`. All chunks of a unit that is
    /// longer than a chunk come at once, and of one such unit only.
    pub(crate) fn pack(
        &mut self,
        chunks: &[Chunk],
        packs: &mut Packs,
        output: &Output,
    ) -> Result<(), Error> {
        packs.clear();
        let len = self.packing.unit;
        let mut whole = std::mem::take(&mut self.whole);
        whole.resize(len, 0);
        for chunk in chunks.iter().filter(|chunk| len <= chunk.capacity()) {
            for start in (0..chunk.capacity()).step_by(len) {
                let range = start..start + len;
                if chunk.has_data(range.clone()) {
                    let unit = (chunk.offset() + start as u64) / len as u64;
                    let bytes = chunk.valid(range.clone()).unwrap_or_else(|| {
                        chunk.copy(range, &mut whole);
                        &whole
                    });
                    self.pack_unit(unit, bytes, packs, output)?;
                }
            }
        }
        if let Some(first) = chunks.first().filter(|chunk| len > chunk.capacity()) {
            whole.fill(0);
            for chunk in chunks {
                let at = (chunk.offset() % len as u64) as usize;
                chunk.copy(0..chunk.capacity(), &mut whole[at..at + chunk.capacity()]);
            }
            self.pack_unit(first.offset() / len as u64, &whole, packs, output)?;
        }
        self.whole = whole;
        Ok(())
    }

    fn pack_unit(
        &mut self,
        unit: u64,
        bytes: &[u8],
        packs: &mut Packs,
        output: &Output,
    ) -> Result<(), Error> {
        if let Some(base) = &self.packing.base {
            read_padded(base, &mut self.known, unit * bytes.len() as u64)?;
            if self.known == bytes {
                packs.add(unit, Form::Known, &[]);
                return Ok(());
            }
        }
        let len = self
            .coder
            .run(bytes, &mut self.packed)
            .map_err(|error| output.failed("compress", error))?;
        if self.packing.keep_plain && len >= bytes.len() {
            packs.add(unit, Form::Plain, bytes);
        } else {
            packs.add(unit, Form::Packed, &self.packed[..len]);
        }
        Ok(())
    }
}

/// Makes a compressor for units of so many bytes.
///
/// For qcow2's usual clusters, level 3 of libzstd has tables that are larger than they need to be. In ones that a
/// processor's first cache holds, and with matches from 4 bytes on, 64 KiB of programs get 1 % smaller, in no more
/// time.
fn zstd_compressor(level: Option<u8>, unit: usize) -> io::Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::{CParameter, Strategy};
    let mut compressor = zstd::bulk::Compressor::new(level.map_or(3, i32::from))?;
    if level.is_none() && (32 << 10..=128 << 10).contains(&unit) {
        for parameter in [
            CParameter::WindowLog(unit.ilog2()),
            CParameter::HashLog(13),
            CParameter::ChainLog(13),
            CParameter::MinMatch(4),
            CParameter::Strategy(Strategy::ZSTD_dfast),
        ] {
            compressor.set_parameter(parameter)?;
        }
    }
    Ok(compressor)
}

impl Coder {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<usize> {
        match self {
            Coder::Zlib(compressor) => {
                compressor.zlib_compress(input, output).map_err(io::Error::other)
            }
            Coder::Deflate4K(compressor) => {
                // What does not fit did not shrink.
                Ok(compressor.pack(input, output).unwrap_or(usize::MAX))
            }
            Coder::Zstd(compressor) => compressor.compress_to_buffer(input, output),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kvmbake_disk::MemoryBlock;

    use super::*;
    use crate::chunk::Scanner;
    use crate::output::Cancel;

    fn chunks(disk: Vec<u8>) -> Vec<Chunk> {
        let disk = MemoryBlock::read_only(disk);
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let mut scanner = Scanner::new(&disk, u64::MAX);
        let mut chunks = Vec::new();
        loop {
            let mut chunk = Chunk::new();
            if !scanner.read(&mut chunk, cancel).unwrap() {
                return chunks;
            }
            chunks.push(chunk);
        }
    }

    fn unpacked(codec: Codec, packed: &Packed<'_>, unit: usize) -> Vec<u8> {
        if packed.form == Form::Plain {
            return packed.bytes.to_vec();
        }
        let mut plain = vec![0; unit];
        match codec {
            Codec::Zlib(_) => {
                let mut inflate = flate2::Decompress::new(true);
                let finish = flate2::FlushDecompress::Finish;
                inflate.decompress(packed.bytes, &mut plain, finish).unwrap();
            }
            Codec::Deflate4K(_) => {
                // A reader with the small window that QEMU's has.
                let mut inflate = flate2::Decompress::new_with_window_bits(false, 12);
                let finish = flate2::FlushDecompress::Finish;
                inflate.decompress(packed.bytes, &mut plain, finish).unwrap();
                assert_eq!(inflate.total_out(), unit as u64);
            }
            Codec::Zstd(_) => plain = zstd::bulk::decompress(packed.bytes, unit).unwrap(),
        }
        plain
    }

    #[test]
    fn units_of_every_length_come_back_in_order() {
        let mut disk = vec![0; 5 << 20];
        for (index, byte) in disk[70_000..300_000].iter_mut().enumerate() {
            *byte = (index % 251) as u8 | 1;
        }
        disk[(3 << 20) + 5] = 9;
        let mut state = 1u64;
        for byte in &mut disk[(2 << 20) - 9000..(2 << 20) + 100_000] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8 | 1;
        }
        let chunks = chunks(disk.clone());
        for codec in [
            Codec::Zlib(6),
            Codec::Deflate4K(1),
            Codec::Deflate4K(9),
            Codec::Zstd(None),
            Codec::Zstd(Some(19)),
        ] {
            for unit in [512, 4096, 65_536, 1 << 20, 2 << 20] {
                let packing = Packing { codec, unit, keep_plain: true, base: None };
                let mut packer = Packer::new(packing).unwrap();
                let output = Output::nowhere(false).unwrap();
                let mut packs = Packs::default();
                let span = unit.max(1 << 20) as u64;
                let mut found = vec![0; disk.len().next_multiple_of(unit)];
                let mut last = None;
                for group in chunks.chunk_by(|a, b| a.offset() / span == b.offset() / span) {
                    packer.pack(group, &mut packs, &output).unwrap();
                    for packed in packs.iter() {
                        assert!(last < Some(packed.unit), "{codec:?} {unit}");
                        last = Some(packed.unit);
                        let at = packed.unit as usize * unit;
                        assert!(packed.bytes.len() <= unit);
                        found[at..at + unit].copy_from_slice(&unpacked(codec, &packed, unit));
                    }
                }
                assert!(found[..disk.len()] == disk, "{codec:?} {unit}");
            }
        }
    }
}
