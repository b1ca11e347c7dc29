//! Archive members as POSIX ustar lays them out: a header of one block, then the bytes, filled up
//! to whole blocks.

use kvmbake_disk::Error;

use crate::error::{corrupt, unsupported};
use crate::mapped::ImageFile;

/// Everything in an archive is made of these.
pub(super) const BLOCK: u64 = 512;
/// The largest size that eleven octal digits express.
const MAX_OCTAL: u64 = (1 << 33) - 1;
/// More members than any appliance has.
const MAX_MEMBERS: usize = 4096;

/// Returns a regular file's header. Sizes of 8 GiB and more, which ustar has no digits for, are
/// written in base 256, as GNU tar, VirtualBox and VMware read them.
pub(super) fn header(name: &str, size: u64, time: u64) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, format!("{:011o}\0", time.min(MAX_OCTAL)).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    let sum = checksum(&bytes);
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

/// Returns the sum of the header's bytes, its own field taken as blanks.
fn checksum(header: &[u8]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..])
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Where its bytes begin.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Returns the regular files of an archive, in order.
pub(super) fn members(image: &ImageFile) -> Result<Vec<Member>, Error> {
    let path = &image.path;
    let mut members = Vec::new();
    let mut at = 0;
    for _ in 0..MAX_MEMBERS {
        if at == image.len {
            return Ok(members);
        }
        let header = image.read_array::<{ BLOCK as usize }>(at, "an archive member")?;
        if header == [0; BLOCK as usize] {
            return Ok(members);
        }
        let stated = octal(&header[148..156]);
        if stated != Some(u64::from(checksum(&header))) {
            return Err(corrupt(path, format!("the member's header at {at:#x} has a wrong sum")));
        }
        let len = if header[124] & 0x80 != 0 {
            let mut size = [0; 8];
            size.copy_from_slice(&header[128..136]);
            Some(u64::from_be_bytes(size))
        } else {
            octal(&header[124..136])
        };
        let len = len.ok_or_else(|| corrupt(path, format!("the member at {at:#x} has no size")))?;
        let offset = at + BLOCK;
        image.check_inside(offset, len, "an archive member")?;
        match header[156] {
            b'0' | 0 => members.push(Member { name: name(&header), offset, len }),
            b'5' => {}
            // Extended headers may state another name, time or owner, but not another size.
            b'x' | b'g' => refuse_size(image, offset, len)?,
            kind => {
                let kind = char::from(kind).escape_default();
                return Err(unsupported(path, format!("a member of type '{kind}' at {at:#x}")));
            }
        }
        // A member at the very end may lack its filling.
        at = (offset + len).next_multiple_of(BLOCK).min(image.len);
    }
    Err(unsupported(path, format!("an archive of more than {MAX_MEMBERS} members")))
}

fn refuse_size(image: &ImageFile, offset: u64, len: u64) -> Result<(), Error> {
    if len > 64 << 10 {
        return Err(unsupported(&image.path, format!("an extended header of {len} bytes")));
    }
    let mut text = vec![0; len as usize];
    image.read(&mut text, offset)?;
    if text.windows(6).any(|word| word == b" size=") {
        return Err(unsupported(&image.path, "a member whose size is in an extended header"));
    }
    Ok(())
}

/// Returns a member's name: the prefix field, if there is one, and the name field.
fn name(header: &[u8; BLOCK as usize]) -> String {
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let prefix =
        if header[257..263] == *b"ustar\0" { text(&header[345..500]) } else { String::new() };
    let name = text(&header[..100]);
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// Returns the number in a field of octal digits, blanks around them.
fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok()?;
    u64::from_str_radix(text.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_sizes_are_written_in_base_256_and_read_back() {
        for size in [0, 5, MAX_OCTAL, MAX_OCTAL + 1, 3 << 40] {
            let bytes = header("disk.vmdk", size, 0);
            assert_eq!(octal(&bytes[148..156]), Some(u64::from(checksum(&bytes))));
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
            file.set_len(BLOCK + size.next_multiple_of(BLOCK) + 1024).unwrap();
            let image = ImageFile::of(file, "an.ova".as_ref()).unwrap();
            let found = members(&image).unwrap();
            assert_eq!(found, [Member { name: "disk.vmdk".into(), offset: BLOCK, len: size }]);
        }
    }
}
