//! A kernel's ELF file as a stream: its segments go where they belong while the rest is still
//! being decompressed, so that the file is never held in memory as a whole.
//!
//! Reads what a linked x86-64 kernel needs: ELF64, little-endian, `ET_EXEC`, program headers close
//! to the file's start (System V ABI, chapters 4 and 5). Sections, symbols and the relocations
//! behind the last segment pass by unread.

use super::payload::{PayloadError, u16_at, u32_at, u64_at};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Where a file's program headers must end; linkers put them right behind the file's header.
const HEAD_LIMIT: u64 = 64 << 10;
const PT_LOAD: u32 = 1;

/// A range of the file that belongs into memory.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    len: u64,
    address: u64,
}

/// What a whole file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The entry point's physical address.
    pub entry: u64,
    /// The first physical address behind the kernel, its zeroed data included.
    pub end: u64,
}

/// Takes an ELF file in pieces and hands the bytes of its segments to `place`, each with its
/// physical address.
pub struct ElfStream<F> {
    place: F,
    /// The file's start, until the program headers are complete.
    head: Vec<u8>,
    segments: Vec<Segment>,
    loaded: Option<Loaded>,
    position: u64,
}

impl<F: FnMut(u64, &[u8]) -> Result<(), PayloadError>> ElfStream<F> {
    /// Starts at the file's first byte.
    pub fn new(place: F) -> ElfStream<F> {
        ElfStream { place, head: Vec::new(), segments: Vec::new(), loaded: None, position: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The file is no kernel that can be entered, or `place` refuses bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), PayloadError> {
        if self.loaded.is_some() {
            return self.deliver(bytes);
        }
        self.head.extend_from_slice(bytes);
        let Some((loaded, segments)) = parse(&self.head)? else { return Ok(()) };
        (self.loaded, self.segments) = (Some(loaded), segments);
        let head = std::mem::take(&mut self.head);
        self.deliver(&head)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// It ended before its headers or before the end of a segment.
    pub fn finish(self) -> Result<Loaded, PayloadError> {
        let loaded = self.loaded.ok_or_else(|| {
            let bytes = self.head.len();
            PayloadError::Damaged(format!(
                "an ELF file of {bytes:#x} bytes ends within its headers"
            ))
        })?;
        for (index, segment) in self.segments.iter().enumerate() {
            if segment.offset + segment.len > self.position {
                return Err(PayloadError::Damaged(format!(
                    "segment {index} has {:#x} bytes at {:#x} in an ELF file of {:#x}",
                    segment.len, segment.offset, self.position
                )));
            }
        }
        Ok(loaded)
    }

    fn deliver(&mut self, bytes: &[u8]) -> Result<(), PayloadError> {
        let (start, end) = (self.position, self.position + bytes.len() as u64);
        for segment in &self.segments {
            let from = segment.offset.max(start);
            let to = (segment.offset + segment.len).min(end);
            if from < to {
                let piece = &bytes[(from - start) as usize..(to - start) as usize];
                (self.place)(segment.address + (from - segment.offset), piece)?;
            }
        }
        self.position = end;
        Ok(())
    }
}

/// Reads the headers at a file's start; `None` when more of it is needed.
fn parse(head: &[u8]) -> Result<Option<(Loaded, Vec<Segment>)>, PayloadError> {
    if !head.starts_with(&b"\x7fELF"[..head.len().min(4)]) {
        return Err(PayloadError::Damaged("the payload is no ELF file".into()));
    }
    if head.len() < HEADER {
        return Ok(None);
    }
    let unsupported = |what: &str| Err(PayloadError::Unsupported(what.into()));
    let machine = u16_at(head, 0x12);
    if head[4] != 2 {
        return unsupported("a 32-bit ELF file");
    }
    if head[5] != 1 || machine != 62 {
        return unsupported(&format!("an ELF file for machine {machine}, not x86-64 (62)"));
    }
    match u16_at(head, 0x10) {
        2 => {}
        1 => return unsupported("a relocatable object, not a linked kernel"),
        3 => return unsupported("a position-independent ELF file, not a linked kernel"),
        other => return unsupported(&format!("an ELF file of type {other}, not an executable")),
    }
    let table = u64_at(head, 0x20);
    let (size, count) = (usize::from(u16_at(head, 0x36)), usize::from(u16_at(head, 0x38)));
    let table_end = table.checked_add((size * count) as u64);
    let Some(table_end) =
        table_end.filter(|end| size >= PROGRAM_HEADER && count > 0 && *end <= HEAD_LIMIT)
    else {
        let message =
            format!("{count} program headers of {size} bytes at {table:#x} in an ELF file");
        return Err(PayloadError::Damaged(message));
    };
    if (head.len() as u64) < table_end {
        return Ok(None);
    }
    let mut loaded = Loaded { entry: u64_at(head, 0x18), end: 0 };
    let mut segments = Vec::new();
    for index in 0..count {
        let header = &head[table as usize + index * size..][..PROGRAM_HEADER];
        if u32_at(header, 0) != PT_LOAD {
            continue;
        }
        let segment = Segment {
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            len: u64_at(header, 32),
        };
        let memory = u64_at(header, 40).max(segment.len);
        let ends = segment.offset.checked_add(segment.len).zip(segment.address.checked_add(memory));
        let Some((_, end)) = ends else {
            return Err(PayloadError::Damaged(format!("segment {index} wraps around")));
        };
        loaded.end = loaded.end.max(end);
        segments.push(segment);
    }
    if segments.is_empty() {
        return Err(PayloadError::Damaged("the ELF file has nothing to load".into()));
    }
    Ok(Some((loaded, segments)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::fixture::vmlinux;

    type Pieces = Vec<(u64, Vec<u8>)>;

    fn load(file: &[u8], piece: usize) -> Result<(Loaded, Pieces), PayloadError> {
        let mut placed = Pieces::new();
        let mut stream = ElfStream::new(|address, bytes: &[u8]| {
            placed.push((address, bytes.to_vec()));
            Ok(())
        });
        for bytes in file.chunks(piece) {
            stream.take(bytes)?;
        }
        let loaded = stream.finish()?;
        Ok((loaded, placed))
    }

    #[test]
    fn segments_are_placed_alike_however_the_stream_is_cut() {
        let file = vmlinux(0x3000);
        let header = &file[64..];
        let (offset, address, len) = (u64_at(header, 8), u64_at(header, 24), u64_at(header, 32));
        for piece in [1, 7, 64, 1000, file.len()] {
            let (loaded, placed) = load(&file, piece).unwrap();
            assert_eq!(loaded.entry, u64_at(&file, 0x18));
            let bytes: Vec<u8> = placed.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            assert!(bytes == file[offset as usize..(offset + len) as usize], "pieces of {piece}");
            assert_eq!(placed[0].0, address);
            assert!(placed.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 == pair[1].0));
        }
    }

    #[test]
    fn a_file_that_ends_early_is_refused() {
        let file = vmlinux(0x3000);
        for len in [3, 63, 100, file.len() - 0x800] {
            assert!(load(&file[..len], 512).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_segment_that_wraps_is_refused() {
        let mut file = vmlinux(0x3000);
        file[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(load(&file, 4096).is_err());
    }
}
