//! Patterns of file names as shells have them: `*`, `?` and `[a-z]`, `[!a-z]`, within one name.

/// Whether the text is a pattern and not the name of one file.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether `name` matches `pattern`. A dot at the beginning of a name must be in the pattern, too (POSIX.1-2017 XCU
/// section 2.13.3). Takes time proportional to the product of the lengths at most.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where to go on when the text after the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], name[n]) {
            p += length;
            n += 1;
        } else if let Some((after, at)) = star {
            (p, n) = (after, at + 1);
            star = Some((after, at + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// How much of the pattern stands for this byte, when it does.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => match set(pattern, byte) {
            Some((held, length)) => held.then_some(length),
            None => (byte == b'[').then_some(1),
        },
        same => (same == byte).then_some(1),
    }
}

/// Whether a set in brackets holds the byte, and how long it is; none when it does not end.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let begin = if negated { 2 } else { 1 };
    let (mut at, mut held) = (begin, false);
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > begin {
            return Some((held != negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                held |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                held |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_agrees_on_what_matches() {
        let names =
            ["a.conf", "ab.conf", ".conf", "b", "[x", "a-b", "]", "abcabd", ".a", "a*b", "^"];
        let patterns = [
            "*", "*.conf", "?", "[ab]", "[!a]*", "[a-c]*", "a[-x]b", "[]]", ".*", "*ab?", "a[*]b",
            "*b*d", "[x", "[^a]", "a**b", "?*", "[!]]",
        ];
        for pattern in patterns {
            for name in names {
                // In bash `case` takes a dot at the beginning as any other; globbing does not.
                let script = format!(
                    "cd $(mktemp -d) && touch -- \"$1\" && set +f && for f in {pattern}; do [ \"$f\" = \"$1\" ] && [ -e \"./$f\" ] && exit 0; done; exit 1"
                );
                let script = format!("shopt -s nullglob; {script}");
                let by_shell = Command::new("bash").args(["-c", &script, "sh", name]).status();
                let by_shell = by_shell.expect("bash").success();
                let ours = matches(pattern.as_bytes(), name.as_bytes());
                assert_eq!(ours, by_shell, "{pattern} {name}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let name = vec![b'a'; 4096];
        let pattern = [b"*a".repeat(1000), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &name));
    }
}
