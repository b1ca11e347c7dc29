//! Read-only disks whose image stores them in units (blocks or grains) found through a map.
//!
//! A format supplies a [`UnitMap`]; range checks, reading across units, zeroes of what is not
//! allocated and the extent scan are here. [`Claims`] finds units that overlap, which no sound
//! image has.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_disk::block::check_range;
use kvmbake_disk::{Block, Error, ErrorKind, Extent, share};
use rustix::fs::{Mode, OFlags, SeekFrom, seek};

use crate::error::{corrupt, truncated, unsupported};
use crate::patches::Patches;

/// An image file opened for reading.
#[derive(Debug, Clone)]
pub(crate) struct ImageFile {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// Where in the file the image begins: not 0 inside an archive.
    pub(crate) base: u64,
    /// Bytes of the image.
    pub(crate) len: u64,
    /// Bytes that the file occupies on the host.
    pub(crate) allocated: u64,
    /// What it holds instead of the file's own bytes.
    patches: Option<Arc<Patches>>,
}

impl ImageFile {
    /// Opens a regular file; anything else, which might block or have no end, is refused.
    pub(crate) fn open(path: &Path) -> Result<ImageFile, Error> {
        let io = |error| Error::io("open", error).on(path);
        // A named pipe must not block us before it can be refused.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| io(io::Error::from_raw_os_error(error.raw_os_error())))?;
        ImageFile::of(File::from(file), path)
    }

    /// Takes a file that is open already; `path` names it in messages.
    pub(crate) fn of(file: File, path: &Path) -> Result<ImageFile, Error> {
        ImageFile::of_shared(Arc::new(file), path)
    }

    /// Takes a file that others hold too.
    pub(crate) fn of_shared(file: Arc<File>, path: &Path) -> Result<ImageFile, Error> {
        let metadata = file.metadata().map_err(|error| Error::io("open", error).on(path))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Unsupported, "open")
                .on(path)
                .because("it is not a regular file"));
        }
        Ok(ImageFile {
            file,
            path: path.to_owned(),
            base: 0,
            len: metadata.len(),
            allocated: metadata.blocks() * 512,
            patches: None,
        })
    }

    /// Returns the image with changes, which are of the image's own bytes.
    pub(crate) fn patched(self, patches: Patches) -> ImageFile {
        ImageFile { len: patches.len(), patches: Some(Arc::new(patches)), ..self }
    }

    /// Returns the image that is a part of this one, which the caller knows to be inside.
    pub(crate) fn part(&self, base: u64, len: u64) -> ImageFile {
        ImageFile { base: self.base + base, len, patches: None, ..self.clone() }
    }

    /// Returns whether both are one file.
    pub(crate) fn is_same_file(&self, other: &ImageFile) -> Result<bool, Error> {
        let identity = |image: &ImageFile| {
            let metadata =
                image.file.metadata().map_err(|error| Error::io("stat", error).on(&image.path))?;
            Ok::<_, Error>((metadata.dev(), metadata.ino()))
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// Fills `buf` from the file's byte `at`.
    pub(crate) fn read(&self, buf: &mut [u8], at: u64) -> Result<(), Error> {
        let stored = self.patches.as_ref().map_or(buf.len(), |all| all.stored(at, buf.len()));
        let (own, behind) = buf.split_at_mut(stored);
        behind.fill(0);
        self.file
            .read_exact_at(own, self.base + at)
            .map_err(|error| Error::io("read", error).on(&self.path).at(at))?;
        if let Some(patches) = &self.patches {
            patches.apply(buf, at);
        }
        Ok(())
    }

    /// Returns `N` bytes from the file's byte `at`; `what` names them should the file end before.
    pub(crate) fn read_array<const N: usize>(&self, at: u64, what: &str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.check_inside(at, N as u64, what)?;
        self.read(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Refuses a part of the image that lies beyond the end of the file.
    pub(crate) fn check_inside(&self, at: u64, len: u64, what: &str) -> Result<(), Error> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(truncated(
                &self.path,
                format!(
                    "{what} ({len} bytes at {at:#x}) ends beyond the file's {} bytes",
                    self.len
                ),
            )),
        }
    }

    /// Lets another file have bytes of this one without copying them; see [`Block::share`].
    fn share(&self, from: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        match self.patches {
            Some(_) => Ok(0),
            None => share(&self.file, self.base + from, len, file, at),
        }
    }

    /// Returns the first byte at or after `from` that is not in a hole of the file.
    pub(crate) fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        if self.patches.is_some() {
            // A hole of the file may have been filled.
            let len = self.len.saturating_sub(from);
            return Ok((len > 0).then_some(Extent { offset: from, len }));
        }
        let sought = |result: Result<u64, rustix::io::Errno>| match result {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => {
                let error = io::Error::from_raw_os_error(error.raw_os_error());
                Err(Error::io("seek", error).on(&self.path).at(from))
            }
        };
        let Some(offset) = sought(seek(&self.file, SeekFrom::Data(self.base + from)))? else {
            return Ok(None);
        };
        let end = sought(seek(&self.file, SeekFrom::Hole(offset)))?.unwrap_or(u64::MAX);
        let (offset, end) = (offset - self.base, (end - self.base).min(self.len));
        Ok((offset < end).then(|| Extent { offset, len: end - offset }))
    }
}

/// Where an image keeps the units of its disk.
pub(crate) trait UnitMap: Send + Sync {
    /// Returns the bytes of a unit, a power of two of at least 512.
    fn unit(&self) -> u64;

    /// Returns the byte of the file where the unit's data begins; `None` reads as zeroes.
    fn locate(&self, unit: u64) -> Result<Option<u64>, Error>;

    /// Returns the first allocated unit at or after `unit`.
    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error>;

    /// Returns whether a unit's bytes lie in the file as they are, one behind the other, so that a
    /// hole of the file is one of the disk.
    fn is_plain(&self) -> bool {
        true
    }

    /// Reads from inside one unit.
    fn read(&self, image: &ImageFile, unit: u64, within: u64, buf: &mut [u8]) -> Result<(), Error> {
        match self.locate(unit)? {
            Some(place) => image.read(buf, place + within),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }
}

/// How many units one extent of a scan covers at most.
const UNITS_PER_EXTENT: u64 = 1024;

/// A disk over a [`UnitMap`].
pub(crate) struct MappedDisk<M> {
    pub(crate) image: ImageFile,
    pub(crate) size: u64,
    pub(crate) map: M,
}

impl<M: UnitMap> Block for MappedDisk<M> {
    fn len(&self) -> u64 {
        self.size
    }

    fn cluster_size(&self) -> u64 {
        self.map.unit()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.size)
            .map_err(|error| error.on(&self.image.path))?;
        let unit = self.map.unit();
        while !buf.is_empty() {
            let within = offset % unit;
            let len = (unit - within).min(buf.len() as u64);
            let (part, rest) = buf.split_at_mut(len as usize);
            self.map.read(&self.image, offset / unit, within, part)?;
            (buf, offset) = (rest, offset + len);
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], offset: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "write").at(offset))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "discard").at(offset))
    }

    fn write_zeroes(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "write zeroes to").at(offset))
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        let unit = self.map.unit();
        if from >= self.size {
            return Ok(None);
        }
        let units = self.size.div_ceil(unit);
        let mut next = from / unit;
        while let Some(first) = self.map.next_allocated(next)? {
            let Some(place) = self.map.locate(first)? else { break };
            let mut end = first + 1;
            while end < units.min(first + UNITS_PER_EXTENT) {
                let expected = place + (end - first) * unit;
                match self.map.locate(end)? {
                    Some(found) if !self.map.is_plain() || found == expected => end += 1,
                    _ => break,
                }
            }
            let start = (first * unit).max(from);
            let stop = (end * unit).min(self.size);
            let whole = Extent { offset: start, len: stop.saturating_sub(start) };
            if !self.map.is_plain() {
                return Ok((start < stop).then_some(whole));
            }
            // Of allocated units too, what the file does not store is zero.
            let at = place + (start - first * unit);
            let stored = self.image.next_data(at)?.and_then(|data| data.before(at + whole.len));
            if let Some(stored) = stored.filter(|_| start < stop) {
                let offset = start + (stored.offset - at);
                return Ok(Some(Extent { offset, len: stored.len }));
            }
            next = end;
        }
        Ok(None)
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        let within = offset % self.map.unit();
        match self.map.locate(offset / self.map.unit()) {
            Ok(Some(place)) if self.map.is_plain() => {
                let len = len.min(self.map.unit() - within);
                self.image.share(place + within, len, file, at)
            }
            _ => Ok(0),
        }
    }
}

/// A disk that lies as it is at the beginning of its file.
pub(crate) struct LinearDisk {
    pub(crate) image: ImageFile,
    pub(crate) size: u64,
}

impl Block for LinearDisk {
    fn len(&self) -> u64 {
        self.size
    }

    fn cluster_size(&self) -> u64 {
        4096
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.size)
            .map_err(|error| error.on(&self.image.path))?;
        self.image.read(buf, offset)
    }

    fn write_at(&self, _buf: &[u8], offset: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "write").at(offset))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "discard").at(offset))
    }

    fn write_zeroes(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.image.path, "write zeroes to").at(offset))
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        if from >= self.size {
            return Ok(None);
        }
        let extent = self.image.next_data(from)?;
        Ok(extent.filter(|extent| extent.offset < self.size).map(|extent| Extent {
            offset: extent.offset,
            len: extent.end().min(self.size) - extent.offset,
        }))
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        self.image.share(offset, len, file, at)
    }
}

pub(crate) fn read_only(path: &Path, operation: &'static str) -> Error {
    Error::new(ErrorKind::ReadOnly, operation).on(path)
}

/// More places than this in one file are refused, which bounds [`Claims`] to 64 MiB.
const MAX_SLOTS: u64 = 32 << 20;

/// Finds overlaps among equally long parts of a file.
///
/// The file is cut into slots of that length, and a slot notes at which of its granules (sectors,
/// or whatever the format aligns to) a part begins: two parts overlap exactly when they begin in
/// one slot, or in neighbouring slots and the later one at a lower granule.
pub(crate) struct Claims {
    granule: u64,
    /// Granules of a part.
    granules: u64,
    /// 0: nothing begins here; otherwise one more than the granule within the slot.
    slots: Vec<u16>,
    claimed: u64,
}

impl Claims {
    /// Returns the claims on a file, by parts of `sectors` sectors (below 65535).
    pub(crate) fn new(image: &ImageFile, sectors: u64) -> Result<Claims, Error> {
        Claims::in_granules(image, 512, sectors)
    }

    /// Returns the claims on a file, by parts of `granules` granules (below 65535).
    pub(crate) fn in_granules(
        image: &ImageFile,
        granule: u64,
        granules: u64,
    ) -> Result<Claims, Error> {
        let slots = image.len.div_ceil(granule).div_ceil(granules);
        if slots > MAX_SLOTS || granules >= u64::from(u16::MAX) {
            return Err(unsupported(
                &image.path,
                format!("a file of {} bytes in units of {} bytes", image.len, granules * granule),
            ));
        }
        Ok(Claims { granule, granules, slots: vec![0; slots as usize], claimed: 0 })
    }

    /// Claims the part that begins at a granule, which is inside the file.
    pub(crate) fn claim(&mut self, image: &ImageFile, granule: u64) -> Result<(), Error> {
        let slot = (granule / self.granules) as usize;
        let phase = (granule % self.granules) as u16 + 1;
        let at = |slot: usize| self.slots.get(slot).copied().unwrap_or(0);
        let before = slot.checked_sub(1).map_or(0, at);
        let after = at(slot + 1);
        if slot >= self.slots.len()
            || at(slot) != 0
            || before > phase
            || (after != 0 && after < phase)
        {
            return Err(corrupt(
                &image.path,
                format!("the unit stored at {:#x} overlaps another one", granule * self.granule),
            ));
        }
        self.slots[slot] = phase;
        self.claimed += 1;
        Ok(())
    }

    /// Returns the bytes of all parts claimed.
    pub(crate) fn bytes(&self) -> u64 {
        self.claimed * self.granules * self.granule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: u64) -> ImageFile {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        ImageFile::of(file, Path::new("image")).unwrap()
    }

    #[test]
    fn claims_find_exactly_the_overlaps() {
        let image = image(1000 * 512);
        let mut claims = Claims::new(&image, 10).unwrap();
        for sector in [5, 15, 40, 31, 25, 59] {
            assert_eq!(claims.claim(&image, sector).is_ok(), sector != 31, "{sector}");
        }
        for (sector, free) in [(5, false), (14, false), (24, false), (50, false), (49, false)] {
            assert_eq!(claims.claim(&image, sector).is_ok(), free, "{sector}");
        }
        claims.claim(&image, 69).unwrap();
        claims.claim(&image, 990).unwrap();
    }

    #[test]
    fn absurd_numbers_of_units_are_refused() {
        let error = Claims::new(&image(1 << 40), 8).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
