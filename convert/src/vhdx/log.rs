//! The log of a VHDX image (section 2.3), replayed in memory: an image whose last user did not
//! close it holds there the newest state of its metadata. The file is never written.
//!
//! The log is a ring of sectors of 4 KiB. An entry is a header with descriptors and one data
//! sector for each descriptor that has data; a sequence is entries that follow each other with
//! numbers that rise by one. The active sequence is the valid one with the highest number, and its
//! last entry says where it begins.
//!
//! Left out: logs of more than 16 MiB (both Hyper-V and QEMU make them of 1 MiB).

use kvmbake_disk::Error;

use super::crc32c::Crc32c;
use super::{HEADER_LEN, MIB, REGION_TABLES, long, word};
use crate::error::{corrupt, truncated, unsupported};
use crate::mapped::ImageFile;
use crate::patches::Patches;

const SECTOR: usize = 4096;
const MAX_LOG: u64 = 16 << 20;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// The bytes over which checksums are taken while the active sequence is looked for. A log of 1 MiB
/// cannot reach it.
const MAX_SUMMED: u64 = 1 << 30;

/// Returns the image as it is after the replay of the log that `header` describes.
///
/// # Errors
/// The log has no valid entries, changes what no log may change, or is too large.
pub(super) fn replay(image: ImageFile, header: &[u8; HEADER_LEN]) -> Result<ImageFile, Error> {
    let path = &image.path;
    let version = u16::from_le_bytes([header[64], header[65]]);
    let (place, len) = (long(header, 72), u64::from(word(header, 68)));
    if version != 0 {
        return Err(unsupported(
            path,
            format!("its log must be replayed, and is of version {version}"),
        ));
    }
    if place < MIB || place % MIB != 0 || len == 0 || len % MIB != 0 {
        return Err(corrupt(path, format!("its log of {len} bytes is at {place:#x}")));
    }
    if len > MAX_LOG {
        return Err(unsupported(path, format!("its log of {len} bytes must be replayed")));
    }
    image.check_inside(place, len, "the log")?;
    let mut ring = vec![0; len as usize];
    image.read(&mut ring, place)?;
    let log = Log { ring, guid: &header[48..64] };
    let active = log.active(path)?.ok_or_else(|| {
        corrupt(path, "its log must be replayed, and holds no valid sequence of entries")
    })?;
    let mut patches = Patches::new(image.len);
    for entry in &active {
        if entry.flushed > image.len {
            return Err(truncated(
                path,
                format!(
                    "its log was written for {} bytes, the file has {}",
                    entry.flushed, image.len
                ),
            ));
        }
        patches.grow(entry.last);
        log.apply(entry, &mut patches, (place, len)).map_err(|reason| corrupt(path, reason))?;
    }
    Ok(image.patched(patches))
}

struct Log<'a> {
    ring: Vec<u8>,
    guid: &'a [u8],
}

/// An entry that is valid in itself.
#[derive(Clone, Copy)]
struct Entry {
    /// Where it begins, and its length, in sectors.
    at: usize,
    sectors: usize,
    /// The sector where the sequence begins that it is the last of.
    tail: usize,
    number: u64,
    descriptors: usize,
    /// Bytes of the file that were durable when it was written, and that its structures need.
    flushed: u64,
    last: u64,
}

impl Log<'_> {
    fn sectors(&self) -> usize {
        self.ring.len() / SECTOR
    }

    /// Returns a sector; behind the last comes the first.
    fn sector(&self, index: usize) -> &[u8] {
        &self.ring[index % self.sectors() * SECTOR..][..SECTOR]
    }

    /// Returns the active sequence (2.3.2), if there is a valid one.
    fn active(&self, path: &std::path::Path) -> Result<Option<Vec<Entry>>, Error> {
        let mut best: Option<Vec<Entry>> = None;
        let mut summed = 0;
        let mut start = 0;
        while start < self.sectors() {
            let mut entries: Vec<Entry> = Vec::new();
            let (mut at, mut left) = (start, self.sectors());
            while let Some(entry) = self.entry(at, left, &mut summed) {
                if entries
                    .last()
                    .is_some_and(|last| last.number.checked_add(1) != Some(entry.number))
                {
                    break;
                }
                left -= entry.sectors;
                at = (at + entry.sectors) % self.sectors();
                entries.push(entry);
            }
            if summed > MAX_SUMMED {
                return Err(corrupt(path, "its log is full of entries that overlap"));
            }
            let used = self.sectors() - left;
            let tail = entries.last().map(|head| (head.number, head.tail));
            if let Some((number, tail)) = tail
                && best
                    .as_ref()
                    .and_then(|best| best.last())
                    .is_none_or(|best| number > best.number)
                && let Some(first) = entries.iter().position(|entry| entry.at == tail)
            {
                entries.drain(..first);
                best = Some(entries);
            }
            start += used.max(1);
        }
        Ok(best)
    }

    /// Returns the entry at a sector, if there is a valid one of at most `left` sectors.
    fn entry(&self, at: usize, left: usize, summed: &mut u64) -> Option<Entry> {
        if left == 0 {
            return None;
        }
        let header = self.sector(at);
        let (len, tail) = (word(header, 8) as usize, word(header, 12) as usize);
        let entry = Entry {
            at,
            sectors: len / SECTOR,
            tail: tail / SECTOR,
            number: long(header, 16),
            descriptors: word(header, 24) as usize,
            flushed: long(header, 48),
            last: long(header, 56),
        };
        let plausible = header.starts_with(b"loge")
            && header[32..48] == *self.guid
            && (1..=left).contains(&entry.sectors)
            && len.is_multiple_of(SECTOR)
            && tail.is_multiple_of(SECTOR)
            && tail < self.ring.len()
            && entry.number != 0
            && entry.descriptor_sectors() <= entry.sectors;
        if !plausible {
            return None;
        }
        *summed += len as u64;
        let mut sum = Crc32c::new();
        sum.update(&header[..4]);
        sum.update(&[0; 4]);
        sum.update(&header[8..]);
        (1..entry.sectors).for_each(|index| sum.update(self.sector(at + index)));
        if sum.finish() != word(header, 4) {
            return None;
        }
        let mut data = 0;
        for index in 0..entry.descriptors {
            let descriptor = self.descriptor(&entry, index);
            if long(descriptor, 24) != entry.number
                || !long(descriptor, 16).is_multiple_of(SECTOR as u64)
            {
                return None;
            }
            match &descriptor[..4] {
                b"zero" if long(descriptor, 8).is_multiple_of(SECTOR as u64) => {}
                b"desc" => {
                    let sector = entry.descriptor_sectors() + data;
                    if sector >= entry.sectors || !self.is_data(&entry, sector) {
                        return None;
                    }
                    data += 1;
                }
                _ => return None,
            }
        }
        Some(entry)
    }

    fn descriptor(&self, entry: &Entry, index: usize) -> &[u8] {
        let at = ENTRY_HEADER + index * DESCRIPTOR;
        &self.sector(entry.at + at / SECTOR)[at % SECTOR..][..DESCRIPTOR]
    }

    /// Returns whether a sector of the entry holds data of this entry.
    fn is_data(&self, entry: &Entry, sector: usize) -> bool {
        let sector = self.sector(entry.at + sector);
        let number = u64::from(word(sector, 4)) << 32 | u64::from(word(sector, SECTOR - 4));
        sector.starts_with(b"data") && number == entry.number
    }

    /// Applies a valid entry; `own` is the log's place and length.
    fn apply(&self, entry: &Entry, patches: &mut Patches, own: (u64, u64)) -> Result<(), String> {
        let mut data = entry.descriptor_sectors();
        for index in 0..entry.descriptors {
            let descriptor = self.descriptor(entry, index);
            let place = long(descriptor, 16);
            let is_zero = descriptor.starts_with(b"zero");
            let len = if is_zero { long(descriptor, 8) } else { SECTOR as u64 };
            let end = place.checked_add(len).filter(|end| *end <= patches.len());
            let Some(end) = end else {
                return Err(format!(
                    "its log changes {len} bytes at {place:#x}, beyond the file's {} bytes",
                    patches.len()
                ));
            };
            // The headers say which log it is, so they are written without it.
            if place < REGION_TABLES[0] || (place < own.0 + own.1 && own.0 < end) {
                return Err(format!("its log changes the headers or itself, at {place:#x}"));
            }
            if is_zero {
                patches.zero(place, len);
                continue;
            }
            let mut bytes = Box::new([0; SECTOR]);
            bytes.copy_from_slice(self.sector(entry.at + data));
            bytes[..8].copy_from_slice(&descriptor[8..16]);
            bytes[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
            patches.set(place, bytes);
            data += 1;
        }
        Ok(())
    }
}

impl Entry {
    /// Returns the sectors of its header and descriptors.
    fn descriptor_sectors(&self) -> usize {
        (ENTRY_HEADER + self.descriptors * DESCRIPTOR).div_ceil(SECTOR)
    }
}
