//! The VHD reader: dynamic and fixed images, validated as a whole before the first read.
//!
//! The footer at the end of the file counts, and a dynamic image's copy at its beginning must
//! agree with it. A sector whose bit is clear in its block's bitmap reads as zeroes, as the
//! specification says.

use std::sync::{Mutex, PoisonError};

use kvmbake_disk::Error;

use super::{
    DYNAMIC, DynamicHeader, FIXED, FOOTER_LEN, FREE, Footer, HEADER_LEN, MAX_SIZE, SECTOR,
};
use crate::encode::round_up;
use crate::error::{corrupt, truncated, unsupported};
use crate::image::Opened;
use crate::mapped::{Claims, ImageFile, LinearDisk, MappedDisk, UnitMap};
use crate::table::{Order, TableReader};

/// Opens a VHD image.
///
/// # Errors
/// Corrupt, truncated or unsupported, with what is wrong.
pub(crate) fn open(image: ImageFile) -> Result<Opened, Error> {
    let end = image.len.saturating_sub(FOOTER_LEN as u64);
    let footer = Footer::decode(&image.read_array(end, "the footer")?)
        .map_err(|reason| corrupt(&image.path, format!("at the end of the file {reason}")))?;
    let size = footer.virtual_size();
    if size == 0 || size > MAX_SIZE || size % SECTOR != 0 {
        return Err(unsupported(&image.path, format!("a disk of {size} bytes")));
    }
    let mut details = vec![
        ("variant", if footer.kind == FIXED { "fixed" } else { "dynamic" }.into()),
        ("creator", String::from_utf8_lossy(&footer.creator).trim().into()),
        (
            "geometry",
            format!("{}/{}/{}", footer.geometry.0, footer.geometry.1, footer.geometry.2).into(),
        ),
        ("uuid", format!("{:032x}", u128::from_be_bytes(footer.uuid)).into()),
    ];
    match footer.kind {
        FIXED if size > end => Err(truncated(
            &image.path,
            format!("{size} bytes of disk do not fit the file's {} bytes", image.len),
        )),
        FIXED => Ok(Opened::new(LinearDisk { image, size }, details)),
        DYNAMIC => {
            let (map, used) = open_dynamic(&image, &footer, size)?;
            details.push(("block size", map.block.into()));
            let len = image.len;
            Ok(Opened::new(MappedDisk { image, size, map }, details).accounting_for(used, len))
        }
        kind => Err(unsupported(&image.path, format!("disk type {kind} (a child of a parent)"))),
    }
}

/// Returns the map of blocks, and the bytes of the file that are accounted for.
fn open_dynamic(image: &ImageFile, footer: &Footer, size: u64) -> Result<(BlockMap, u64), Error> {
    let path = &image.path;
    let copy = Footer::decode(&image.read_array(0, "the footer's copy")?)
        .map_err(|reason| corrupt(path, format!("at the beginning of the file {reason}")))?;
    if copy != *footer {
        return Err(corrupt(path, "the footer and its copy at the beginning differ"));
    }
    let header = image.read_array::<HEADER_LEN>(footer.data_offset, "the dynamic header")?;
    let header = DynamicHeader::decode(&header).map_err(|reason| corrupt(path, reason))?;
    let block = u64::from(header.block_size);
    if !block.is_power_of_two() || !(64 << 10..=16 << 20).contains(&block) {
        return Err(unsupported(path, format!("blocks of {block} bytes")));
    }
    let blocks = size.div_ceil(block);
    if u64::from(header.entries) < blocks {
        return Err(corrupt(
            path,
            format!("{} blocks do not make up {size} bytes", header.entries),
        ));
    }
    let table_len = u64::from(header.entries) * 4;
    image.check_inside(header.table_offset, table_len, "the block allocation table")?;
    let table = TableReader::new(image.clone(), header.table_offset, blocks, Order::Big);
    let bitmap = round_up(block / SECTOR / 8, SECTOR);
    let map = BlockMap { table, block, bitmap, cached: Mutex::default() };
    let metadata = [
        (0, FOOTER_LEN as u64),
        (footer.data_offset, HEADER_LEN as u64),
        (header.table_offset, table_len),
    ];
    let used = check_table(image, &map, &metadata)?;
    // The footer follows, and the table's last sector may be filled up.
    let headers: u64 = metadata.iter().map(|(_, len)| round_up(*len, SECTOR)).sum();
    Ok((map, used + headers + FOOTER_LEN as u64))
}

/// Checks that every allocated block lies in the file before the footer, apart from `metadata`
/// and from the other blocks; returns the bytes of all blocks.
fn check_table(image: &ImageFile, map: &BlockMap, metadata: &[(u64, u64)]) -> Result<u64, Error> {
    let path = &image.path;
    for (index, (start, len)) in metadata.iter().enumerate() {
        if metadata[..index].iter().any(|other| *start < other.0 + other.1 && other.0 < start + len)
        {
            return Err(corrupt(path, format!("the headers overlap at {start:#x}")));
        }
    }
    let whole = map.bitmap + map.block;
    let mut claims = Claims::new(image, whole / SECTOR)?;
    let mut next = 0;
    while let Some((index, entry)) = map.table.find(next, is_allocated)? {
        let place = u64::from(entry) * SECTOR;
        if place + whole > image.len - FOOTER_LEN as u64 {
            return Err(truncated(
                path,
                format!(
                    "block {index} is stored at {place:#x}, beyond the file's {} bytes",
                    image.len
                ),
            ));
        }
        if metadata.iter().any(|(start, len)| place < start + len && *start < place + whole) {
            return Err(corrupt(path, format!("block {index} at {place:#x} overlaps the headers")));
        }
        claims.claim(image, u64::from(entry))?;
        next = index + 1;
    }
    Ok(claims.bytes())
}

fn is_allocated(entry: u32) -> bool {
    entry != FREE
}

struct BlockMap {
    table: TableReader,
    block: u64,
    bitmap: u64,
    cached: Mutex<Bitmap>,
}

/// The bitmap of the block read last.
#[derive(Default)]
struct Bitmap {
    place: u64,
    bits: Vec<u8>,
    full: bool,
}

impl BlockMap {
    /// Zeroes the sectors of `buf` that the bitmap at `place` says were never written.
    fn mask(
        &self,
        image: &ImageFile,
        place: u64,
        within: u64,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        // Whatever a panic elsewhere left, `place` is set only after the bits were read.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.place != place || cached.bits.is_empty() {
            let mut bits = std::mem::take(&mut cached.bits);
            bits.resize(self.bitmap as usize, 0);
            image.read(&mut bits, place)?;
            let used = (self.block / SECTOR / 8) as usize;
            let full = bits[..used].iter().all(|byte| *byte == 0xff);
            *cached = Bitmap { place, bits, full };
        }
        if cached.full {
            return Ok(());
        }
        let mut at = within;
        let mut rest = buf;
        while !rest.is_empty() {
            let len = (SECTOR - at % SECTOR).min(rest.len() as u64) as usize;
            let (part, tail) = rest.split_at_mut(len);
            let sector = (at / SECTOR) as usize;
            if cached.bits[sector / 8] & (0x80 >> (sector % 8)) == 0 {
                part.fill(0);
            }
            at += len as u64;
            rest = tail;
        }
        Ok(())
    }
}

impl UnitMap for BlockMap {
    fn unit(&self) -> u64 {
        self.block
    }

    fn locate(&self, unit: u64) -> Result<Option<u64>, Error> {
        let entry = self.table.get(unit)?;
        Ok(is_allocated(entry).then(|| u64::from(entry) * SECTOR + self.bitmap))
    }

    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error> {
        Ok(self.table.find(unit, is_allocated)?.map(|(index, _)| index))
    }

    fn read(&self, image: &ImageFile, unit: u64, within: u64, buf: &mut [u8]) -> Result<(), Error> {
        let Some(data) = self.locate(unit)? else {
            buf.fill(0);
            return Ok(());
        };
        image.read(buf, data + within)?;
        self.mask(image, data - self.bitmap, within, buf)
    }
}
