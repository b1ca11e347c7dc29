//! The disk inside an OVA archive. The archive's own directory is enough to find it: the one
//! member that is a VMDK; the descriptor is not interpreted, and no file outside is opened.

use kvmbake_disk::Error;

use super::tar::members;
use crate::error::{corrupt, unsupported};
use crate::image::{OpenOptions, Opened};
use crate::mapped::ImageFile;
use crate::vmdk;

/// Returns whether the first block of a file is the header of an OVF descriptor in an archive.
pub(crate) fn looks_like(start: &[u8; 512]) -> bool {
    let end = start[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
    start[257..262] == *b"ustar" && start[..end].ends_with(b".ovf")
}

/// Opens the disk in an archive.
///
/// # Errors
/// Corrupt, truncated or unsupported, with what is wrong.
pub(crate) fn open(image: ImageFile) -> Result<Opened, Error> {
    let members = members(&image)?;
    if !members.first().is_some_and(|member| member.name.ends_with(".ovf")) {
        return Err(corrupt(&image.path, "it does not begin with an OVF descriptor"));
    }
    let mut disks = Vec::new();
    for member in &members {
        let mut magic = [0; 4];
        if member.len >= 512 {
            image.read(&mut magic, member.offset)?;
        }
        if magic == vmdk::MAGIC {
            disks.push(member);
        }
    }
    let [disk] = disks.as_slice() else {
        return Err(unsupported(&image.path, format!("an archive with {} disks", disks.len())));
    };
    let part = image.part(disk.offset, disk.len);
    let opened = vmdk::open(part, &OpenOptions::default())?;
    let has_manifest = members.iter().any(|member| member.name.ends_with(".mf"));
    Ok(opened
        .with_detail("descriptor", members[0].name.as_str())
        .with_detail("disk", disk.name.as_str())
        .with_detail("manifest", has_manifest))
}
