//! The persistent bitmaps of an image, as far as there is something to tell about them: they are listed,
//! and not copied.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, sections "Bitmaps extension" and "Bitmap directory".

use crate::mapped::ImageFile;

/// The least bytes of an entry.
const ENTRY: usize = 24;
/// The longest name.
const MAX_NAME: usize = 1023;
/// How many are listed, and how much of the directory is read for it.
const LISTED: u32 = 16;
const DIRECTORY: u64 = 64 << 10;

const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const DIRTY_TRACKING: u8 = 1;

/// The header extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) count: u32,
    pub(super) directory: u64,
    pub(super) directory_len: u64,
    /// Whether the header says that the extension agrees with the image; a writer that does not know
    /// bitmaps clears it.
    pub(super) is_current: bool,
}

/// Says how many bitmaps there are, and what they are called.
pub(super) fn list(image: &ImageFile, extension: &Extension) -> String {
    let count = extension.count;
    if !extension.is_current {
        return format!("{count}, all stale");
    }
    let Some(names) = names(image, extension) else {
        return format!("{count}, whose directory is damaged");
    };
    let more = count.saturating_sub(LISTED);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    format!("{count}: {}{rest}", names.join(", "))
}

fn names(image: &ImageFile, extension: &Extension) -> Option<Vec<String>> {
    let mut bytes = vec![0; extension.directory_len.min(DIRECTORY) as usize];
    let end = extension.directory.checked_add(bytes.len() as u64)?;
    if end > image.len {
        return None;
    }
    image.read(&mut bytes, extension.directory).ok()?;
    let mut names = Vec::new();
    let mut rest = bytes.as_slice();
    for _ in 0..extension.count.min(LISTED) {
        let (name, len) = entry(rest)?;
        names.push(name);
        rest = rest.get(len..).unwrap_or_default();
    }
    Some(names)
}

/// Returns what there is to say of the entry that the bytes begin with, and its length.
fn entry(bytes: &[u8]) -> Option<(String, usize)> {
    let fixed = bytes.get(..ENTRY)?;
    let word =
        |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let (flags, kind, granularity) = (word(12), fixed[16], fixed[17]);
    let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
    let start = ENTRY.checked_add(word(20) as usize)?;
    let end = start.checked_add(name_len)?;
    let name = bytes.get(start..end)?;
    if name.is_empty() || name_len > MAX_NAME || !(9..=31).contains(&granularity) {
        return None;
    }
    let state = match flags {
        _ if kind != DIRTY_TRACKING => ", of an unknown type",
        _ if flags & IN_USE != 0 => ", inconsistent",
        _ if flags & AUTO == 0 => ", disabled",
        _ => "",
    };
    let name = String::from_utf8_lossy(name).escape_debug().to_string();
    let text = format!("{name} (granularity {}{state})", 1u32 << granularity);
    Some((text, end.next_multiple_of(8)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;

    /// An entry as the specification has it.
    fn sound(flags: u32, name: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 12];
        entry.extend(flags.to_be_bytes());
        entry.extend([1, 16]);
        entry.extend((name.len() as u16).to_be_bytes());
        entry.extend([0; 4]);
        entry.extend(name);
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }

    fn listed(directory: &[u8], count: u32, directory_len: u64, is_current: bool) -> String {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(directory, 512).unwrap();
        let image = ImageFile::of(file, Path::new("image")).unwrap();
        list(&image, &Extension { count, directory: 512, directory_len, is_current })
    }

    #[test]
    fn bitmaps_are_listed_and_hostile_ones_refused() {
        let directory = [sound(AUTO, b"daily"), sound(IN_USE, b"lost\n"), sound(0, b"x")].concat();
        let len = directory.len() as u64;
        assert_eq!(
            listed(&directory, 3, len, true),
            "3: daily (granularity 65536), lost\\n (granularity 65536, inconsistent), \
             x (granularity 65536, disabled)"
        );
        assert_eq!(listed(&directory, 3, len, false), "3, all stale");
        for (count, len) in [(4, len), (3, len - 9), (1, u64::MAX), (1, len + 1), (1, 0)] {
            let text = listed(&directory, count, len, true);
            assert_eq!(text, format!("{count}, whose directory is damaged"));
        }
        let mut wrong = directory.clone();
        wrong[20..24].fill(0xff);
        assert!(listed(&wrong, 1, len, true).contains("damaged"));
        let many = sound(AUTO, b"a").repeat(20);
        let text = listed(&many, 20, many.len() as u64, true);
        assert!(text.ends_with("and 4 more"), "{text}");
    }
}
