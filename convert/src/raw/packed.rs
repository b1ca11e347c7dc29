//! Raw images compressed as a whole: gzip, xz, bzip2, Zstandard. A disk needs random access, so
//! they are unpacked, piece by piece, into a temporary file whose zeroes are holes and which has
//! no name; it goes with the disk.
//!
//! Memory: at most what the formats' own limits below allow the file to ask for.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvmbake_disk::{Error, ErrorKind as DiskErrorKind, is_zero};

use crate::buffer::Buffer;
use crate::chunk::UNIT;
use crate::error::unsupported;
use crate::mapped::ImageFile;

/// What an xz file may ask for: enough for `xz -9`, whose dictionary is 64 MiB.
const XZ_MEMORY: u64 = 80 << 20;
/// The largest Zstandard window: 64 MiB, enough for `zstd -19` and most of `--long`.
const ZSTD_WINDOW_LOG: u32 = 26;
const BUFFER: usize = 1 << 20;
/// More than any disk.
const MAX_SIZE: u64 = 1 << 50;

/// How a whole file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip (RFC 1952).
    Gzip,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Bzip2 => "bzip2",
            Packing::Zstd => "zstd",
        })
    }
}

impl Packing {
    /// Every kind.
    pub const ALL: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Bzip2, Packing::Zstd];

    /// Returns the usual extension of file names, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Packing::Gzip => "gz",
            Packing::Xz => "xz",
            Packing::Bzip2 => "bz2",
            Packing::Zstd => "zst",
        }
    }

    /// Tells it by the file's first bytes.
    pub(crate) fn of(start: &[u8]) -> Option<Packing> {
        match start {
            [0x1f, 0x8b, 8, ..] => Some(Packing::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Packing::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => {
                Some(Packing::Bzip2)
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
            _ => None,
        }
    }

    fn reader(self, file: Sequential) -> io::Result<Box<dyn Read>> {
        let file = BufReader::with_capacity(BUFFER, file);
        Ok(match self {
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Packing::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY,
                    liblzma::stream::CONCATENATED,
                )?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(file, stream))
            }
            Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }

    /// Unpacks the file into a temporary one in `scratch`; messages go on naming the original.
    pub(crate) fn unpack(self, image: &ImageFile, scratch: &Path) -> Result<ImageFile, Error> {
        let unwritten = |error: io::Error| Error::io("write", error).on(scratch);
        let file = tempfile::tempfile_in(scratch).map_err(unwritten)?;
        self.unpack_into(image, &file, scratch, &mut |_| true)?;
        ImageFile::of(file, &image.path)
    }

    /// Unpacks the file into `file`, which is empty and is called `name` in messages. `goes_on` hears
    /// how many bytes of the packed file are read, and says whether to go on; returns whether it did.
    fn unpack_into(
        self,
        image: &ImageFile,
        file: &File,
        name: &Path,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, Error> {
        let broken = |error: io::Error| {
            let kind = match error.kind() {
                ErrorKind::UnexpectedEof => DiskErrorKind::Truncated,
                ErrorKind::OutOfMemory => DiskErrorKind::Unsupported,
                _ => DiskErrorKind::Corrupt,
            };
            Error::new(kind, "read")
                .on(&image.path)
                .because(format!("its {self} data do not unpack"))
                .caused_by(error)
        };
        let unwritten = |error: io::Error| Error::io("write", error).on(name);
        let read = Arc::new(AtomicU64::new(0));
        let source = Sequential { image: image.clone(), at: 0, read: Arc::clone(&read) };
        let mut reader = self.reader(source).map_err(broken)?;
        let mut buffer = Buffer::new(BUFFER);
        let mut at = 0;
        loop {
            let len = fill(&mut *reader, &mut buffer).map_err(broken)?;
            for (place, unit) in (at..).step_by(UNIT).zip(buffer[..len].chunks(UNIT)) {
                if !is_zero(unit) {
                    file.write_all_at(unit, place).map_err(unwritten)?;
                }
            }
            at += len as u64;
            if at > MAX_SIZE {
                return Err(unsupported(&image.path, "it unpacks to more than 1 PiB"));
            }
            if len < buffer.len() {
                break;
            }
            if !goes_on(read.load(Ordering::Relaxed)) {
                return Ok(false);
            }
        }
        file.set_len(at).map_err(unwritten)?;
        Ok(true)
    }
}

/// Returns how the file at `path` is compressed as a whole, by its first bytes; `None` when it is not.
///
/// # Errors
/// The file cannot be read, or is not a regular file.
pub fn packing(path: &Path) -> Result<Option<Packing>, Error> {
    let image = ImageFile::open(path)?;
    let mut start = [0; 16];
    let len = image.len.min(start.len() as u64) as usize;
    image.read(&mut start[..len], 0)?;
    Ok(Packing::of(&start[..len]))
}

/// Unpacks the file at `path` into the empty file `into`, where zeroes become holes. `goes_on` hears
/// how many bytes of the packed file are read, and says whether to go on; returns whether it did.
///
/// # Errors
/// The file is not packed or is damaged, asks for too much memory, is packed twice, or `into` cannot be
/// written.
pub fn unpack(
    path: &Path,
    into: &Path,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<bool, Error> {
    let Some(packing) = packing(path)? else {
        return Err(unsupported(path, "it is not packed"));
    };
    let file = File::options().read(true).write(true).open(into);
    let file = file.map_err(|error| Error::io("open", error).on(into))?;
    let done = packing.unpack_into(&ImageFile::open(path)?, &file, into, goes_on)?;
    if done && self::packing(into)?.is_some() {
        return Err(unsupported(path, "it is compressed twice"));
    }
    Ok(done)
}

/// Reads until the buffer is full or there is no more.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match reader.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// An image file read front to back.
struct Sequential {
    image: ImageFile,
    at: u64,
    /// How far it was read, for who looks on.
    read: Arc<AtomicU64>,
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = (self.image.len - self.at).min(buf.len() as u64) as usize;
        self.image.read(&mut buf[..len], self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        self.read.store(self.at, Ordering::Relaxed);
        Ok(len)
    }
}
