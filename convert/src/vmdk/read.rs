//! The VMDK reader: monolithicSparse, validated as a whole before the first read.
//!
//! Nothing that the descriptor names is opened: the one extent is the file itself.

use std::sync::{Mutex, PoisonError};

use kvmbake_disk::{Error, ErrorKind};

use super::descriptor::{self, Descriptor};
use super::{
    DESCRIPTOR_MAGIC, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_ZERO_GRAINS, Header, SECTOR,
    TABLE_ENTRIES, TABLE_SECTORS,
};
use crate::encode::round_up;
use crate::error::{corrupt, truncated, unsupported};
use crate::image::Opened;
use crate::mapped::{Claims, ImageFile, MappedDisk, UnitMap};

const MAX_DESCRIPTOR_SECTORS: u64 = 2048;
/// 32 TiB in grains of 64 KiB; bounds the grain directory in memory to 4 MiB.
const MAX_TABLES: u64 = 1 << 20;

/// Opens a VMDK image.
///
/// # Errors
/// Corrupt, truncated, unsupported, or naming other files, with what is wrong.
pub(crate) fn open(image: ImageFile) -> Result<Opened, Error> {
    let first = image.read_array::<{ SECTOR as usize }>(0, "the sparse extent header")?;
    if first.starts_with(DESCRIPTOR_MAGIC) {
        return Err(Error::new(ErrorKind::NamesOtherFile, "open")
            .on(&image.path)
            .because("it is a descriptor whose extents are other files"));
    }
    let header = Header::decode(&first).map_err(|reason| corrupt(&image.path, reason))?;
    check_header(&image, &header)?;
    let descriptor = read_descriptor(&image, &header)?;
    let size = check_descriptor(&image, &header, &descriptor)?;
    let map = GrainMap::read(&image, &header)?;
    map.check(&image, &header, size)?;
    let details = vec![
        ("variant", descriptor.create_type),
        ("version", header.version.to_string()),
        ("grain size", (header.grain * SECTOR).to_string()),
        ("cid", descriptor.content_id),
        ("overhead", header.overhead.saturating_mul(SECTOR).to_string()),
        ("redundant grain directory", (header.redundant_directory != 0).to_string()),
    ];
    Ok(Opened::new(MappedDisk { image, size, map }, details))
}

fn check_header(image: &ImageFile, header: &Header) -> Result<(), Error> {
    let path = &image.path;
    if header.flags & (FLAG_COMPRESSED | FLAG_MARKERS) != 0
        || header.compression != 0
        || header.directory == u64::MAX
    {
        return Err(unsupported(path, "compressed grains (streamOptimized)"));
    }
    if !(1..=3).contains(&header.version) {
        return Err(unsupported(path, format!("version {}", header.version)));
    }
    if !header.grain.is_power_of_two() || !(8..=2048).contains(&header.grain) {
        return Err(unsupported(path, format!("grains of {} sectors", header.grain)));
    }
    if u64::from(header.table_entries) != TABLE_ENTRIES {
        return Err(unsupported(path, format!("grain tables of {} entries", header.table_entries)));
    }
    let tables = header.capacity.div_ceil(header.grain * TABLE_ENTRIES);
    if tables == 0 || tables > MAX_TABLES {
        return Err(unsupported(path, format!("a capacity of {} sectors", header.capacity)));
    }
    Ok(())
}

fn read_descriptor(image: &ImageFile, header: &Header) -> Result<Descriptor, Error> {
    let path = &image.path;
    if header.descriptor == 0 || header.descriptor_len == 0 {
        return Err(unsupported(path, "it has no embedded descriptor: it is a part of an image"));
    }
    if header.descriptor_len > MAX_DESCRIPTOR_SECTORS {
        return Err(unsupported(
            path,
            format!("a descriptor of {} sectors", header.descriptor_len),
        ));
    }
    let at = header.descriptor.saturating_mul(SECTOR);
    image.check_inside(at, header.descriptor_len * SECTOR, "the descriptor")?;
    let mut text = vec![0; (header.descriptor_len * SECTOR) as usize];
    image.read(&mut text, at)?;
    descriptor::decode(&text).map_err(|reason| corrupt(path, reason))
}

/// Returns the virtual size in bytes.
fn check_descriptor(
    image: &ImageFile,
    header: &Header,
    descriptor: &Descriptor,
) -> Result<u64, Error> {
    let path = &image.path;
    if descriptor.create_type != "monolithicSparse" {
        return Err(unsupported(path, format!("create type {:?}", descriptor.create_type)));
    }
    if !descriptor.parent_content_id.eq_ignore_ascii_case("ffffffff") {
        return Err(unsupported(path, "it depends on a parent image"));
    }
    let [extent] = descriptor.extents.as_slice() else {
        return Err(corrupt(
            path,
            format!("a monolithicSparse image has one extent, not {}", descriptor.extents.len()),
        ));
    };
    if extent.kind != "SPARSE" {
        return Err(unsupported(path, format!("an extent of type {}", extent.kind)));
    }
    // Some programs round the header's capacity up to whole grains.
    let sectors = extent.sectors;
    let rounded = sectors.checked_next_multiple_of(header.grain);
    if sectors == 0 || (sectors != header.capacity && rounded != Some(header.capacity)) {
        return Err(corrupt(
            path,
            format!(
                "the header's capacity is {} sectors, the descriptor's extent {sectors}",
                header.capacity
            ),
        ));
    }
    Ok(sectors * SECTOR)
}

/// The grain directory, and the grain table read last.
struct GrainMap {
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
    fn read(image: &ImageFile, header: &Header) -> Result<GrainMap, Error> {
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

    /// Checks that every table and every grain lies in the file and is nobody else's.
    fn check(&self, image: &ImageFile, header: &Header, size: u64) -> Result<(), Error> {
        let path = &image.path;
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
                path,
                format!(
                    "the metadata at {:#x} and {:#x} overlaps",
                    pair[0].0 * SECTOR,
                    pair[1].0 * SECTOR
                ),
            ));
        }
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
            let after = regions.partition_point(|region| region.0 < sector + self.grain);
            if after > 0 && regions[after - 1].0 + regions[after - 1].1 > sector {
                return Err(corrupt(
                    path,
                    format!("grain {grain} at {:#x} overlaps the metadata", sector * SECTOR),
                ));
            }
            claims.claim(image, sector)?;
            next = grain + 1;
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
