//! Prefix codes whose lengths are limited (RFC 1951, section 3.2.2).

/// The longest code of a literal, length or distance.
pub(super) const LIMIT: usize = 15;

/// A code: its bits, the first one lowest, and how many they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) bits: u16,
    pub(super) len: u8,
}

/// Sets the lengths of the best codes of at most `limit` bits for symbols that occur so often; of those that
/// do not occur 0. Two symbols at least get a code, as some readers want no code to be left over.
pub(super) fn lengths(counts: &[u32], limit: usize, lengths: &mut [u8]) {
    let mut symbols = [(0u32, 0u16); 288];
    let mut used = 0;
    for (symbol, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        symbols[used] = (count, symbol as u16);
        used += 1;
    }
    let idle = counts.iter().zip(0..).filter(|(count, _)| **count == 0);
    for (_, symbol) in idle.take(2usize.saturating_sub(used)) {
        symbols[used] = (0, symbol);
        used += 1;
    }
    let symbols = &mut symbols[..used];
    symbols.sort_unstable();

    let mut of_length = leaves_at_depths(symbols);
    limit_depths(&mut of_length, limit);
    lengths.fill(0);
    let mut rest = symbols.iter();
    for len in (1..=limit).rev() {
        for (_, symbol) in rest.by_ref().take(of_length[len] as usize) {
            lengths[*symbol as usize] = len as u8;
        }
    }
}

/// Returns how many leaves a Huffman tree has at each depth, those deeper than the array at its end.
///
/// In place, by A. Moffat and J. Katajainen, "In-place calculation of minimum-redundancy codes" (1995): `nodes`
/// holds weights of inner nodes, then their parents, then their depths.
fn leaves_at_depths(symbols: &[(u32, u16)]) -> [u32; DEPTHS] {
    let inner = symbols.len() - 1;
    let mut nodes = [0u32; 288];
    let (mut leaf, mut root) = (0, 0);
    for node in 0..inner {
        let mut weight = 0;
        for _ in 0..2 {
            if leaf < symbols.len() && (root == node || symbols[leaf].0 <= nodes[root]) {
                weight += symbols[leaf].0;
                leaf += 1;
            } else {
                weight += nodes[root];
                nodes[root] = node as u32;
                root += 1;
            }
        }
        nodes[node] = weight;
    }
    nodes[inner - 1] = 0;
    for node in (0..inner - 1).rev() {
        nodes[node] = nodes[nodes[node] as usize] + 1;
    }

    let mut leaves = [0; DEPTHS];
    let mut places = 1;
    let mut left = &nodes[..inner];
    for depth in 0.. {
        let here = left.iter().rev().take_while(|node| **node == depth).count();
        left = &left[..left.len() - here];
        leaves[(depth as usize).min(DEPTHS - 1)] += places - here as u32;
        places = 2 * here as u32;
        if places == 0 {
            return leaves;
        }
    }
    unreachable!("a tree ends");
}

/// One more than the longest limit.
const DEPTHS: usize = LIMIT + 2;

/// Moves leaves that are too deep up to `limit`, and others down until there is room for all of them.
fn limit_depths(leaves: &mut [u32; DEPTHS], limit: usize) {
    let deeper: u32 = leaves[limit + 1..].iter().sum();
    leaves[limit + 1..].fill(0);
    leaves[limit] += deeper;
    let taken = |leaves: &[u32; DEPTHS]| -> u32 {
        (1..=limit).map(|depth| leaves[depth] << (limit - depth)).sum()
    };
    let mut excess = taken(leaves) - (1 << limit);
    while excess > 0 {
        // A leaf above the last level becomes a node with itself and one of the last level below it.
        let depth =
            (1..limit).rev().find(|depth| leaves[*depth] > 0).expect("there is room at the limit");
        leaves[depth] -= 1;
        leaves[depth + 1] += 2;
        leaves[limit] -= 1;
        excess -= 1;
    }
}

/// Returns the codes that the lengths imply.
pub(super) fn codes<const N: usize>(lengths: &[u8; N]) -> [Code; N] {
    let mut next = [0u16; LIMIT + 2];
    for &len in lengths.iter().filter(|len| **len > 0) {
        next[len as usize + 1] += 1;
    }
    for len in 1..LIMIT {
        next[len + 1] = (next[len + 1] + next[len]) << 1;
    }
    lengths.map(|len| {
        if len == 0 {
            return Code::default();
        }
        let bits = next[len as usize].reverse_bits() >> (16 - len);
        next[len as usize] += 1;
        Code { bits, len }
    })
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    /// The room of all codes, in those of 15 bits.
    fn room(lengths: &[u8]) -> u32 {
        lengths.iter().filter(|len| **len > 0).map(|len| 1 << (LIMIT - usize::from(*len))).sum()
    }

    #[test]
    fn codes_are_those_of_the_specifications_example() {
        let found = codes(&[3, 3, 3, 3, 3, 2, 4, 4]);
        let in_order = found.map(|code| code.bits.reverse_bits() >> (16 - code.len));
        assert_eq!(in_order, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }

    #[test]
    fn codes_that_would_be_too_long_are_shortened_and_leave_no_room() {
        let mut counts = [1; 40];
        for index in 2..40 {
            counts[index] = counts[index - 1] + counts[index - 2];
        }
        for limit in [7, LIMIT] {
            let mut found = [0; 40];
            lengths(&counts, limit, &mut found);
            assert!(found.iter().all(|len| (1..=limit as u8).contains(len)), "{found:?}");
            assert!(found.is_sorted_by(|rare, frequent| rare >= frequent), "{found:?}");
            assert_eq!(room(&found), 1 << LIMIT);
        }
    }

    #[test]
    fn one_symbol_or_none_gets_two_codes() {
        for counts in [[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 5]] {
            let mut found = [9; 3];
            lengths(&counts, 7, &mut found);
            assert_eq!(found.iter().filter(|len| **len == 1).count(), 2, "{counts:?} {found:?}");
            assert_eq!(room(&found), 1 << LIMIT);
        }
    }

    proptest! {
        #[test]
        fn no_codes_are_shorter_on_the_whole(counts in proptest::collection::vec(0..50u32, 2..286)) {
            prop_assume!(counts.iter().filter(|count| **count > 0).count() > 1);
            // Huffman's own way: the bits are the sum of all inner nodes' weights.
            let mut heap: BinaryHeap<_> = counts.iter().filter(|count| **count > 0).map(|count| Reverse(*count)).collect();
            let mut best = 0;
            while let (Some(Reverse(one)), Some(Reverse(other))) = (heap.pop(), heap.pop()) {
                best += one + other;
                if heap.is_empty() {
                    break;
                }
                heap.push(Reverse(one + other));
            }
            let mut found = vec![0; counts.len()];
            lengths(&counts, LIMIT, &mut found);
            let bits: u32 = counts.iter().zip(&found).map(|(count, len)| count * u32::from(*len)).sum();
            prop_assert_eq!(bits, best);
            prop_assert_eq!(room(&found), 1 << LIMIT);
        }
    }
}
