//! The digest that the cache names content by: BLAKE3 over the non-zero 64 KiB blocks, defined as
//! `blake3-sparse` in docs/architecture.md. Holes and zeroes cost nothing, so a memory file of many
//! gigabytes takes as long as what it holds, and a copy that filled its holes has the same digest.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use kvmbake_disk::is_zero;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sparse::next_data;

/// The unit that zeroes are left out by.
const BLOCK: usize = 64 << 10;
/// What a thread reads at once.
const CHUNK: u64 = 1 << 20;
/// What all threads together hash between two looks at their results.
const WINDOW: u64 = 256 << 20;
/// From this length on a second thread pays.
const PARALLEL: u64 = 32 << 20;
const MAXIMUM_THREADS: usize = 4;
const DOMAIN: &[u8] = b"blake3-sparse-64k";

/// A 256-bit digest, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`; a file with this content has the same.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = start();
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            add(&mut hasher, (index * BLOCK) as u64, block);
        }
        finish(hasher, bytes.len() as u64)
    }

    /// Returns the digest of the whole file, and its length; `None` when `cancel` was set meanwhile.
    ///
    /// # Errors
    /// The read error, among them a file that shrinks meanwhile.
    pub fn of_file(file: &File, cancel: &AtomicBool) -> io::Result<Option<(Digest, u64)>> {
        let length = file.metadata()?.len();
        let mut hasher = start();
        let mut at = 0;
        while at < length {
            let Some(data) = next_data(file, at)? else { break };
            let begin = (data / BLOCK as u64 * BLOCK as u64).max(at);
            let end = begin.saturating_add(WINDOW).min(length);
            if begin >= end {
                break;
            }
            for part in hash_window(file, begin, end, cancel)? {
                hasher.update(&part);
            }
            if cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            at = end;
        }
        Ok(Some((finish(hasher, length), length)))
    }

    /// Returns the digest made of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first `digits` hexadecimal digits.
    pub fn prefix(&self, digits: usize) -> String {
        self.to_string().chars().take(digits).collect()
    }
}

fn start() -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    hasher
}

/// Adds a block unless it is all zeroes.
fn add(hasher: &mut blake3::Hasher, offset: u64, block: &[u8]) {
    if let Some(entry) = entry(offset, block) {
        hasher.update(&entry);
    }
}

fn entry(offset: u64, block: &[u8]) -> Option<[u8; 40]> {
    if is_zero(block) {
        return None;
    }
    let mut entry = [0; 40];
    entry[..8].copy_from_slice(&offset.to_le_bytes());
    entry[8..].copy_from_slice(blake3::hash(block).as_bytes());
    Some(entry)
}

fn finish(mut hasher: blake3::Hasher, length: u64) -> Digest {
    hasher.update(&length.to_le_bytes());
    Digest(*hasher.finalize().as_bytes())
}

/// The entries of the blocks in `begin..end`, in order. `begin` lies on a block's edge.
fn hash_window(file: &File, begin: u64, end: u64, cancel: &AtomicBool) -> io::Result<Vec<Vec<u8>>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if end - begin < PARALLEL { 1 } else { cores.min(MAXIMUM_THREADS) };
    let share = ((end - begin) / threads as u64).next_multiple_of(CHUNK);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads as u64)
            .map(|index| (begin + index * share, (begin + (index + 1) * share).min(end)))
            .filter(|(from, to)| from < to)
            .collect();
        let rest: Vec<_> = parts
            .iter()
            .skip(1)
            .map(|&(from, to)| scope.spawn(move || hash_range(file, from, to, cancel)))
            .collect();
        let mut done = Vec::with_capacity(parts.len());
        if let Some(&(from, to)) = parts.first() {
            done.push(hash_range(file, from, to, cancel)?);
        }
        for thread in rest {
            done.push(thread.join().map_err(|_| io::Error::other("a hashing thread died"))??);
        }
        Ok(done)
    })
}

/// The entries of the blocks in `at..end`.
fn hash_range(file: &File, mut at: u64, end: u64, cancel: &AtomicBool) -> io::Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut buffer = vec![0; CHUNK.min(end - at) as usize];
    while at < end && !cancel.load(Ordering::Relaxed) {
        let Some(data) = next_data(file, at)? else { break };
        // A hole is left by whole blocks, so that blocks stay where the definition puts them.
        at += data.saturating_sub(at) / BLOCK as u64 * BLOCK as u64;
        if at >= end {
            break;
        }
        let chunk = &mut buffer[..CHUNK.min(end - at) as usize];
        file.read_exact_at(chunk, at)?;
        for (index, block) in chunk.chunks(BLOCK).enumerate() {
            if let Some(entry) = entry(at + (index * BLOCK) as u64, block) {
                entries.extend_from_slice(&entry);
            }
        }
        at += chunk.len() as u64;
    }
    Ok(entries)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A digest has 64 lower-case hexadecimal digits")]
pub struct NoDigest;

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Digest, NoDigest> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NoDigest);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NoDigest),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmbake_disk::{Format, OpenOptions};

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn of_file(file: &tempfile::NamedTempFile) -> Digest {
        let never = AtomicBool::new(false);
        Digest::of_file(file.as_file(), &never).unwrap().unwrap().0
    }

    /// `convert` computes the same digest by its own code, over a disk instead of a file.
    fn of_disk(file: &tempfile::NamedTempFile) -> String {
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let disk = kvmbake_disk::open(file.path(), &options).unwrap();
        let digest = kvmbake_convert::digest(&*disk).unwrap().to_string();
        digest.trim_start_matches("blake3-sparse:").to_string()
    }

    #[test]
    fn files_bytes_and_disks_agree() {
        let mut bytes = vec![0; PARALLEL as usize + (1 << 20) + 512];
        for (index, byte) in bytes[..3 << 20].iter_mut().enumerate() {
            *byte = (index * 7 / 3) as u8;
        }
        bytes[(20 << 20) + 5] = 9;
        *bytes.last_mut().unwrap() = 1;
        let file = file_of(&bytes);
        assert_eq!(of_file(&file).to_string(), of_disk(&file));
        assert_eq!(of_file(&file), Digest::of(&bytes));
    }

    #[test]
    fn holes_are_zeroes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(300 << 20).unwrap();
        for at in [100 << 20, (256 << 20) - 3, (270 << 20) + 4096] {
            file.as_file().write_all_at(b"data", at).unwrap();
        }
        let sparse = of_file(&file);
        assert_eq!(sparse.to_string(), of_disk(&file));
        // The same data without holes, in a file short enough to be filled.
        file.as_file().set_len(0).unwrap();
        file.as_file().set_len(9 << 20).unwrap();
        file.as_file().write_all_at(b"data", (5 << 20) - 2).unwrap();
        let filled = std::fs::read(file.path()).unwrap();
        assert_eq!(of_file(&file), of_file(&file_of(&filled)));
    }

    #[test]
    fn the_end_counts_even_when_it_is_zeroes() {
        assert_ne!(Digest::of(&[]), Digest::of(&[0]));
        assert_ne!(Digest::of(&[0; 10]), Digest::of(&[0; 11]));
        assert_eq!(of_file(&file_of(&[0; 10])), Digest::of(&[0; 10]));
    }

    #[test]
    fn a_digest_reads_back_what_it_shows() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("".parse::<Digest>(), Err(NoDigest));
        assert_eq!("G".repeat(64).parse::<Digest>(), Err(NoDigest));
        assert_eq!("é".repeat(32).parse::<Digest>(), Err(NoDigest));
    }

    #[test]
    fn a_set_flag_stops_it() {
        let file = file_of(&[1; 100]);
        let stopped = Digest::of_file(file.as_file(), &AtomicBool::new(true)).unwrap();
        assert_eq!(stopped, None);
    }
}
