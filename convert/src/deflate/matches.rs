//! Where a place's bytes have occurred before.

use std::ops::Range;

/// Matches are at least so long (RFC 1951, section 3.2.5),
pub(super) const SHORTEST: usize = 3;
/// and at most so long.
pub(super) const LONGEST: usize = 258;
/// The window: distances are less.
const WINDOW: usize = 4096;
/// Bits of the hash of three and of four bytes.
const BITS_3: u32 = 13;
const BITS_4: u32 = 14;

/// Bytes that have occurred before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// 0 where there is none.
    pub(super) len: usize,
    pub(super) distance: usize,
}

impl Match {
    const NONE: Match = Match { len: 0, distance: 1 };

    /// Returns whether the match, one byte on, is worth the literal that it takes: each byte more saves
    /// some four bits, a distance has one bit more each time it doubles.
    pub(super) fn gains_over(self, before: Match) -> bool {
        let gain = 4 * (self.len as i32 - before.len as i32) + before.distance.ilog2() as i32
            - self.distance.ilog2() as i32;
        self.len >= SHORTEST && gain > 2
    }
}

/// Earlier places by a hash of their first bytes: the last one by three, all of the window by four.
///
/// Of a place the lower 16 bits are kept, for tables that a processor's first cache holds. One that is taken for
/// another by that is compared like all others.
pub(super) struct Finder {
    last_3: Box<[u16; 1 << BITS_3]>,
    last_4: Box<[u16; 1 << BITS_4]>,
    /// For each place of the window the one before it with the same hash of four bytes.
    before: Box<[u16; WINDOW]>,
}

impl Finder {
    pub(super) fn new() -> Finder {
        Finder {
            last_3: Box::new([0; 1 << BITS_3]),
            last_4: Box::new([0; 1 << BITS_4]),
            before: Box::new([0; WINDOW]),
        }
    }

    /// Begins a unit: what it becomes is up to it alone, whichever came before.
    pub(super) fn begin(&mut self) {
        self.last_3.fill(0);
        self.last_4.fill(0);
        self.before.fill(0);
    }

    /// Finds the longest match at `at`, if one is longer than `longer_than`, and notes the place.
    ///
    /// Up to `depth` places are compared, and none more after a match of `enough`.
    #[inline]
    pub(super) fn find(
        &mut self,
        input: &[u8],
        at: usize,
        longer_than: usize,
        depth: u32,
        enough: usize,
    ) -> Match {
        let Some(first) = four_at(input, at) else { return Match::NONE };
        let (near, mut place) = self.note(first, at);
        let longest = LONGEST.min(input.len() - at);
        let farthest = at.min(WINDOW - 1);
        let distance_to = |place: u16| usize::from((at as u16).wrapping_sub(place));
        let mut best = Match { len: longer_than, distance: 0 };
        if best.len < SHORTEST {
            let distance = distance_to(near);
            if (1..=farthest).contains(&distance)
                && four_at(input, at - distance).is_some_and(|four| (four ^ first) << 8 == 0)
            {
                best = Match { len: SHORTEST, distance };
            }
        }
        let mut nearer = 0;
        for _ in 0..depth {
            let distance = distance_to(place);
            if distance <= nearer || distance > farthest || best.len >= longest {
                break;
            }
            nearer = distance;
            let earlier = at - distance;
            // The bytes that would make it longer first: most places end there.
            let last = best.len.saturating_sub(3);
            if four_at(input, earlier + last) == four_at(input, at + last)
                && four_at(input, earlier) == Some(first)
            {
                let len = equal(&input[earlier..], &input[at..at + longest]);
                if len > best.len {
                    best = Match { len, distance };
                    if len >= enough {
                        break;
                    }
                }
            }
            place = self.before[usize::from(place) % WINDOW];
        }
        if best.distance == 0 { Match::NONE } else { best }
    }

    /// Notes places that no match is looked for at.
    pub(super) fn pass(&mut self, input: &[u8], places: Range<usize>) {
        for at in places {
            let Some(first) = four_at(input, at) else { return };
            self.note(first, at);
        }
    }

    /// Notes a place by its first four bytes; returns the last ones of the same three and of the same four.
    #[inline]
    fn note(&mut self, first: u32, at: usize) -> (u16, u16) {
        let here = at as u16;
        // Multiplicative hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4).
        let hash =
            |bytes: u32, bits: u32| (bytes.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize;
        let last_3 = std::mem::replace(&mut self.last_3[hash(first << 8, BITS_3)], here);
        let last_4 = std::mem::replace(&mut self.last_4[hash(first, BITS_4)], here);
        self.before[at % WINDOW] = last_4;
        (last_3, last_4)
    }
}

#[inline]
fn four_at(input: &[u8], at: usize) -> Option<u32> {
    let bytes = input.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

/// Returns how many bytes of `here` `earlier` begins with; it is the longer one.
#[inline]
fn equal(earlier: &[u8], here: &[u8]) -> usize {
    let mut len = 0;
    for (one, other) in earlier.chunks_exact(8).zip(here.chunks_exact(8)) {
        let one = u64::from_le_bytes(one.try_into().expect("eight bytes"));
        let other = u64::from_le_bytes(other.try_into().expect("eight bytes"));
        if one != other {
            return len + ((one ^ other).trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + earlier[len..].iter().zip(&here[len..]).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_of_the_window_is_found_and_none_beyond_it() {
        for (distance, found) in [(4095, true), (4096, false)] {
            let mut unit: Vec<u8> =
                (0..distance as u32).flat_map(u32::to_le_bytes).take(distance).collect();
            let word = *b"\xff\xfewindow";
            unit[..8].copy_from_slice(&word);
            unit.extend(word);
            let mut finder = Finder::new();
            finder.begin();
            finder.pass(&unit, 0..distance);
            let best = finder.find(&unit, distance, 0, 100, LONGEST);
            assert_eq!(best == Match { len: 8, distance }, found, "{best:?}");
        }
    }

    #[test]
    fn places_beyond_the_count_of_16_bits_are_found() {
        let mut unit = vec![0; 70_000];
        unit[65_500..65_510].copy_from_slice(b"the window");
        unit[69_000..69_010].copy_from_slice(b"the window");
        let mut finder = Finder::new();
        finder.begin();
        finder.pass(&unit, 0..69_000);
        let best = finder.find(&unit, 69_000, 0, 9, LONGEST);
        assert_eq!(best, Match { len: LONGEST, distance: 3500 });
    }
}
