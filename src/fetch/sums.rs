//! Lists of checksums as distributions publish them: `SHA256SUMS`, `CHECKSUM`, `image.sha256`.
//!
//! A line is GNU's (`<hex>  <name>`, `*` before the name for binary mode, a leading `\` when the name
//! is escaped), BSD's (`SHA256 (<name>) = <hex>`), or nothing but the digest when the list is one
//! file's. Lines of any other kind, among them those of a signature around the list, are passed over.

use crate::checksum::Checksum;

/// Why a list does not tell a file's checksum.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumsError {
    /// Nothing in it is a checksum.
    #[error("it holds no MD5, SHA-1, SHA-256 or SHA-512 checksum")]
    Empty,
    /// The file is not in it.
    #[error("it has no line for {}", .names.join(" or "))]
    Missing {
        /// The names looked for.
        names: Vec<String>,
    },
    /// Two lines contradict each other.
    #[error("it has two different checksums for {name}")]
    Contradiction {
        /// The file's name.
        name: String,
    },
}

/// Finds the checksum of the file called one of `names` in `text`, the strongest one given.
///
/// # Errors
/// There is none, or there are two.
pub fn find(text: &str, names: &[String]) -> Result<Checksum, SumsError> {
    let lines: Vec<(Option<String>, Checksum)> = text.lines().filter_map(line).collect();
    if lines.is_empty() {
        return Err(SumsError::Empty);
    }
    let named: Vec<&(Option<String>, Checksum)> = lines
        .iter()
        .filter(|(name, _)| name.as_ref().is_some_and(|name| names.contains(&last(name))))
        .collect();
    let of_nobody = || match &lines[..] {
        [(None, checksum)] => Ok(checksum.clone()),
        _ => Err(SumsError::Missing { names: names.to_vec() }),
    };
    let Some(best) = named.iter().map(|(_, checksum)| checksum.algorithm).max() else {
        return of_nobody();
    };
    let mut of_best = named.iter().filter(|(_, checksum)| checksum.algorithm == best);
    let Some((name, checksum)) = of_best.next() else { return of_nobody() };
    if of_best.any(|(_, other)| other != checksum) {
        let name = name.clone().unwrap_or_default();
        return Err(SumsError::Contradiction { name });
    }
    Ok(checksum.clone())
}

/// Reads one line: the name, when it has one, and the checksum.
fn line(line: &str) -> Option<(Option<String>, Checksum)> {
    let line = line.trim_end_matches('\r');
    bsd(line).or_else(|| gnu(line))
}

fn bsd(line: &str) -> Option<(Option<String>, Checksum)> {
    let (start, hex) = line.rsplit_once(") = ")?;
    let (algorithm, name) = start.split_once(" (")?;
    let algorithm = algorithm.replace('-', "").to_ascii_lowercase();
    let checksum = format!("{algorithm}:{}", hex.trim()).parse().ok()?;
    Some((Some(name.to_string()), checksum))
}

fn gnu(line: &str) -> Option<(Option<String>, Checksum)> {
    let (line, escaped) = match line.strip_prefix('\\') {
        Some(rest) => (rest, true),
        None => (line, false),
    };
    let end = line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len());
    let (hex, rest) = line.split_at(end);
    let checksum = Checksum::from_digits(hex)?;
    if rest.trim().is_empty() {
        return Some((None, checksum));
    }
    // A blank, and then a blank for text or a star for binary mode; one blank is common too.
    let name = rest.strip_prefix([' ', '\t'])?;
    let name = name.strip_prefix(['*', ' ']).unwrap_or(name).trim_start();
    let name = if escaped { unescaped(name) } else { name.trim_end().to_string() };
    Some((Some(name), checksum))
}

fn unescaped(name: &str) -> String {
    let mut plain = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => plain.push('\n'),
                Some('r') => plain.push('\r'),
                Some(other) => plain.push(other),
                None => {}
            },
            (c, false) => plain.push(c),
        }
    }
    plain
}

fn last(name: &str) -> String {
    name.rsplit_once('/').map_or(name, |(_, name)| name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sum(program: &str, arguments: &[&str], content: &str, name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), content).unwrap();
        let output = Command::new(program)
            .args(arguments)
            .arg(name)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn names(name: &str) -> Vec<String> {
        vec![name.to_string()]
    }

    /// The SHA-256 of "abc", FIPS 180-4.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_the_coreutils_print_is_read() {
        for arguments in [&[][..], &["--binary"], &["--tag"]] {
            for name in ["a.img", "a b.img", "back\\slash", "two\nlines"] {
                let text = sum("sha256sum", arguments, "abc", name);
                if name.contains(['\n', '\\']) && arguments == ["--tag"] {
                    continue;
                }
                assert_eq!(find(&text, &names(name)).unwrap().to_string(), ABC, "{text}");
            }
        }
        for (program, length) in [("md5sum", 32), ("sha1sum", 40), ("sha512sum", 128)] {
            let text = sum(program, &[], "abc", "x");
            let found = find(&text, &names("x")).unwrap().to_string();
            assert_eq!(found.split_once(':').unwrap().1, &text[..length]);
        }
        assert_eq!(find(&sum("sha224sum", &[], "abc", "x"), &names("x")), Err(SumsError::Empty));
    }

    #[test]
    fn the_strongest_of_a_files_sums_counts_and_paths_do_not() {
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# a.img: 3 bytes\n{}{}{}",
            sum("md5sum", &[], "abc", "a.img"),
            sum("sha256sum", &[], "abc", "a.img").replace("a.img", "./images/a.img"),
            sum("sha512sum", &[], "other", "b.img"),
        );
        assert_eq!(find(&text, &names("a.img")).unwrap().to_string(), ABC);
        let missing = find(&text, &names("c.img")).unwrap_err();
        assert_eq!(missing.to_string(), "it has no line for c.img");
    }

    #[test]
    fn a_list_of_one_file_needs_no_name_and_a_contradiction_is_refused() {
        let digits = ABC.split_once(':').unwrap().1;
        assert_eq!(find(&format!("{digits}\n"), &names("x")).unwrap().to_string(), ABC);
        assert!(find(&format!("{digits}\n{digits}\n"), &names("x")).is_err());
        let other = digits.replace('a', "b");
        let text = format!("{digits}  x\n{other}  x\n");
        assert!(matches!(find(&text, &names("x")), Err(SumsError::Contradiction { .. })));
        assert_eq!(find("<html>404</html>", &names("x")), Err(SumsError::Empty));
    }
}
