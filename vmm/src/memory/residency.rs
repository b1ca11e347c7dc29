//! What the host's kernel knows of RAM's pages without touching them: never used, still a layer's, or holding something of its own.
//!
//! `/proc/self/maps` tells which parts are private mappings of files, `/proc/self/pagemap` of each page whether it is there
//! (bit 63), swapped out (62), and still the file's own (61). Where either cannot be read, every page counts as holding
//! something: slower, never wrong. See Linux, Documentation/admin-guide/mm/pagemap.rst.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::ram::{Part, Ram};
use super::{HOST_PAGE, PAGE};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// The state of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    /// Never touched, or given back: it would read as zero.
    Untouched,
    /// Not written since it was mapped from a file.
    OfFile,
    /// May hold anything.
    Held,
}

/// A way to ask for page states.
pub(super) struct Residency {
    pagemap: Option<File>,
    /// Host addresses mapped from files, sorted.
    files: Vec<Range<usize>>,
}

impl Residency {
    /// Looks at the mappings of `ram`.
    pub(super) fn of(ram: &Ram) -> Self {
        let mut pagemap = File::open("/proc/self/pagemap").ok();
        let mut files = Vec::new();
        for piece in ram.pieces().iter().filter(|piece| piece.mapping.file_offset().is_some()) {
            let range = piece.host..piece.host + (piece.pages * PAGE) as usize;
            match file_mappings(&range) {
                Some(found) => files.extend(found),
                None => pagemap = None,
            }
        }
        files.sort_by_key(|range| range.start);
        Self { pagemap, files }
    }

    /// Puts the state of each page of `part` into `states`. `entries` is scratch space.
    pub(super) fn look(&self, part: Part, entries: &mut Vec<u8>, states: &mut Vec<PageState>) {
        states.clear();
        states.resize(part.pages as usize, PageState::Held);
        entries.resize(part.pages as usize * 8, 0);
        let Some(pagemap) = &self.pagemap else { return };
        if pagemap.read_exact_at(entries, (part.host / HOST_PAGE * 8) as u64).is_err() {
            return;
        }
        let mut next = self.files.partition_point(|range| range.end <= part.host);
        for ((state, entry), host) in
            states.iter_mut().zip(entries.chunks_exact(8)).zip((part.host..).step_by(HOST_PAGE))
        {
            let mut bits = [0; 8];
            bits.copy_from_slice(entry);
            let bits = u64::from_le_bytes(bits);
            while self.files.get(next).is_some_and(|range| range.end <= host) {
                next += 1;
            }
            let in_file = self.files.get(next).is_some_and(|range| range.start <= host);
            let there = bits & (PRESENT | SWAPPED) != 0;
            *state = match (in_file, there) {
                (false, false) => PageState::Untouched,
                (true, false) => PageState::OfFile,
                (true, true) if bits & (OF_FILE | SWAPPED) == OF_FILE => PageState::OfFile,
                (_, true) => PageState::Held,
            };
        }
    }
}

/// Returns the parts of `range` that are mapped from files; `None` when the system does not tell.
fn file_mappings(range: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let maps = fs::read("/proc/self/maps").ok()?;
    let mut found: Vec<Range<usize>> = Vec::new();
    for line in maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (addresses, inode) = parse(line)?;
        let start = addresses.start.max(range.start);
        let end = addresses.end.min(range.end);
        if inode == 0 || start >= end {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => found.push(start..end),
        }
    }
    Some(found)
}

/// Takes a line apart: `start-end perms offset device inode path`.
fn parse(line: &[u8]) -> Option<(Range<usize>, u64)> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let addresses = std::str::from_utf8(fields.next()?).ok()?;
    let inode = std::str::from_utf8(fields.nth(3)?).ok()?.parse().ok()?;
    let (start, end) = addresses.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    Some((hex(start)?..hex(end)?, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mapping_table_are_understood() {
        let line = b"7f2a4c000000-7f2a4c021000 rw-p 00001000 fe:00 393232   /a b/c (deleted)";
        assert_eq!(parse(line), Some((0x7f2a_4c00_0000..0x7f2a_4c02_1000, 393_232)));
        assert_eq!(parse(b"1000-2000 rw-p 00000000 00:00 0 "), Some((0x1000..0x2000, 0)));
        assert_eq!(parse(b"1000-2000 rw-p"), None);
    }

    #[test]
    fn pages_of_anonymous_memory_are_untouched_until_written() {
        let memory = super::super::reserve(16 << 20).unwrap();
        let ram = Ram::of(&memory);
        let residency = Residency::of(&ram);
        let part = ram.parts(u64::MAX)[0];
        let mut states = Vec::new();
        residency.look(part, &mut Vec::new(), &mut states);
        assert!(states.iter().all(|state| *state == PageState::Untouched));
        vm_memory::Bytes::write_obj(&memory, 1u8, vm_memory::GuestAddress(9 << 20)).unwrap();
        residency.look(part, &mut Vec::new(), &mut states);
        assert_eq!(states[9 << 8], PageState::Held);
        assert_eq!(states[0], PageState::Untouched, "asking touches nothing");
    }
}
