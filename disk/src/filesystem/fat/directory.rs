//! Directory entries: short names, and the long names in the entries before them.

const ENTRY: usize = 32;
const READ_ONLY_HIDDEN_SYSTEM_VOLUME: u8 = 0x0f;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// A file or directory.
pub(super) struct Entry {
    /// The long name, or the short one where there is none.
    pub name: String,
    short: String,
    pub is_directory: bool,
    pub first_cluster: u32,
    pub size: u32,
}

impl Entry {
    /// Returns whether the entry goes by `name`, regardless of case.
    pub(super) fn is_named(&self, name: &str) -> bool {
        let same = |own: &str| lower(own).eq(lower(name));
        same(&self.name) || same(&self.short)
    }
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// Returns the files and directories in a directory's bytes, without `.`, `..` and the label.
pub(super) fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut long = LongName::default();
    for raw in used(bytes) {
        if raw[11] & 0x3f == READ_ONLY_HIDDEN_SYSTEM_VOLUME {
            long.add(raw);
            continue;
        }
        let name = std::mem::take(&mut long).finish(raw);
        if raw[11] & VOLUME != 0 || raw[0] == b'.' {
            continue;
        }
        let short = short_name(raw);
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        entries.push(Entry {
            name: name.unwrap_or_else(|| short.clone()),
            short,
            is_directory: raw[11] & DIRECTORY != 0,
            first_cluster: u32::from(u16_at(20)) << 16 | u32::from(u16_at(26)),
            size: u32::from(u16_at(30)) << 16 | u32::from(u16_at(28)),
        });
    }
    entries
}

/// Returns the volume label among the root directory's entries.
pub(super) fn volume_label(root: &[u8]) -> Option<String> {
    let is_label =
        |raw: &&[u8]| raw[11] & VOLUME != 0 && raw[11] & 0x3f != READ_ONLY_HIDDEN_SYSTEM_VOLUME;
    padded(&used(root).find(is_label)?[..11])
}

/// Returns a name padded with spaces; `None` for an empty one and for the `NO NAME` placeholder.
pub(super) fn padded(bytes: &[u8]) -> Option<String> {
    let text = oem(bytes);
    let text = text.trim_end();
    (!text.is_empty() && text != "NO NAME").then(|| text.to_string())
}

/// Entries up to the end mark, deleted ones left out.
fn used(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks_exact(ENTRY).take_while(|raw| raw[0] != 0).filter(|raw| raw[0] != 0xe5)
}

/// Short names are in the machine's code page, of which only ASCII is certain.
fn oem(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { '\u{fffd}' }).collect()
}

/// An 8.3 name; two bits tell whether base and extension are shown in lower case.
fn short_name(raw: &[u8]) -> String {
    let mut name = raw[..11].to_vec();
    if name[0] == 0x05 {
        name[0] = 0xe5;
    }
    let part = |bytes: &[u8], lower: bool| {
        let text = oem(bytes);
        let text = text.trim_end();
        if lower { text.to_ascii_lowercase() } else { text.to_string() }
    };
    let base = part(&name[..8], raw[12] & 0x08 != 0);
    let extension = part(&name[8..], raw[12] & 0x10 != 0);
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// A long name as it is put together; its pieces come last first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The sequence number that must come next.
    expected: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        let sequence = raw[0];
        if sequence & 0x40 != 0 {
            *self = LongName { units: Vec::new(), expected: sequence & 0x3f, checksum: raw[13] };
        }
        let number = sequence & 0x3f;
        if number == 0 || number > 20 || number != self.expected || raw[13] != self.checksum {
            *self = LongName::default();
            return;
        }
        self.expected -= 1;
        let fields = raw[1..11].chunks_exact(2).chain(raw[14..26].chunks_exact(2));
        let fields = fields.chain(raw[28..32].chunks_exact(2));
        let mut piece: Vec<u16> =
            fields.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        piece.append(&mut self.units);
        self.units = piece;
    }

    /// Returns the name if its pieces are complete and belong to the short entry `raw`.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let checksum =
            raw[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.units.is_empty() || self.expected != 0 || checksum != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|&unit| unit == 0).unwrap_or(self.units.len());
        Some(String::from_utf16_lossy(&self.units[..end]))
    }
}
