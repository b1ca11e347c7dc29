//! The VHDX reader: dynamic and fixed images, validated as a whole before the first read.
//!
//! The newer of the two headers counts, and either region table will do, whichever checksums are
//! right. A log that was left behind is replayed in memory first. Left out: children of other
//! images, which are refused.

use kvmbake_disk::Error;

use super::{
    BAT_REGION, FILE_PARAMETERS, FULLY_PRESENT, HAS_PARENT, HEADER_LEN, HEADERS, ITEM_IS_REQUIRED,
    LEAVE_BLOCKS_ALLOCATED, LOGICAL_SECTOR, MAGIC, MAX_SIZE, METADATA_REGION, MIB, PARENT_LOCATOR,
    PARTIALLY_PRESENT, PHYSICAL_SECTOR, REGION_TABLE_LEN, REGION_TABLES, REQUIRED_REGION,
    VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, chunk_ratio, entry_of, is_sealed, log, long, word,
};
use crate::encode::uuid_text;
use crate::error::{corrupt, truncated, unsupported};
use crate::image::Opened;
use crate::mapped::{Claims, ImageFile, MappedDisk, UnitMap};
use crate::table::{Order, TableReader};

/// The metadata table's length, and the most items that it may have.
const TABLE_LEN: usize = 64 << 10;
const MAX_ITEMS: u16 = 2047;

const UNCLOSED: &str = "its log must be replayed: its last user did not close it";
const REPLAYED: &str = "its last user did not close it: its log is replayed in memory";

/// Opens a VHDX image.
///
/// # Errors
/// Corrupt, truncated or unsupported, with what is wrong.
pub(crate) fn open(image: ImageFile) -> Result<Opened, Error> {
    let path = &image.path;
    if image.read_array::<8>(0, "the file type identifier")? != MAGIC {
        return Err(corrupt(path, "the file type identifier is missing"));
    }
    let header = newer_header(&image)?;
    let log_place = (long(&header, 72), u64::from(word(&header, 68)));
    let is_open = header[48..64] != [0; 16];
    let image = if is_open { log::replay(image, &header)? } else { image };
    let path = &image.path;
    let regions = Regions::read(&image)?;
    let metadata = Metadata::read(&image, regions.metadata)?;
    let sizes = metadata.check(&image)?;
    let places =
        [("the log", log_place), ("the metadata", regions.metadata), ("the BAT", regions.bat)];
    for (index, (name, (start, len))) in places.iter().enumerate() {
        if *start < MIB || start % MIB != 0 {
            return Err(corrupt(path, format!("{name} begins at {start:#x}")));
        }
        image.check_inside(*start, *len, name)?;
        if places[..index].iter().any(|(_, (at, size))| *start < at + size && *at < start + len) {
            return Err(corrupt(path, format!("{name} at {start:#x} overlaps another region")));
        }
    }
    let ratio = chunk_ratio(sizes.sector, sizes.block);
    let blocks = sizes.disk.div_ceil(sizes.block);
    let entries = entry_of(blocks - 1, ratio) + 1;
    if entries * 8 > regions.bat.1 {
        return Err(corrupt(
            path,
            format!("a BAT of {} bytes does not cover {} bytes", regions.bat.1, sizes.disk),
        ));
    }
    let map = BlockMap {
        table: TableReader::new(image.clone(), regions.bat.0, entries * 2, Order::Little),
        block: sizes.block,
        blocks,
        ratio,
    };
    let used = map.check(&image, &places.map(|place| place.1))?;
    let details = vec![
        ("variant", if sizes.fixed { "fixed" } else { "dynamic" }.into()),
        ("block size", sizes.block.into()),
        ("logical sector size", sizes.sector.into()),
        ("allocated blocks", (used / sizes.block).into()),
        ("uuid", uuid_text(sizes.id).into()),
    ];
    let len = image.len;
    let accounted = used + MIB + places.iter().map(|place| place.1.1).sum::<u64>();
    let opened = Opened::new(MappedDisk { image, size: sizes.disk, map }, details)
        .accounting_for(accounted, len);
    Ok(if is_open { opened.with_note(REPLAYED).with_problem(UNCLOSED.to_owned()) } else { opened })
}

/// Returns the newer of the two headers.
fn newer_header(image: &ImageFile) -> Result<[u8; HEADER_LEN], Error> {
    let mut best: Option<[u8; HEADER_LEN]> = None;
    for at in HEADERS {
        let header = image.read_array::<HEADER_LEN>(at, "the headers")?;
        let newer = best.as_ref().is_none_or(|best| long(&header, 8) > long(best, 8));
        if header.starts_with(b"head") && is_sealed(&header) && newer {
            best = Some(header);
        }
    }
    let path = &image.path;
    let header = best.ok_or_else(|| corrupt(path, "neither header has a right checksum"))?;
    let version = u16::from_le_bytes([header[66], header[67]]);
    if version != 1 {
        return Err(unsupported(path, format!("version {version}")));
    }
    Ok(header)
}

/// Where the regions that matter lie: offset and length.
struct Regions {
    metadata: (u64, u64),
    bat: (u64, u64),
}

impl Regions {
    fn read(image: &ImageFile) -> Result<Regions, Error> {
        let path = &image.path;
        let mut tables = Vec::new();
        for at in REGION_TABLES {
            let table = image.read_array::<REGION_TABLE_LEN>(at, "the region tables")?;
            if table.starts_with(b"regi") && is_sealed(&table) {
                tables.push(table);
            }
        }
        let table = tables
            .first()
            .ok_or_else(|| corrupt(path, "neither region table's checksum is right"))?;
        let count = word(table, 8) as usize;
        if count > usize::from(MAX_ITEMS) {
            return Err(corrupt(path, format!("the region table has {count} entries")));
        }
        let (mut metadata, mut bat) = (None, None);
        for entry in table[16..].chunks_exact(32).take(count) {
            let place = Some((long(entry, 16), u64::from(word(entry, 24))));
            let known = if entry[..16] == METADATA_REGION {
                &mut metadata
            } else if entry[..16] == BAT_REGION {
                &mut bat
            } else if word(entry, 28) & REQUIRED_REGION != 0 {
                return Err(unsupported(path, "a required region that is not known"));
            } else {
                continue;
            };
            if std::mem::replace(known, place).is_some() {
                return Err(corrupt(path, "a region is there twice"));
            }
        }
        match (metadata, bat) {
            (Some(metadata), Some(bat)) => Ok(Regions { metadata, bat }),
            _ => Err(corrupt(path, "the region table names no metadata or no BAT")),
        }
    }
}

/// The metadata items, at most 64 KiB of each.
#[derive(Default)]
struct Metadata {
    parameters: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    logical: Option<Vec<u8>>,
    physical: Option<Vec<u8>>,
}

/// What the metadata say.
struct Sizes {
    disk: u64,
    block: u64,
    sector: u64,
    fixed: bool,
    id: [u8; 16],
}

impl Metadata {
    fn read(image: &ImageFile, region: (u64, u64)) -> Result<Metadata, Error> {
        let path = &image.path;
        let table = image.read_array::<TABLE_LEN>(region.0, "the metadata table")?;
        let count = u16::from_le_bytes([table[10], table[11]]);
        if !table.starts_with(b"metadata") || count > MAX_ITEMS {
            return Err(corrupt(path, "the metadata table is missing"));
        }
        let mut metadata = Metadata::default();
        for entry in table[32..].chunks_exact(32).take(count.into()) {
            let guid: [u8; 16] = std::array::from_fn(|index| entry[index]);
            let item = match guid {
                FILE_PARAMETERS => &mut metadata.parameters,
                VIRTUAL_DISK_SIZE => &mut metadata.size,
                VIRTUAL_DISK_ID => &mut metadata.id,
                LOGICAL_SECTOR => &mut metadata.logical,
                PHYSICAL_SECTOR => &mut metadata.physical,
                PARENT_LOCATOR => return Err(unsupported(path, "it depends on a parent image")),
                _ if word(entry, 24) & ITEM_IS_REQUIRED != 0 => {
                    return Err(unsupported(path, "a required metadata item that is not known"));
                }
                _ => continue,
            };
            let (offset, len) = (u64::from(word(entry, 16)), u64::from(word(entry, 20)));
            if offset < TABLE_LEN as u64 || len > 64 || offset + len > region.1 {
                return Err(corrupt(
                    path,
                    format!("a metadata item of {len} bytes at {offset:#x}"),
                ));
            }
            image.check_inside(region.0, offset + len, "the metadata")?;
            let mut value = vec![0; len as usize];
            image.read(&mut value, region.0 + offset)?;
            *item = Some(value);
        }
        Ok(metadata)
    }

    fn check(&self, image: &ImageFile) -> Result<Sizes, Error> {
        fn get<const N: usize>(
            image: &ImageFile,
            item: &Option<Vec<u8>>,
            name: &str,
        ) -> Result<[u8; N], Error> {
            let value = item.as_deref().and_then(|value| value.first_chunk());
            value.copied().ok_or_else(|| corrupt(&image.path, format!("the {name} is missing")))
        }
        let path = &image.path;
        let parameters = get::<8>(image, &self.parameters, "block size")?;
        let (block, flags) = (u64::from(word(&parameters, 0)), word(&parameters, 4));
        let disk = u64::from_le_bytes(get(image, &self.size, "virtual disk size")?);
        let sector = u64::from(u32::from_le_bytes(get(image, &self.logical, "sector size")?));
        if flags & HAS_PARENT != 0 {
            return Err(unsupported(path, "it depends on a parent image"));
        }
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            return Err(corrupt(path, format!("blocks of {block} bytes")));
        }
        if sector != 512 && sector != 4096 {
            return Err(corrupt(path, format!("sectors of {sector} bytes")));
        }
        if disk == 0 || disk > MAX_SIZE || disk % sector != 0 {
            return Err(corrupt(path, format!("a disk of {disk} bytes")));
        }
        let fixed = flags & LEAVE_BLOCKS_ALLOCATED != 0;
        let id = get(image, &self.id, "disk's identifier")?;
        Ok(Sizes { disk, block, sector, fixed, id })
    }
}

struct BlockMap {
    /// The BAT as pairs of 32-bit words.
    table: TableReader,
    block: u64,
    blocks: u64,
    ratio: u64,
}

impl BlockMap {
    fn entry(&self, block: u64) -> Result<u64, Error> {
        let index = entry_of(block, self.ratio) * 2;
        Ok(u64::from(self.table.get(index)?) | u64::from(self.table.get(index + 1)?) << 32)
    }

    /// Checks that every block lies in the file, apart from `regions` and the other blocks;
    /// returns the bytes of all blocks.
    fn check(&self, image: &ImageFile, regions: &[(u64, u64)]) -> Result<u64, Error> {
        let path = &image.path;
        let mut claims = Claims::in_granules(image, MIB, self.block / MIB)?;
        let mut next = 0;
        while let Some(block) = self.next_used(next)? {
            let entry = self.entry(block)?;
            if entry as u32 & 7 == PARTIALLY_PRESENT {
                return Err(unsupported(path, format!("block {block} is partly in a parent")));
            }
            let place = (entry >> 20) * MIB;
            if place.checked_add(self.block).is_none_or(|end| end > image.len) {
                return Err(truncated(
                    path,
                    format!(
                        "block {block} is stored at {place:#x}, beyond the file's {} bytes",
                        image.len
                    ),
                ));
            }
            let overlaps =
                |(start, len): &(u64, u64)| place < start + len && *start < place + self.block;
            if place < MIB || regions.iter().any(overlaps) {
                return Err(corrupt(
                    path,
                    format!("block {block} at {place:#x} overlaps the metadata"),
                ));
            }
            claims.claim(image, place / MIB)?;
            next = block + 1;
        }
        Ok(claims.bytes())
    }

    /// Returns the first block from `block` on that has data.
    fn next_used(&self, block: u64) -> Result<Option<u64>, Error> {
        let mut block = block;
        while block < self.blocks {
            // Entries that are zero are skipped without looking at each.
            let index = entry_of(block, self.ratio) * 2;
            let Some((found, value)) = self.table.find(index, |word| word != 0)? else { break };
            let entry = found / 2;
            let (group, within) = (entry / (self.ratio + 1), entry % (self.ratio + 1));
            let is_bitmap = within == self.ratio;
            block = group * self.ratio + within;
            if is_bitmap {
                continue;
            }
            let state = if found % 2 == 0 { value } else { self.table.get(found - 1)? } & 7;
            if block < self.blocks && [FULLY_PRESENT, PARTIALLY_PRESENT].contains(&state) {
                return Ok(Some(block));
            }
            block += 1;
        }
        Ok(None)
    }
}

impl UnitMap for BlockMap {
    fn unit(&self) -> u64 {
        self.block
    }

    fn locate(&self, unit: u64) -> Result<Option<u64>, Error> {
        let entry = self.entry(unit)?;
        Ok((entry as u32 & 7 == FULLY_PRESENT).then_some((entry >> 20) * MIB))
    }

    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error> {
        self.next_used(unit)
    }
}
