//! The VMDK reader: images in one file, and the sparse extents of images in several, validated as
//! a whole before the first read.
//!
//! Files that a descriptor names are opened only where the caller allows it (`split.rs`); in the
//! one-file kinds the one extent is the file itself, whatever it is called.

use std::sync::Arc;

use kvmbake_disk::{Block, Error};

use super::descriptor::{self, Descriptor};
use super::stream::{AT_END, Marker};
use super::tables::{CompressedMap, GrainMap};
use super::{
    DESCRIPTOR_MAGIC, FLAG_COMPRESSED, FLAG_MARKERS, Header, SECTOR, TABLE_ENTRIES, split,
};
use crate::error::{corrupt, truncated, unsupported};
use crate::image::{OpenOptions, Opened};
use crate::mapped::{ImageFile, MappedDisk};

const MAX_DESCRIPTOR_SECTORS: u64 = 2048;
/// 32 TiB in grains of 64 KiB; bounds the grain directory in memory to 4 MiB.
const MAX_TABLES: u64 = 1 << 20;

/// Opens a VMDK image.
///
/// # Errors
/// Corrupt, truncated, unsupported, or naming other files, with what is wrong.
pub(crate) fn open(image: ImageFile, options: &OpenOptions) -> Result<Opened, Error> {
    let mut start = [0; DESCRIPTOR_MAGIC.len()];
    if image.len >= start.len() as u64 {
        image.read(&mut start, 0)?;
    }
    if start == DESCRIPTOR_MAGIC {
        return split::open(image, options);
    }
    let header = read_header(&image)?;
    let descriptor = read_descriptor(&image, &header)?;
    let size = check_descriptor(&image, &header, &descriptor)?;
    let len = image.len;
    let (disk, used) = open_grains(image, &header, size)?;
    let details = vec![
        ("variant", descriptor.create_type.into()),
        ("version", header.version.into()),
        ("grain size", (header.grain * SECTOR).into()),
        ("cid", descriptor.content_id.into()),
        ("overhead", header.overhead.saturating_mul(SECTOR).into()),
        ("redundant grain directory", (header.redundant_directory != 0).into()),
        ("bytes in grains", used.into()),
    ];
    let opened = Opened::of(disk, details);
    // The tables of compressed images lie among the grains.
    if header.flags & FLAG_COMPRESSED != 0 {
        return Ok(opened);
    }
    Ok(opened.accounting_for(header.overhead.saturating_mul(SECTOR).saturating_add(used), len))
}

/// Opens a sparse extent that belongs to a descriptor elsewhere, which says its size.
pub(super) fn open_extent(image: ImageFile, sectors: u64) -> Result<Arc<dyn Block>, Error> {
    let header = read_header(&image)?;
    check_capacity(&image, &header, sectors)?;
    Ok(open_grains(image, &header, sectors * SECTOR)?.0)
}

/// Opens the grains, plain or compressed; returns also how many bytes of the file they take.
fn open_grains(
    image: ImageFile,
    header: &Header,
    size: u64,
) -> Result<(Arc<dyn Block>, u64), Error> {
    let map = GrainMap::read(&image, header)?;
    if header.flags & FLAG_COMPRESSED != 0 {
        let map = CompressedMap::new(map, size);
        let used = map.check(&image, header)?;
        return Ok((Arc::new(MappedDisk { image, size, map }), used));
    }
    let used = map.check(&image, header, size)?;
    Ok((Arc::new(MappedDisk { image, size, map }), used))
}

/// Reads the header; of a streamed image the one at its end, which knows where the tables are.
fn read_header(image: &ImageFile) -> Result<Header, Error> {
    let decode = |at: u64, what: &str| {
        let bytes = image.read_array::<{ SECTOR as usize }>(at, what)?;
        Header::decode(&bytes).map_err(|reason| corrupt(&image.path, reason))
    };
    let header = decode(0, "the sparse extent header")?;
    check_header(image, &header)?;
    if header.directory != AT_END {
        return Ok(header);
    }
    // The footer's marker, the footer, the end-of-stream marker.
    let lost = || truncated(&image.path, "its end with the footer is missing");
    let at = image.len.checked_sub(3 * SECTOR).ok_or_else(lost)?;
    let marker = image.read_array::<16>(at, "the footer's marker")?;
    let kind = u32::from_le_bytes([marker[12], marker[13], marker[14], marker[15]]);
    if kind != Marker::Footer as u32 || marker[8..12] != [0; 4] {
        return Err(lost());
    }
    let footer = decode(at + SECTOR, "the footer").map_err(|_| lost())?;
    check_header(image, &footer)?;
    if (footer.capacity, footer.grain) != (header.capacity, header.grain)
        || footer.directory == AT_END
    {
        return Err(corrupt(&image.path, "the header and the footer contradict each other"));
    }
    Ok(footer)
}

fn check_header(image: &ImageFile, header: &Header) -> Result<(), Error> {
    let path = &image.path;
    let compressed = header.flags & FLAG_COMPRESSED != 0;
    let has_markers = header.flags & FLAG_MARKERS != 0;
    if compressed != has_markers || header.compression != u16::from(compressed) {
        return Err(unsupported(path, format!("compression algorithm {}", header.compression)));
    }
    if header.directory == AT_END && !compressed {
        return Err(corrupt(path, "it has no grain directory"));
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
    if !["monolithicSparse", "streamOptimized"].contains(&descriptor.create_type.as_str()) {
        return Err(unsupported(path, format!("create type {:?}", descriptor.create_type)));
    }
    if !descriptor.parent_content_id.eq_ignore_ascii_case("ffffffff") {
        return Err(unsupported(path, "it depends on a parent image"));
    }
    let [extent] = descriptor.extents.as_slice() else {
        return Err(corrupt(
            path,
            format!("an image in one file has one extent, not {}", descriptor.extents.len()),
        ));
    };
    if extent.kind != "SPARSE" {
        return Err(unsupported(path, format!("an extent of type {}", extent.kind)));
    }
    check_capacity(image, header, extent.sectors)?;
    Ok(extent.sectors * SECTOR)
}

/// Checks that the descriptor and the header agree on the size.
fn check_capacity(image: &ImageFile, header: &Header, sectors: u64) -> Result<(), Error> {
    // Some programs round the header's capacity up to whole grains.
    let rounded = sectors.checked_next_multiple_of(header.grain);
    if sectors == 0 || (sectors != header.capacity && rounded != Some(header.capacity)) {
        return Err(corrupt(
            &image.path,
            format!(
                "the header's capacity is {} sectors, the descriptor's extent {sectors}",
                header.capacity
            ),
        ));
    }
    Ok(())
}
