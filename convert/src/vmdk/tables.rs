//! The grain directory and the grain tables of a sparse extent, checked as a whole before the
//! first read, and the grains of compressed ones.

use std::sync::{Mutex, PoisonError};

use kvmbake_disk::Error;
use libdeflater::Decompressor;

use super::{FLAG_ZERO_GRAINS, Header, SECTOR, TABLE_ENTRIES, TABLE_SECTORS};
use crate::encode::round_up;
use crate::error::{corrupt, truncated, unsupported};
use crate::mapped::{Claims, ImageFile, UnitMap};

/// The grain directory, and the grain table read last.
pub(super) struct GrainMap {
    image: ImageFile,
    grain: u64,
    grains: u64,
    /// Whether entry 1 means a grain of zeroes.
    zero_grains: bool,
    /// The sector of each grain table; 0 where there is none.
    directory: Vec<u32>,
    cached: Mutex<GrainTable>,
}

struct GrainTable {
    sector: u32,
    entries: Box<[u32; TABLE_ENTRIES as usize]>,
}

impl GrainMap {
    pub(super) fn read(image: &ImageFile, header: &Header) -> Result<GrainMap, Error> {
        let grains = header.capacity.div_ceil(header.grain);
        let len = grains.div_ceil(TABLE_ENTRIES) * 4;
        let at = header.directory.saturating_mul(SECTOR);
        image.check_inside(at, len, "the grain directory")?;
        let mut bytes = vec![0; len as usize];
        image.read(&mut bytes, at)?;
        let directory = bytes.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry));
        Ok(GrainMap {
            image: image.clone(),
            grain: header.grain,
            grains,
            zero_grains: header.flags & FLAG_ZERO_GRAINS != 0,
            directory: directory.collect(),
            cached: Mutex::new(GrainTable {
                sector: 0,
                entries: Box::new([0; TABLE_ENTRIES as usize]),
            }),
        })
    }

    fn is_allocated(&self, entry: u32) -> bool {
        entry != 0 && !(entry == 1 && self.zero_grains)
    }

    /// Returns the first entry from `grain` on that is allocated and, if `only` says so, no other.
    fn find(&self, grain: u64, only: bool) -> Result<Option<(u64, u32)>, Error> {
        let mut grain = grain;
        // Whatever a panic elsewhere left, `sector` is set only after the entries were read.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        while grain < self.grains {
            let table = (grain / TABLE_ENTRIES) as usize;
            let sector = self.directory[table];
            if sector != 0 {
                self.load(&mut cached, sector)?;
                let first = (grain % TABLE_ENTRIES) as usize;
                let entries = &cached.entries[first..];
                let entries = if only { &entries[..1] } else { entries };
                let found = entries.iter().position(|entry| self.is_allocated(*entry));
                if let Some(skip) = found {
                    let found = grain + skip as u64;
                    return Ok((found < self.grains).then(|| (found, entries[skip])));
                }
            }
            if only {
                break;
            }
            grain = (table as u64 + 1) * TABLE_ENTRIES;
        }
        Ok(None)
    }

    fn load(&self, cached: &mut GrainTable, sector: u32) -> Result<(), Error> {
        if cached.sector == sector {
            return Ok(());
        }
        let mut bytes = [0; TABLE_ENTRIES as usize * 4];
        cached.sector = 0;
        self.image.read(&mut bytes, u64::from(sector) * SECTOR)?;
        for (entry, bytes) in cached.entries.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *entry = u32::from_le_bytes(*bytes);
        }
        cached.sector = sector;
        Ok(())
    }

    /// Returns where the metadata lies, in order; refuses what overlaps or leaves the file.
    fn check_tables(&self, image: &ImageFile, header: &Header) -> Result<Vec<(u64, u64)>, Error> {
        let directory_sectors = (self.directory.len() as u64 * 4).div_ceil(SECTOR);
        let mut regions = vec![
            (0, 1),
            (header.descriptor, header.descriptor_len),
            (header.directory, directory_sectors),
        ];
        for sector in self.directory.iter().filter(|sector| **sector != 0) {
            let sector = u64::from(*sector);
            image.check_inside(sector * SECTOR, TABLE_SECTORS * SECTOR, "a grain table")?;
            regions.push((sector, TABLE_SECTORS));
        }
        regions.sort_unstable();
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(corrupt(
                &image.path,
                format!(
                    "the metadata at {:#x} and {:#x} overlaps",
                    pair[0].0 * SECTOR,
                    pair[1].0 * SECTOR
                ),
            ));
        }
        Ok(regions)
    }

    /// Checks that every table and every grain lies in the file and is nobody else's; returns the
    /// bytes of all grains.
    pub(super) fn check(
        &self,
        image: &ImageFile,
        header: &Header,
        size: u64,
    ) -> Result<u64, Error> {
        let path = &image.path;
        let regions = self.check_tables(image, header)?;
        let mut claims = Claims::new(image, self.grain)?;
        let mut next = 0;
        while let Some((grain, entry)) = self.find(next, false)? {
            let sector = u64::from(entry);
            let used = (self.grain * SECTOR).min(size.saturating_sub(grain * self.grain * SECTOR));
            if sector * SECTOR + used > round_up(image.len, SECTOR) {
                return Err(truncated(
                    path,
                    format!(
                        "grain {grain} is stored at {:#x}, beyond the file's {} bytes",
                        sector * SECTOR,
                        image.len
                    ),
                ));
            }
            self.check_apart(image, &regions, grain, sector, self.grain)?;
            claims.claim(image, sector)?;
            next = grain + 1;
        }
        Ok(claims.bytes())
    }

    fn check_apart(
        &self,
        image: &ImageFile,
        regions: &[(u64, u64)],
        grain: u64,
        sector: u64,
        sectors: u64,
    ) -> Result<(), Error> {
        let after = regions.partition_point(|region| region.0 < sector + sectors);
        if after > 0 && regions[after - 1].0 + regions[after - 1].1 > sector {
            return Err(corrupt(
                &image.path,
                format!("grain {grain} at {:#x} overlaps the metadata", sector * SECTOR),
            ));
        }
        Ok(())
    }
}

impl UnitMap for GrainMap {
    fn unit(&self) -> u64 {
        self.grain * SECTOR
    }

    fn locate(&self, unit: u64) -> Result<Option<u64>, Error> {
        Ok(self.find(unit, true)?.map(|(_, entry)| u64::from(entry) * SECTOR))
    }

    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error> {
        Ok(self.find(unit, false)?.map(|(grain, _)| grain))
    }
}

/// The largest file with compressed grains: one bit a sector finds overlaps in 64 MiB.
const MAX_COMPRESSED_FILE: u64 = 256 << 30;
/// The sector number and the length before a grain's bytes.
const MARKER: u64 = 12;

/// Grains that are compressed, each behind a marker.
pub(super) struct CompressedMap {
    map: GrainMap,
    size: u64,
    decompressors: Mutex<Vec<Decompressor>>,
    cached: Mutex<CachedGrain>,
}

/// The grain decompressed last, for requests of parts of it.
#[derive(Default)]
struct CachedGrain {
    grain: Option<u64>,
    bytes: Vec<u8>,
}

impl CompressedMap {
    pub(super) fn new(map: GrainMap, size: u64) -> CompressedMap {
        CompressedMap { map, size, decompressors: Mutex::default(), cached: Mutex::default() }
    }

    /// Checks that every table and every grain lies in the file and is nobody else's, and that
    /// each grain's marker is its own; returns the bytes of all grains.
    pub(super) fn check(&self, image: &ImageFile, header: &Header) -> Result<u64, Error> {
        if image.len > MAX_COMPRESSED_FILE {
            return Err(unsupported(
                &image.path,
                format!("{} bytes of compressed grains", image.len),
            ));
        }
        let regions = self.map.check_tables(image, header)?;
        let mut claimed = vec![0u8; image.len.div_ceil(SECTOR).div_ceil(8) as usize];
        let mut bytes = 0;
        let mut next = 0;
        while let Some((grain, entry)) = self.map.find(next, false)? {
            let place = u64::from(entry) * SECTOR;
            let len = self.marker(image, grain, place)?;
            let sectors = (MARKER + len).div_ceil(SECTOR);
            self.map.check_apart(image, &regions, grain, u64::from(entry), sectors)?;
            for sector in u64::from(entry)..u64::from(entry) + sectors {
                let (byte, bit) = ((sector / 8) as usize, 1 << (sector % 8));
                if claimed[byte] & bit != 0 {
                    return Err(corrupt(
                        &image.path,
                        format!("grain {grain} at {place:#x} overlaps another one"),
                    ));
                }
                claimed[byte] |= bit;
            }
            bytes += sectors * SECTOR;
            next = grain + 1;
        }
        Ok(bytes)
    }

    /// Returns how many compressed bytes follow the marker at `place`.
    fn marker(&self, image: &ImageFile, grain: u64, place: u64) -> Result<u64, Error> {
        let bytes = image.read_array::<{ MARKER as usize }>(place, "a grain's marker")?;
        let [sector @ .., a, b, c, d] = bytes;
        let (sector, len) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
        let (sector, len) = (sector, u64::from(len));
        if sector != grain * self.map.grain || len == 0 || len > 2 * self.unit() {
            return Err(corrupt(
                &image.path,
                format!(
                    "the marker at {place:#x} is for sector {sector} and {len} bytes, not for \
                     grain {grain}"
                ),
            ));
        }
        image.check_inside(place + MARKER, len, "a compressed grain")?;
        Ok(len)
    }

    /// Decompresses a grain into `buf`, which has its length.
    fn decompress(
        &self,
        image: &ImageFile,
        grain: u64,
        place: u64,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        let len = self.marker(image, grain, place)?;
        let mut packed = vec![0; len as usize];
        image.read(&mut packed, place + MARKER)?;
        let free = || self.decompressors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut decompressor = free().pop().unwrap_or_default();
        let found = decompressor.zlib_decompress(&packed, buf);
        free().push(decompressor);
        let used = self.size.saturating_sub(grain * self.unit()).min(self.unit());
        match found {
            Ok(found) if found as u64 >= used => {
                buf[found..].fill(0);
                Ok(())
            }
            Ok(found) => Err(corrupt(
                &image.path,
                format!("grain {grain} at {place:#x} decompresses to {found} bytes"),
            )),
            Err(error) => Err(corrupt(
                &image.path,
                format!("grain {grain} at {place:#x} does not decompress: {error}"),
            )),
        }
    }
}

impl UnitMap for CompressedMap {
    fn unit(&self) -> u64 {
        self.map.unit()
    }

    fn locate(&self, unit: u64) -> Result<Option<u64>, Error> {
        self.map.locate(unit)
    }

    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error> {
        self.map.next_allocated(unit)
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn read(&self, image: &ImageFile, unit: u64, within: u64, buf: &mut [u8]) -> Result<(), Error> {
        let Some(place) = self.locate(unit)? else {
            buf.fill(0);
            return Ok(());
        };
        if buf.len() as u64 == self.unit() {
            return self.decompress(image, unit, place, buf);
        }
        // Whatever a panic elsewhere left, `grain` is set only after the bytes were decompressed.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.grain != Some(unit) {
            cached.grain = None;
            let mut bytes = std::mem::take(&mut cached.bytes);
            bytes.resize(self.unit() as usize, 0);
            self.decompress(image, unit, place, &mut bytes)?;
            *cached = CachedGrain { grain: Some(unit), bytes };
        }
        buf.copy_from_slice(&cached.bytes[within as usize..][..buf.len()]);
        Ok(())
    }
}
