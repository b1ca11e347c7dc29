//! VMDK images whose descriptor is a file of its own and names the files with the data:
//! monolithicFlat, vmfs, twoGbMaxExtentSparse and twoGbMaxExtentFlat.
//!
//! Contract: each named file is opened only if the caller's options allow it, is a regular file,
//! and is not the descriptor itself.

use std::sync::Arc;

use kvmbake_disk::{Block, Error, named};

use super::descriptor::{self, Descriptor, Extent};
use super::{DESCRIPTOR_MAGIC, MAX_SECTORS, SECTOR, read};
use crate::detail::Detail;
use crate::error::{corrupt, truncated, unsupported};
use crate::image::{OpenOptions, Opened};
use crate::join::JoinedDisk;
use crate::mapped::{ImageFile, LinearDisk};

const MAX_DESCRIPTOR: u64 = 1 << 20;
/// More parts than a 2 TiB disk in files of 2 GB has.
const MAX_EXTENTS: usize = 2048;

/// Returns the names of the files that an image consists of besides its own.
pub(crate) fn named_extents(image: &ImageFile) -> Result<Vec<String>, Error> {
    let mut start = [0; DESCRIPTOR_MAGIC.len()];
    if image.len >= start.len() as u64 {
        image.read(&mut start, 0)?;
    }
    if start != DESCRIPTOR_MAGIC {
        return Ok(Vec::new());
    }
    let extents = read_descriptor(image)?.extents.into_iter();
    Ok(extents.filter(|extent| extent.kind != "ZERO").map(|extent| extent.name).collect())
}

fn read_descriptor(image: &ImageFile) -> Result<Descriptor, Error> {
    let path = &image.path;
    if image.len > MAX_DESCRIPTOR {
        return Err(unsupported(path, format!("a descriptor of {} bytes", image.len)));
    }
    let mut text = vec![0; image.len as usize];
    image.read(&mut text, 0)?;
    descriptor::decode(&text).map_err(|reason| corrupt(path, reason))
}

/// Opens the image that a descriptor file describes.
pub(super) fn open(image: ImageFile, options: &OpenOptions) -> Result<Opened, Error> {
    let path = &image.path;
    let descriptor = read_descriptor(&image)?;
    let known = ["monolithicFlat", "vmfs", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"];
    if !known.contains(&descriptor.create_type.as_str()) {
        return Err(unsupported(path, format!("create type {:?}", descriptor.create_type)));
    }
    if !descriptor.parent_content_id.eq_ignore_ascii_case("ffffffff") {
        return Err(unsupported(path, "it depends on a parent image"));
    }
    let extents = &descriptor.extents;
    if extents.is_empty() || extents.len() > MAX_EXTENTS {
        return Err(corrupt(path, format!("the descriptor has {} extents", extents.len())));
    }
    let sectors = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.sectors));
    if sectors.is_none_or(|sectors| sectors == 0 || sectors > MAX_SECTORS) {
        return Err(corrupt(path, "the descriptor's extents make up no possible size"));
    }
    let mut parts = Vec::new();
    let mut details = vec![
        ("variant", descriptor.create_type.clone().into()),
        ("cid", descriptor.content_id.clone().into()),
    ];
    let mut names = Vec::new();
    for extent in extents {
        let disk = open_extent(&image, extent, options)?;
        if disk.is_some() {
            names.push(extent.name.clone());
        }
        parts.push((extent.sectors * SECTOR, disk));
    }
    details.push(("extents", Detail::List(names)));
    Ok(Opened::new(JoinedDisk::new(path.clone(), parts), details))
}

fn open_extent(
    image: &ImageFile,
    extent: &Extent,
    options: &OpenOptions,
) -> Result<Option<Arc<dyn Block>>, Error> {
    let path = &image.path;
    let size = extent.sectors * SECTOR;
    let open = || {
        let real = named::resolve(path, "extent", &extent.name, &options.allow_backing)?;
        let file = ImageFile::open(&real)?;
        if file.is_same_file(image)? {
            return Err(corrupt(path, "it names itself as its extent"));
        }
        Ok(file)
    };
    Ok(match extent.kind.as_str() {
        "ZERO" => None,
        "FLAT" | "VMFS" => {
            let file = open()?;
            let start = extent.offset.saturating_mul(SECTOR);
            if start.checked_add(size).is_none_or(|end| end > file.len) {
                return Err(truncated(
                    &file.path,
                    format!(
                        "its extent of {size} bytes at {start:#x} ends beyond the file's {} bytes",
                        file.len
                    ),
                ));
            }
            Some(Arc::new(LinearDisk { image: file.part(start, size), size }))
        }
        "SPARSE" => Some(read::open_extent(open()?, extent.sectors)?),
        kind => return Err(unsupported(path, format!("an extent of type {kind:?}"))),
    })
}
