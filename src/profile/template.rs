//! `{{ name }}` in the strings of a profile.
//!
//! Two braces, because one with a `$` is the shell's, and most strings of a profile are commands; the
//! form is the one that templates of Packer and Ansible have. `{{{{` stands for two braces. There are
//! no filters and no conditions.

/// A piece of a string.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Text that stands for itself.
    Text(&'t str),
    /// The name of a variable.
    Name(&'t str),
}

/// What is wrong with a string, and at which of its opening braces, from 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Counts the places where two braces open, escaped ones too.
    pub opening: usize,
    /// A sentence.
    pub message: String,
}

/// Cuts `text` into pieces; each name comes with the count of its opening braces.
///
/// # Errors
/// Braces that do not close, or that hold no name.
pub fn pieces(text: &str) -> Result<Vec<(Piece<'_>, usize)>, Misplaced> {
    let mut pieces = Vec::new();
    let (mut rest, mut opening) = (text, 0);
    while let Some(at) = rest.find("{{") {
        pieces.push((Piece::Text(&rest[..at]), opening));
        if let Some(after) = rest[at..].strip_prefix("{{{{") {
            pieces.push((Piece::Text("{{"), opening));
            (rest, opening) = (after, opening + 2);
            continue;
        }
        let inner = &rest[at + 2..];
        let misplaced = |message: String| Misplaced { opening, message };
        let Some(end) = inner.find("}}") else {
            return Err(misplaced("`{{` is not closed by `}}`".into()));
        };
        let name = inner[..end].trim();
        if !is_name(name) {
            return Err(misplaced(format!(
                "`{{{{{}}}}}` holds no name of a variable",
                &inner[..end]
            )));
        }
        pieces.push((Piece::Name(name), opening));
        (rest, opening) = (&inner[end + 2..], opening + 1);
    }
    pieces.push((Piece::Text(rest), opening));
    Ok(pieces)
}

/// Returns the byte at which the opening braces of this count stand in `raw`, the string as it is
/// written in the profile.
pub fn place(raw: &str, opening: usize) -> Option<usize> {
    raw.match_indices("{{").nth(opening).map(|(at, _)| at)
}

/// Words of letters, digits, `_` and `-`, joined by dots.
pub fn is_name(name: &str) -> bool {
    let word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    name.split('.').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, Misplaced> {
        let pieces = pieces(text)?.into_iter().map(|(piece, _)| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Name(name) => format!("<{name}>"),
        });
        Ok(pieces.collect())
    }

    #[test]
    fn names_are_found_and_four_braces_are_two() {
        assert_eq!(shown("a{{b}} {{ env.HOME }}c").unwrap(), "a<b> <env.HOME>c");
        assert_eq!(shown("${HOME} {x} }} {").unwrap(), "${HOME} {x} }} {");
        assert_eq!(shown("{{{{ .Name }} {{ a }}").unwrap(), "{{ .Name }} <a>");
    }

    #[test]
    fn what_is_no_name_is_refused_at_its_place() {
        let error = shown("{{ a }} {{ .Names }}").unwrap_err();
        assert_eq!((error.opening, error.message.contains(".Names")), (1, true));
        assert!(shown("{{ a").is_err() && shown("{{ }}").is_err() && shown("{{ a b }}").is_err());
        assert_eq!(place("{{ a }} {{ .Names }}", 1), Some(8));
        let text = "{{{{ x }} {{ 7 }}";
        assert_eq!(place(text, shown(text).unwrap_err().opening), Some(10));
    }
}
