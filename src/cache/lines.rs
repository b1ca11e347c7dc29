//! The difference between two texts, line by line: a longest common subsequence by dynamic
//! programming, as the texts that are kept are short.

/// Largest table; beyond it everything between the common ends counts as replaced.
const TABLE: usize = 4 << 20;

/// A run of lines that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hunk<'a, T: ?Sized> {
    /// The index of the first line in the new text.
    pub at: usize,
    /// The lines that went.
    pub removed: Vec<&'a T>,
    /// The lines that came.
    pub added: Vec<&'a T>,
}

/// Returns what differs between the lines of two texts.
pub(super) fn diff<'a>(old: &'a str, new: &'a str) -> Vec<Hunk<'a, str>> {
    let lines = |text: &'a str| -> Vec<&'a str> { text.split_inclusive('\n').collect() };
    let mut hunks: Vec<Hunk<'a, str>> = Vec::new();
    let (old, new) = (lines(old), lines(new));
    let (mut from, mut to) = (0, 0);
    let end = (old.len(), new.len());
    for (left, right) in common(&old, &new, |one, other| one == other).into_iter().chain([end]) {
        if (from, to) != (left, right) {
            let (removed, added) = (old[from..left].to_vec(), new[to..right].to_vec());
            hunks.push(Hunk { at: to, removed, added });
        }
        (from, to) = (left + 1, right + 1);
    }
    hunks
}

/// Returns the pairs of indices of a longest common subsequence.
pub(super) fn common<T>(
    old: &[T],
    new: &[T],
    same: impl Fn(&T, &T) -> bool,
) -> Vec<(usize, usize)> {
    let head = old.iter().zip(new).take_while(|(one, other)| same(one, other)).count();
    let rest = (&old[head..], &new[head..]);
    let pairs = rest.0.iter().rev().zip(rest.1.iter().rev());
    let tail = pairs.take_while(|(one, other)| same(one, other)).count();
    let (left, right) = (&rest.0[..rest.0.len() - tail], &rest.1[..rest.1.len() - tail]);
    let mut all: Vec<_> = (0..head).map(|index| (index, index)).collect();
    all.extend(middle(left, right, &same).iter().map(|(one, other)| (head + one, head + other)));
    all.extend((0..tail).map(|index| (old.len() - tail + index, new.len() - tail + index)));
    all
}

fn middle<T>(old: &[T], new: &[T], same: &impl Fn(&T, &T) -> bool) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    if old.is_empty() || new.is_empty() || (old.len() + 1).saturating_mul(width) > TABLE {
        return Vec::new();
    }
    // longest[i * width + j]: the length of the longest one of old[i..] and new[j..].
    let mut longest = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i * width + j] = if same(&old[i], &new[j]) {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    while i < old.len() && j < new.len() {
        if same(&old[i], &new[j]) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hunk<'a>(at: usize, removed: &[&'a str], added: &[&'a str]) -> Hunk<'a, str> {
        Hunk { at, removed: removed.to_vec(), added: added.to_vec() }
    }

    #[test]
    fn only_what_differs_is_told() {
        assert_eq!(diff("a\nb\n", "a\nb\n"), []);
        assert_eq!(diff("a\nb\nc\n", "a\nB\nc\n"), [hunk(1, &["b\n"], &["B\n"])]);
        assert_eq!(diff("a\nc\n", "a\nb\nc\n"), [hunk(1, &[], &["b\n"])]);
        assert_eq!(diff("", "a"), [hunk(0, &[], &["a"])]);
        assert_eq!(diff("a", "a\n"), [hunk(0, &["a"], &["a\n"])]);
        let hunks = diff("1\n2\n3\n4\n5\n", "0\n1\n3\n4\n6\n");
        let expected =
            [hunk(0, &[], &["0\n"]), hunk(2, &["2\n"], &[]), hunk(4, &["5\n"], &["6\n"])];
        assert_eq!(hunks, expected);
    }

    #[test]
    fn texts_without_a_common_line_are_replaced_whatever_their_length() {
        let text = |letter: &str| (0..5000).map(|n| format!("{letter}{n}\n")).collect::<String>();
        let (old, new) = (text("a"), text("b"));
        let hunks = diff(&old, &new);
        assert_eq!(hunks.len(), 1);
        assert_eq!((hunks[0].removed.len(), hunks[0].added.len()), (5000, 5000));
    }
}
