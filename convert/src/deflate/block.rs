//! A block's items and how they are written: by codes of their own, by the fixed ones, or stored.

use super::huffman::{Code, LIMIT, codes, lengths};
use super::matches::{Match, SHORTEST};

/// Items of a block; more do not pay for codes that suit them less.
const ITEMS: usize = 10 << 10;
/// Bytes of a stored block (RFC 1951, section 3.2.4).
const STORED: usize = 0xffff;
const LITERALS: usize = 286;
const DISTANCES: usize = 30;
const END_OF_BLOCK: usize = 256;
/// The order of the code lengths' own lengths, and the longest of these (RFC 1951, section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
const LIMIT_OF_LENGTHS: usize = 7;

/// What the next block says, and how often it uses which symbol.
pub(super) struct Block {
    /// A byte, or a match: its length in the lower 9 bits, its distance above.
    items: Vec<u32>,
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
    /// Bits beside the symbols.
    extra: usize,
    /// Where the block's bytes begin.
    start: usize,
    fixed: Codes,
}

/// A length or distance: its symbol, and what follows that.
struct Class {
    symbol: usize,
    extra: u32,
    extra_len: u32,
}

impl Class {
    /// Classes double in size after each `1 << bits` of them (RFC 1951, section 3.2.5).
    fn of(value: u32, bits: u32) -> Class {
        let extra_len = value.checked_ilog2().unwrap_or(0).saturating_sub(bits);
        let symbol = (extra_len << bits) + (value >> extra_len);
        Class { symbol: symbol as usize, extra: value & ((1 << extra_len) - 1), extra_len }
    }

    fn of_length(len: usize) -> Class {
        // The longest one has a symbol of its own.
        let class = match len {
            258 => Class { symbol: 28, extra: 0, extra_len: 0 },
            _ => Class::of((len - SHORTEST) as u32, 2),
        };
        Class { symbol: END_OF_BLOCK + 1 + class.symbol, ..class }
    }

    fn of_distance(distance: usize) -> Class {
        Class::of(distance as u32 - 1, 1)
    }
}

impl Block {
    pub(super) fn new() -> Block {
        Block {
            items: Vec::with_capacity(ITEMS),
            literals: [0; LITERALS],
            distances: [0; DISTANCES],
            extra: 0,
            start: 0,
            fixed: Codes::fixed(),
        }
    }

    /// Begins a block at a byte of the unit's.
    pub(super) fn begin(&mut self, start: usize) {
        self.items.clear();
        self.literals.fill(0);
        self.distances.fill(0);
        self.extra = 0;
        self.start = start;
    }

    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= ITEMS
    }

    #[inline]
    pub(super) fn literal(&mut self, byte: u8) {
        self.items.push(u32::from(byte));
        self.literals[usize::from(byte)] += 1;
    }

    #[inline]
    pub(super) fn copy(&mut self, found: Match) {
        self.items.push((found.distance << 9 | found.len) as u32);
        let (length, distance) = (Class::of_length(found.len), Class::of_distance(found.distance));
        self.literals[length.symbol] += 1;
        self.distances[distance.symbol] += 1;
        self.extra += (length.extra_len + distance.extra_len) as usize;
    }

    /// Writes the block, which says the bytes up to the end of `input`, in the way that takes the fewest bits,
    /// and begins the next one. Returns `None` where it does not fit.
    pub(super) fn write(&mut self, input: &[u8], writer: &mut Writer, last: bool) -> Option<()> {
        let bytes = &input[self.start..];
        self.literals[END_OF_BLOCK] = 1;
        let own = Codes::for_counts(&self.literals, &self.distances);
        let header = Header::of(&own);

        let own_len = header.len() + self.len_by(&own);
        let fixed_len = self.len_by(&self.fixed);
        let stored_len = stored_len(bytes.len(), writer.count);
        let len = own_len.min(fixed_len).min(stored_len);
        // With three bits of the block's own.
        if len + 3 > writer.room() {
            return None;
        }
        if len == stored_len {
            write_stored(bytes, writer, last);
        } else if len == fixed_len {
            writer.put(u64::from(last) | 1 << 1, 3);
            self.write_items(&self.fixed, writer);
        } else {
            writer.put(u64::from(last) | 2 << 1, 3);
            header.write(writer);
            self.write_items(&own, writer);
        }
        self.begin(input.len());
        Some(())
    }

    /// Returns how many bits the items take.
    fn len_by(&self, codes: &Codes) -> usize {
        let of = |counts: &[u32], codes: &[Code]| -> usize {
            counts
                .iter()
                .zip(codes)
                .map(|(&count, code)| count as usize * usize::from(code.len))
                .sum()
        };
        of(&self.literals, &codes.literals) + of(&self.distances, &codes.distances) + self.extra
    }

    fn write_items(&self, codes: &Codes, writer: &mut Writer) {
        for &item in &self.items {
            if item < 256 {
                writer.put_code(codes.literals[item as usize]);
                continue;
            }
            let length = Class::of_length((item & 511) as usize);
            let distance = Class::of_distance((item >> 9) as usize);
            let (len_code, far_code) =
                (codes.literals[length.symbol], codes.distances[distance.symbol]);
            let mut bits = u64::from(len_code.bits);
            let mut len = u32::from(len_code.len);
            for (more, more_len) in [
                (length.extra, length.extra_len),
                (u32::from(far_code.bits), u32::from(far_code.len)),
                (distance.extra, distance.extra_len),
            ] {
                bits |= u64::from(more) << len;
                len += more_len;
            }
            writer.put(bits, len);
        }
        writer.put_code(codes.literals[END_OF_BLOCK]);
    }
}

/// Returns the bits of stored blocks, of which `before` are in the writer, beyond the first one's own three.
fn stored_len(bytes: usize, before: u32) -> usize {
    let aligned = (before + 3).next_multiple_of(8) - (before + 3);
    let more = bytes.div_ceil(STORED).saturating_sub(1);
    8 * bytes + aligned as usize + 32 + more * (8 + 32)
}

fn write_stored(bytes: &[u8], writer: &mut Writer, last: bool) {
    let pieces = bytes.len().div_ceil(STORED);
    for (index, piece) in bytes.chunks(STORED).enumerate() {
        writer.put(u64::from(last && index + 1 == pieces), 3);
        writer.align();
        writer.put(piece.len() as u64 | (!piece.len() as u64 & 0xffff) << 16, 32);
        writer.put_bytes(piece);
    }
}

/// The codes of a block.
struct Codes {
    literals: [Code; 288],
    distances: [Code; 32],
}

impl Codes {
    fn from_lengths(literals: &[u8; 288], distances: &[u8; 32]) -> Codes {
        Codes { literals: codes(literals), distances: codes(distances) }
    }

    fn for_counts(literals: &[u32; LITERALS], distances: &[u32; DISTANCES]) -> Codes {
        let mut of = ([0; 288], [0; 32]);
        lengths(literals, LIMIT, &mut of.0);
        lengths(distances, LIMIT, &mut of.1);
        Codes::from_lengths(&of.0, &of.1)
    }

    /// RFC 1951, section 3.2.6.
    fn fixed() -> Codes {
        let mut literals = [8; 288];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        Codes::from_lengths(&literals, &[5; 32])
    }
}

/// What a block says of its codes.
struct Header {
    literals: usize,
    distances: usize,
    /// Symbols for the lengths of all codes, with what follows each.
    symbols: Vec<(u8, u8)>,
    codes: [Code; 19],
    /// How many of the codes' lengths are written, in their order.
    written: usize,
}

impl Header {
    fn of(of: &Codes) -> Header {
        // The lengths of the codes up to the last one used.
        let used = |codes: &[Code], least: usize| -> Vec<u8> {
            let last = codes.iter().rposition(|code| code.len > 0);
            let count = last.map_or(least, |last| least.max(last + 1));
            codes[..count].iter().map(|code| code.len).collect()
        };
        let (literals, distances) = (used(&of.literals, 257), used(&of.distances, 1));
        let all = [literals.as_slice(), &distances].concat();
        let symbols = in_runs(&all);
        let mut counts = [0; 19];
        for (symbol, _) in &symbols {
            counts[usize::from(*symbol)] += 1;
        }
        let mut own = [0; 19];
        lengths(&counts, LIMIT_OF_LENGTHS, &mut own);
        let written =
            ORDER.iter().rposition(|symbol| own[*symbol] > 0).map_or(4, |last| (last + 1).max(4));
        let (literals, distances) = (literals.len(), distances.len());
        Header { literals, distances, symbols, codes: codes(&own), written }
    }

    /// Returns its length in bits.
    fn len(&self) -> usize {
        let symbols = self.symbols.iter().map(|(symbol, _)| {
            usize::from(self.codes[usize::from(*symbol)].len) + extra_len(*symbol) as usize
        });
        14 + 3 * self.written + symbols.sum::<usize>()
    }

    fn write(&self, writer: &mut Writer) {
        writer.put((self.literals - 257) as u64, 5);
        writer.put((self.distances - 1) as u64, 5);
        writer.put((self.written - 4) as u64, 4);
        for symbol in &ORDER[..self.written] {
            writer.put(u64::from(self.codes[*symbol].len), 3);
        }
        for (symbol, extra) in &self.symbols {
            writer.put_code(self.codes[usize::from(*symbol)]);
            writer.put(u64::from(*extra), extra_len(*symbol));
        }
    }
}

/// Bits that follow a symbol of a code's length.
fn extra_len(symbol: u8) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Returns symbols for lengths: 16 repeats the one before 3 to 6 times, 17 and 18 are 3 to 10 and 11 to 138 zeroes.
fn in_runs(lengths: &[u8]) -> Vec<(u8, u8)> {
    let mut symbols = Vec::with_capacity(lengths.len());
    for run in lengths.chunk_by(|one, next| one == next) {
        let (len, mut left) = (run[0], run.len());
        if len > 0 {
            symbols.push((len, 0));
            left -= 1;
        }
        while left > 0 {
            let (symbol, least, most) = match (len, left) {
                (_, ..3) => (len, 1, 1),
                (0, ..11) => (17, 3, 10),
                (0, _) => (18, 11, 138),
                (_, _) => (16, 3, 6),
            };
            let taken = left.min(most);
            symbols.push((symbol, (taken - least) as u8));
            left -= taken;
        }
    }
    symbols
}

/// Writes bits, the lowest first, where whoever writes has seen to the room.
pub(super) struct Writer<'a> {
    output: &'a mut [u8],
    at: usize,
    /// Fewer than eight bits that are yet to be written.
    bits: u64,
    count: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(output: &'a mut [u8]) -> Writer<'a> {
        Writer { output, at: 0, bits: 0, count: 0 }
    }

    /// Returns how many bits fit yet.
    fn room(&self) -> usize {
        8 * (self.output.len() - self.at) - self.count as usize
    }

    #[inline]
    fn put_code(&mut self, code: Code) {
        self.put(u64::from(code.bits), u32::from(code.len));
    }

    /// Writes up to 56 bits.
    #[inline]
    fn put(&mut self, bits: u64, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        let whole = (self.count / 8) as usize;
        let bytes = self.bits.to_le_bytes();
        match self.output.get_mut(self.at..self.at + 8) {
            Some(room) => room.copy_from_slice(&bytes),
            None => self.output[self.at..self.at + whole].copy_from_slice(&bytes[..whole]),
        }
        self.at += whole;
        self.bits >>= 8 * whole;
        self.count %= 8;
    }

    fn align(&mut self) {
        self.put(0, (8 - self.count) % 8);
    }

    /// Writes whole bytes where no bit is left.
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.output[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Returns the length in bytes.
    pub(super) fn finish(mut self) -> usize {
        self.align();
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_specifications_tables() {
        let parts = |class: Class| (class.symbol, class.extra, class.extra_len);
        for (len, class) in [
            (3, (257, 0, 0)),
            (10, (264, 0, 0)),
            (11, (265, 0, 1)),
            (12, (265, 1, 1)),
            (19, (269, 0, 2)),
            (130, (280, 15, 4)),
            (257, (284, 30, 5)),
            (258, (285, 0, 0)),
        ] {
            assert_eq!(parts(Class::of_length(len)), class, "{len}");
        }
        for (distance, class) in [
            (1, (0, 0, 0)),
            (4, (3, 0, 0)),
            (5, (4, 0, 1)),
            (8, (5, 1, 1)),
            (2049, (22, 0, 10)),
            (4095, (23, 1022, 10)),
        ] {
            assert_eq!(parts(Class::of_distance(distance)), class, "{distance}");
        }
    }

    #[test]
    fn runs_of_lengths_become_as_many_again() {
        for run in 1..300 {
            for len in [0, 7] {
                let lengths = [vec![3], vec![len; run], vec![5]].concat();
                let mut found = Vec::new();
                for (symbol, extra) in in_runs(&lengths) {
                    let (times, len) = match symbol {
                        16 => (3 + extra, *found.last().unwrap()),
                        17 => (3 + extra, 0),
                        18 => (11 + extra, 0),
                        len => (1, len),
                    };
                    found.extend(vec![len; usize::from(times)]);
                }
                assert_eq!(found, lengths);
            }
        }
    }
}
