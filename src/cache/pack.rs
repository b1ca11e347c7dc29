//! A layer's memory, compressed where the store is short of room.
//!
//! `memory.zst` is one zstd stream: the magic `kvmbmem1`, the flat file's length, then for each run
//! of data its offset, its length and its bytes, and at the end the flat file's length and a zero
//! (numbers are little-endian `u64`). Runs of zeroes are not in it, so what is restored is sparse.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kvmbake_disk::is_zero;

use super::Cache;
use super::envelope;
use super::error::CacheError;
use super::layer::{Layer, MEMORY, PACKED_MEMORY, RECORD, Record, describe};
use super::lock::Hold;
use crate::sparse::{next_data, next_hole};

const MAGIC: &[u8; 8] = b"kvmbmem1";
/// zstd's default: on memory it is as fast as the disk that the result is written to.
const LEVEL: i32 = 3;
/// What is looked at for zeroes at once, and the unit that they are left out by.
const PAGE: usize = 4096;
const CHUNK: usize = 256 << 10;
/// What is smaller takes no room worth the work.
const SMALLEST: u64 = 64 << 10;

/// How a layer's memory is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryForm {
    /// As it is mapped: flat and sparse.
    Flat,
    /// Compressed; it is restored before it is mapped.
    Packed,
}

impl Layer {
    /// Returns how the layer's memory is stored; `None` when it has none.
    pub fn memory_form(&self) -> Option<MemoryForm> {
        let has = |name| self.file(name).is_some();
        match (has(MEMORY), has(PACKED_MEMORY)) {
            (true, _) => Some(MemoryForm::Flat),
            (false, true) => Some(MemoryForm::Packed),
            (false, false) => None,
        }
    }

    /// Opens the layer's memory as a flat, sparse file: the stored one, which is never to be written,
    /// or one without a name that the packed one is restored to. `None` when the layer has no memory.
    ///
    /// # Errors
    /// It cannot be read, there is no room to restore it, or `cancel` was set.
    pub fn open_memory(
        &self,
        cache: &Cache,
        cancel: &AtomicBool,
    ) -> Result<Option<File>, CacheError> {
        if let Some(path) = self.file(MEMORY) {
            return File::open(&path).map(Some).map_err(CacheError::io("open", &path));
        }
        let Some(path) = self.file(PACKED_MEMORY) else { return Ok(None) };
        let packed = File::open(&path).map_err(CacheError::io("open", &path))?;
        let record = self.0.record.files.iter().find(|file| file.name == PACKED_MEMORY);
        let length = record.and_then(|record| record.flat_length).unwrap_or(0);
        let scratch = cache.scratch()?;
        let target = scratch.path(MEMORY);
        let flat = create(&target)?;
        match unpack(packed, &flat, length, cancel) {
            Ok(true) => Ok(Some(flat)),
            Ok(false) => Err(CacheError::Cancelled),
            Err(error) if is_malformed(&error) => {
                Err(CacheError::Damaged { path, why: error.to_string() })
            }
            Err(error) => Err(CacheError::io("restore", &target)(error)),
        }
    }
}

fn is_malformed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn create(path: &Path) -> Result<File, CacheError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(CacheError::io("create", path))
}

impl Cache {
    /// Compresses the memory of the layer in `folder` when nobody uses the layer and that saves at
    /// least a third. Returns how many bytes that freed.
    pub(super) fn pack(&self, folder: &Path, cancel: &AtomicBool) -> Result<u64, CacheError> {
        let failed = |error| CacheError::io("lock", folder)(error);
        let Some(hold) = Hold::shared(folder).map_err(failed)? else { return Ok(0) };
        let Some(record) = envelope::read::<Record>(&folder.join(RECORD))? else { return Ok(0) };
        let Some(at) = record.files.iter().position(|file| file.name == MEMORY) else {
            return Ok(0);
        };
        let source = folder.join(MEMORY);
        let flat = File::open(&source).map_err(CacheError::io("open", &source))?;
        let before = flat.metadata().map_err(CacheError::io("look at", &source))?.blocks() * 512;
        if record.files[at].incompressible || before < SMALLEST {
            return Ok(0);
        }
        let scratch = self.scratch()?;
        let target = scratch.path(PACKED_MEMORY);
        let limit = before - before / 3;
        let packed = pack(&flat, &create(&target)?, limit, cancel)
            .map_err(CacheError::io("compress", &source))?;
        let mut new = record.clone();
        let after = match packed {
            Outcome::Cancelled => return Err(CacheError::Cancelled),
            Outcome::TooLarge => {
                new.files[at].incompressible = true;
                envelope::write(&folder.join(RECORD), &new, false)?;
                return Ok(0);
            }
            Outcome::Packed => {
                let (file, mut packed) = describe(scratch.folder(), PACKED_MEMORY, cancel)?;
                file.sync_all().map_err(CacheError::io("write", &target))?;
                packed.flat_length = Some(new.files[at].length);
                new.files[at] = packed;
                file.metadata().map_err(CacheError::io("look at", &target))?.blocks() * 512
            }
        };
        // From here on nobody may use the layer; and whoever used it before may have changed it.
        let Some(alone) = hold.alone().map_err(failed)? else { return Ok(0) };
        match envelope::read::<Record>(&folder.join(RECORD)) {
            Ok(Some(now)) if now == record => {}
            _ => return Ok(0),
        }
        let moved = folder.join(PACKED_MEMORY);
        fs::rename(&target, &moved).map_err(CacheError::io("create", &moved))?;
        File::open(folder)
            .and_then(|file| file.sync_all())
            .map_err(CacheError::io("write", folder))?;
        envelope::write(&folder.join(RECORD), &new, true)?;
        fs::remove_file(&source).map_err(CacheError::io("remove", &source))?;
        drop(alone);
        Ok(before.saturating_sub(after))
    }
}

enum Outcome {
    Packed,
    TooLarge,
    Cancelled,
}

/// Stops a stream that grows too large.
struct Bounded<'f> {
    file: &'f File,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pack(flat: &File, packed: &File, limit: u64, cancel: &AtomicBool) -> io::Result<Outcome> {
    let bounded = Bounded { file: packed, left: limit };
    let mut stream = zstd::Encoder::new(bounded, LEVEL)?;
    stream.include_checksum(true)?;
    match write_runs(flat, &mut stream, cancel) {
        Ok(true) => {}
        Ok(false) => return Ok(Outcome::Cancelled),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Ok(Outcome::TooLarge),
        Err(error) => return Err(error),
    }
    match stream.finish() {
        Ok(_) => Ok(Outcome::Packed),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(Outcome::TooLarge),
        Err(error) => Err(error),
    }
}

fn write_runs(flat: &File, stream: &mut impl Write, cancel: &AtomicBool) -> io::Result<bool> {
    let length = flat.metadata()?.len();
    stream.write_all(MAGIC)?;
    stream.write_all(&length.to_le_bytes())?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(flat, at)?.filter(|data| *data < length) {
        let end = next_hole(flat, data)?.unwrap_or(length).min(length);
        at = data;
        while at < end {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let chunk = &mut buffer[..(CHUNK as u64).min(end - at) as usize];
            flat.read_exact_at(chunk, at)?;
            let pages: Vec<&[u8]> = chunk.chunks(PAGE).collect();
            for run in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                let bytes: u64 = run.iter().map(|page| page.len() as u64).sum();
                if !is_zero(run[0]) {
                    stream.write_all(&at.to_le_bytes())?;
                    stream.write_all(&bytes.to_le_bytes())?;
                    run.iter().try_for_each(|page| stream.write_all(page))?;
                }
                at += bytes;
            }
        }
    }
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&0u64.to_le_bytes())?;
    Ok(true)
}

/// Restores the flat file of `length` bytes. Returns whether it came to the end.
fn unpack(packed: File, flat: &File, length: u64, cancel: &AtomicBool) -> io::Result<bool> {
    let malformed = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut stream = zstd::Decoder::new(packed).map_err(from_zstd)?;
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).map_err(from_zstd)?;
    if magic != *MAGIC || number(&mut stream)? != length {
        return Err(malformed("It is not this layer's memory"));
    }
    flat.set_len(length)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (offset, run) = (number(&mut stream)?, number(&mut stream)?);
        if run == 0 {
            break;
        }
        let run = usize::try_from(run).ok().filter(|run| *run <= CHUNK);
        let run =
            run.filter(|run| offset.checked_add(*run as u64).is_some_and(|end| end <= length));
        let chunk =
            &mut buffer[..run.ok_or_else(|| malformed("A run lies outside of the memory"))?];
        stream.read_exact(chunk).map_err(from_zstd)?;
        flat.write_all_at(chunk, offset)?;
    }
    // Reads on to the stream's own checksum.
    match stream.read(&mut [0]).map_err(from_zstd)? {
        0 => Ok(true),
        _ => Err(malformed("There is more after its end")),
    }
}

fn number(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).map_err(from_zstd)?;
    Ok(u64::from_le_bytes(bytes))
}

/// zstd's own complaints come as errors of kind `Other`.
fn from_zstd(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}
