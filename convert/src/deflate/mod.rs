//! Bare deflate (RFC 1951) with a window of 4 KiB, as the clusters of qcow2 have it.
//!
//! A unit is parsed into literals and matches ([`matches`]), each longer match one byte on being worth
//! a literal; the items are then written in blocks ([`block`]) by codes of their own ([`huffman`]).

mod block;
mod huffman;
mod matches;

use block::{Block, Writer};
use matches::{Finder, Match, SHORTEST};

/// How hard matches are looked for.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Earlier places that are compared with one.
    depth: u32,
    /// A match of this length is taken without looking for a longer one, at its place or the next.
    enough: usize,
    /// Whether the next place is looked at before a match is taken.
    lazy: bool,
}

impl Effort {
    /// Levels as zlib's, 1 to 9; others as the nearest of these.
    fn of(level: u8) -> Effort {
        let (depth, enough, lazy) = match level {
            0 | 1 => (2, 16, false),
            2 => (6, 32, false),
            3 => (4, 32, true),
            4 => (6, 32, true),
            5 => (8, 48, true),
            6 => (12, 64, true),
            7 => (40, 130, true),
            8 => (128, 258, true),
            _ => (4096, 258, true),
        };
        Effort { depth, enough, lazy }
    }
}

/// A compressor, with what it keeps from unit to unit so as not to make it anew.
pub(crate) struct Deflate {
    effort: Effort,
    finder: Finder,
    block: Block,
}

impl Deflate {
    /// Makes a compressor of a level of 1 to 9.
    pub(crate) fn new(level: u8) -> Deflate {
        Deflate { effort: Effort::of(level), finder: Finder::new(), block: Block::new() }
    }

    /// Packs `input` into `output` and returns the length, or `None` where that is more
    /// than `output` has.
    pub(crate) fn pack(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut writer = Writer::new(output);
        self.finder.begin();
        self.block.begin(0);
        let mut at = 0;
        // What has been found at `at` already.
        let mut ahead = None;
        while at < input.len() {
            if self.block.is_full() {
                self.block.write(&input[..at], &mut writer, false)?;
            }
            let depth = self.effort.depth;
            let now = ahead.take().unwrap_or_else(|| self.find(input, at, 0, depth));
            if now.len < SHORTEST {
                self.block.literal(input[at]);
                at += 1;
                continue;
            }
            let mut known = at + 1;
            if self.effort.lazy && now.len < self.effort.enough {
                let next = self.find(input, at + 1, now.len - 1, depth / 2);
                if next.gains_over(now) {
                    self.block.literal(input[at]);
                    at += 1;
                    ahead = Some(next);
                    continue;
                }
                known += 1;
            }
            self.block.copy(now);
            at += now.len;
            self.finder.pass(input, known..at);
        }
        self.block.write(input, &mut writer, true)?;
        Some(writer.finish())
    }

    fn find(&mut self, input: &[u8], at: usize, longer_than: usize, depth: u32) -> Match {
        self.finder.find(input, at, longer_than, depth, self.effort.enough)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn assert_comes_back(deflate: &mut Deflate, unit: &[u8]) -> Vec<u8> {
        let mut packed = vec![0; unit.len() + unit.len() / 100 + 1024];
        let len = deflate.pack(unit, &mut packed).expect("there is room");
        let mut plain = vec![0; unit.len()];
        let read = libdeflater::Decompressor::new().deflate_decompress(&packed[..len], &mut plain);
        assert!(read == Ok(unit.len()) && plain == unit, "{read:?} of {} bytes", unit.len());
        // So much room is needed and is enough.
        packed.truncate(len);
        let mut room = vec![0; len];
        assert_eq!(deflate.pack(unit, &mut room), Some(len));
        assert!(room == packed);
        assert_eq!(deflate.pack(unit, &mut room[1..]), None);
        packed
    }

    /// Has zlib inflate as a reader does whose output goes elsewhere in pieces: of what it has given away it has the
    /// window only. Returns what it says of each.
    fn judged(packed: &[Vec<u8>]) -> Vec<String> {
        let script = "
import sys, zlib
while length := int.from_bytes(sys.stdin.buffer.read(4), 'little'):
    packed, total = sys.stdin.buffer.read(length), 0
    inflate = zlib.decompressobj(-12)
    try:
        while not inflate.eof and (packed or piece):
            piece = inflate.decompress(packed, 700)
            packed, total = inflate.unconsumed_tail, total + len(piece)
        print(total if inflate.eof else 'no end')
    except zlib.error as error:
        print(error)";
        let mut python = Command::new("python3");
        python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = python.spawn().unwrap();
        let mut input = python.stdin.take().unwrap();
        let all: Vec<u8> = packed
            .iter()
            .flat_map(|packed| [&(packed.len() as u32).to_le_bytes(), packed.as_slice()].concat())
            .collect();
        let writer = std::thread::spawn(move || input.write_all(&all).unwrap());
        let output = python.wait_with_output().unwrap();
        writer.join().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Bytes that nothing packs.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 7u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    /// Units of one length: zeroes, noise, words, runs.
    fn units(len: usize) -> [Vec<u8>; 4] {
        let noise = noise(len);
        let word = |byte: &u8| [b"disk", b"vhd ", b"vmdk", b" of "][usize::from(byte % 4)];
        let words = noise.iter().flat_map(word).copied().take(len).collect();
        let run = |byte: &u8| vec![*byte; usize::from(*byte) * 3 + 1];
        let runs = noise.iter().flat_map(run).take(len).collect();
        [vec![0; len], noise, words, runs]
    }

    #[test]
    fn units_of_any_length_and_kind_come_back_at_each_level() {
        for level in 0..=10 {
            let mut deflate = Deflate::new(level);
            for len in [0, 1, 2, 3, 4, 5, 257, 258, 259, 4096, 65_535, 65_536, 65_537, 300_000] {
                for unit in units(len) {
                    assert_comes_back(&mut deflate, &unit);
                }
            }
        }
    }

    #[test]
    fn a_reader_needs_no_more_than_the_window() {
        let twice = [noise(5000), noise(5000)].concat();
        let lately = [noise(4095), noise(4095)].concat();
        let text = include_bytes!("../../../docs/formats.md").to_vec();
        let units = [vec![twice.clone(), lately, text], units(200_000).to_vec()].concat();
        let mut deflate = Deflate::new(9);
        let mut packed: Vec<_> =
            units.iter().map(|unit| assert_comes_back(&mut deflate, unit)).collect();
        assert!(packed[0].len() > 10_000 && packed[1].len() < 5000);
        let mut expected: Vec<_> = units.iter().map(|unit| unit.len().to_string()).collect();
        // It does mind it.
        let mut far = vec![0; 11_000];
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let len = compressor.deflate_compress(&twice, &mut far).unwrap();
        packed.push(far[..len].to_vec());
        expected.push("Error -3 while decompressing data: invalid distance too far back".into());
        assert_eq!(judged(&packed), expected);
    }

    #[test]
    fn what_cannot_be_packed_grows_by_the_stored_blocks_alone() {
        let unit = noise(65_536);
        let mut packed = vec![0; 66_000];
        let len = Deflate::new(6).pack(&unit, &mut packed).unwrap();
        assert!(len <= unit.len() + 5 * 8, "{len}");
    }

    #[test]
    fn a_higher_level_packs_smaller() {
        let text = include_bytes!("../../../docs/formats.md");
        let mut packed = vec![0; text.len()];
        let lens = [1, 6, 9].map(|level| Deflate::new(level).pack(text, &mut packed).unwrap());
        assert!(lens.is_sorted_by(|low, high| low > high), "{lens:?}");
    }

    /// A piece of a unit: bytes, or so many from so far back.
    fn piece() -> impl Strategy<Value = (Vec<u8>, usize, usize)> {
        (proptest::collection::vec(0..40u8, 0..40), 1..9000usize, 0..600usize)
    }

    proptest! {
        #[test]
        fn pieces_and_their_repetitions_come_back(
            pieces in proptest::collection::vec(piece(), 0..300), level in 1..=9u8,
        ) {
            let mut unit = Vec::new();
            for (bytes, distance, len) in pieces {
                unit.extend(bytes);
                let len = if unit.is_empty() { 0 } else { len };
                for _ in 0..len {
                    unit.push(unit[unit.len() - distance.min(unit.len())]);
                }
            }
            let mut deflate = Deflate::new(level);
            assert_comes_back(&mut deflate, &unit);
            // The next unit takes nothing from the one before.
            assert_comes_back(&mut deflate, &unit[unit.len() / 2..]);
        }
    }
}
