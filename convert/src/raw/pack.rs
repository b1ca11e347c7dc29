//! The encoder of raw images that are compressed as a whole: the disk's bytes in order, zeroes
//! too, through one compressor.

use std::io::{self, Write};

use super::{Packing, RawOptions};
use crate::chunk::{Chunk, UNIT};
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::output::{Cancel, Output, Parts};

static ZEROES: [u8; UNIT] = [0; UNIT];
/// How many units of zeroes pass between two looks at the wish to stop.
const PATIENCE: u64 = 256;
/// xz takes 32 MiB at this level, and 94 MiB at its own usual one.
const XZ_LEVEL: u8 = 3;

/// Writes a compressed raw image.
pub(crate) struct PackedEncoder {
    size: u64,
    compressor: Compressor,
    /// Bytes of the disk that went into the compressor, and of the file that came out.
    read: u64,
    written: u64,
}

impl PackedEncoder {
    pub(crate) fn plan(
        disk: &DiskInfo,
        packing: Packing,
        options: &RawOptions,
    ) -> Result<PackedEncoder, String> {
        let compressor = Compressor::new(packing, options.level)
            .map_err(|error| format!("{packing} cannot start: {error}"))?;
        Ok(PackedEncoder { size: disk.virtual_size, compressor, read: 0, written: 0 })
    }

    fn put(&mut self, bytes: &[u8], output: &Output) -> Result<(), Error> {
        let writer = self.compressor.writer();
        writer.write_all(bytes).map_err(|error| output.failed("compress", error))?;
        self.read += bytes.len() as u64;
        self.drain(output)
    }

    /// Writes what has come out so far.
    fn drain(&mut self, output: &Output) -> Result<(), Error> {
        let packed = self.compressor.packed();
        output.write_at(packed, self.written)?;
        self.written += packed.len() as u64;
        packed.clear();
        Ok(())
    }

    /// Fills up with zeroes to a place of the disk.
    fn skip_to(&mut self, place: u64, output: &Output, cancel: Cancel<'_>) -> Result<(), Error> {
        let mut units = 0u64;
        while self.read < place {
            if units.is_multiple_of(PATIENCE) {
                cancel.check()?;
            }
            units += 1;
            let len = (place - self.read).min(UNIT as u64) as usize;
            self.put(&ZEROES[..len], output)?;
        }
        Ok(())
    }
}

impl Encoder for PackedEncoder {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, chunk: &Chunk, output: &Output, _parts: &mut Parts) -> Result<(), Error> {
        self.skip_to(chunk.offset(), output, Cancel::never())?;
        for start in (0..chunk.len()).step_by(UNIT) {
            let end = (start + UNIT).min(chunk.len());
            match chunk.valid(start..start + UNIT) {
                Some(bytes) => self.put(&bytes[..end - start], output)?,
                None => self.put(&ZEROES[..end - start], output)?,
            }
        }
        Ok(())
    }

    fn finish(
        &mut self,
        _identity: &Identity,
        output: &Output,
        cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        self.skip_to(self.size, output, cancel)?;
        self.compressor.finish().map_err(|error| output.failed("compress", error))?;
        self.drain(output)
    }
}

/// A compressor that writes to memory.
enum Compressor {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Xz(liblzma::write::XzEncoder<Vec<u8>>),
    Bzip2(bzip2::write::BzEncoder<Vec<u8>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Compressor {
    fn new(packing: Packing, level: Option<u8>) -> io::Result<Compressor> {
        let or = |usual: u8| u32::from(level.unwrap_or(usual));
        let packed = Vec::new();
        Ok(match packing {
            Packing::Gzip => {
                let level = flate2::Compression::new(or(6));
                Compressor::Gzip(flate2::write::GzEncoder::new(packed, level))
            }
            Packing::Xz => Compressor::Xz(liblzma::write::XzEncoder::new(packed, or(XZ_LEVEL))),
            Packing::Bzip2 => {
                let level = bzip2::Compression::new(or(9));
                Compressor::Bzip2(bzip2::write::BzEncoder::new(packed, level))
            }
            Packing::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(packed, or(3) as i32)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(Box::new(encoder))
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Compressor::Gzip(encoder) => encoder,
            Compressor::Xz(encoder) => encoder,
            Compressor::Bzip2(encoder) => encoder,
            Compressor::Zstd(encoder) => encoder,
        }
    }

    /// Returns what has come out.
    fn packed(&mut self) -> &mut Vec<u8> {
        match self {
            Compressor::Gzip(encoder) => encoder.get_mut(),
            Compressor::Xz(encoder) => encoder.get_mut(),
            Compressor::Bzip2(encoder) => encoder.get_mut(),
            Compressor::Zstd(encoder) => encoder.get_mut(),
        }
    }

    /// Ends the stream.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Compressor::Gzip(encoder) => encoder.try_finish(),
            Compressor::Xz(encoder) => encoder.try_finish(),
            Compressor::Bzip2(encoder) => encoder.try_finish(),
            Compressor::Zstd(encoder) => encoder.do_finish(),
        }
    }
}
