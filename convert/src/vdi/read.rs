//! The VDI reader: dynamic and fixed images, validated as a whole before the first read.

use kvmbake_disk::Error;

use super::{DYNAMIC, FIXED, FREE, HEADER_LEN, Header, MAX_BLOCKS, ZERO};
use crate::error::{corrupt, truncated, unsupported};
use crate::image::Opened;
use crate::mapped::{Claims, ImageFile, MappedDisk, UnitMap};
use crate::table::{Order, TableReader};

/// Opens a VDI image.
///
/// # Errors
/// Corrupt, truncated or unsupported, with what is wrong.
pub(crate) fn open(image: ImageFile) -> Result<Opened, Error> {
    let header = Header::decode(&image.read_array::<HEADER_LEN>(0, "the header")?)
        .map_err(|reason| corrupt(&image.path, reason))?;
    check_header(&image, &header)?;
    let map = TableReader::new(
        image.clone(),
        u64::from(header.map_offset),
        header.disk_size.div_ceil(u64::from(header.block_size)),
        Order::Little,
    );
    let map = BlockMap {
        table: map,
        data: u64::from(header.data_offset),
        block: u64::from(header.block_size),
    };
    let used = check_map(&image, &map, header.disk_size)?;
    let details = vec![
        ("variant", if header.kind == FIXED { "fixed" } else { "dynamic" }.into()),
        ("block size", header.block_size.into()),
        ("blocks", header.blocks.into()),
        ("allocated blocks", header.allocated.into()),
        ("uuid", format!("{:032x}", u128::from_be_bytes(header.uuid)).into()),
    ];
    let len = image.len;
    let opened = Opened::new(MappedDisk { image, size: header.disk_size, map }, details)
        .accounting_for(u64::from(header.data_offset) + used, len);
    let found = used / u64::from(header.block_size);
    Ok(if found == u64::from(header.allocated) {
        opened
    } else {
        opened.with_problem(format!(
            "the header counts {} allocated blocks, the block map {found}",
            header.allocated
        ))
    })
}

fn check_header(image: &ImageFile, header: &Header) -> Result<(), Error> {
    let path = &image.path;
    if header.kind != DYNAMIC && header.kind != FIXED {
        return Err(unsupported(
            path,
            format!("image type {} (an undo or child image)", header.kind),
        ));
    }
    if header.link_uuid != [0; 16] || header.parent_uuid != [0; 16] {
        return Err(unsupported(path, "it depends on a parent image"));
    }
    let block = header.block_size;
    if !block.is_power_of_two() || !(1 << 20..=1 << 24).contains(&block) {
        return Err(unsupported(path, format!("blocks of {block} bytes")));
    }
    if header.block_extra != 0 {
        return Err(unsupported(path, format!("{} extra bytes a block", header.block_extra)));
    }
    let blocks = header.disk_size.div_ceil(u64::from(block));
    if header.disk_size == 0 || blocks > MAX_BLOCKS {
        return Err(unsupported(path, format!("a disk of {} bytes", header.disk_size)));
    }
    if blocks > u64::from(header.blocks) {
        return Err(corrupt(
            path,
            format!("{} blocks do not make up {} bytes", header.blocks, header.disk_size),
        ));
    }
    let (map, data) = (u64::from(header.map_offset), u64::from(header.data_offset));
    let map_len = u64::from(header.blocks) * 4;
    if map < HEADER_LEN as u64 || data % 512 != 0 || map + map_len > data {
        return Err(corrupt(
            path,
            format!("the block map ({map_len} bytes at {map:#x}) and the data ({data:#x}) collide"),
        ));
    }
    image.check_inside(map, map_len, "the block map")
}

/// Checks that every allocated block lies in the file and is nobody else's; returns the bytes of
/// all blocks.
fn check_map(image: &ImageFile, map: &BlockMap, size: u64) -> Result<u64, Error> {
    let mut claims = Claims::new(image, map.block / 512)?;
    let mut next = 0;
    while let Some((index, entry)) = map.table.find(next, is_allocated)? {
        let place = map.data + u64::from(entry) * map.block;
        let used = map.block.min(size - index * map.block);
        if place.checked_add(used).is_none_or(|end| end > image.len) {
            return Err(truncated(
                &image.path,
                format!(
                    "block {index} is stored at {place:#x}, beyond the file's {} bytes",
                    image.len
                ),
            ));
        }
        claims.claim(image, place / 512)?;
        next = index + 1;
    }
    Ok(claims.bytes())
}

fn is_allocated(entry: u32) -> bool {
    entry != FREE && entry != ZERO
}

struct BlockMap {
    table: TableReader,
    data: u64,
    block: u64,
}

impl UnitMap for BlockMap {
    fn unit(&self) -> u64 {
        self.block
    }

    fn locate(&self, unit: u64) -> Result<Option<u64>, Error> {
        let entry = self.table.get(unit)?;
        Ok(is_allocated(entry).then(|| self.data + u64::from(entry) * self.block))
    }

    fn next_allocated(&self, unit: u64) -> Result<Option<u64>, Error> {
        Ok(self.table.find(unit, is_allocated)?.map(|(index, _)| index))
    }
}
