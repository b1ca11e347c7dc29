//! The profile's text: turns byte offsets into lines and columns, and draws the
//! place an error points at.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A profile as it was read: where from, and its text.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Wraps `text`, which came from `path`.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    /// Returns the path that the text was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the place of a span: line and column of its first character, both from 1.
    pub fn place(&self, span: &Range<usize>) -> Place {
        let start = floor_boundary(&self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let width = self.text[start..floor_boundary(&self.text, span.end.min(line_end)).max(start)]
            .chars()
            .count();
        Place {
            path: self.path.clone(),
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            width: width.max(1),
            text: self.text[line_start..line_end].trim_end().to_string(),
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A place in a profile, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The profile's path.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters to underline.
    pub width: usize,
    /// The line's text.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.line.to_string();
        let margin = " ".repeat(gutter.len());
        // Tabs are kept in the indent, so that the caret stands below its word.
        let indent: String = self
            .text
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(f, "{margin}--> {}:{}:{}", self.path.display(), self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{gutter} | {}", self.text)?;
        write!(f, "{margin} | {indent}{}", "^".repeat(self.width))
    }
}

/// One fault in a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong: one sentence without its full stop.
    pub message: String,
    /// Where.
    pub place: Place,
    /// How to mend it, where that is known.
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_columns_from_one_in_characters() {
        let source = Source::new("p.toml", "a = 1\nsch\u{f6}n = 2\n");
        let place = source.place(&(15..16));
        assert_eq!((place.line, place.column, place.width), (2, 9, 1));
        assert_eq!(place.text, "sch\u{f6}n = 2");
    }

    #[test]
    fn the_caret_stands_below_the_word() {
        let source = Source::new("p.toml", "[image]\nnmae = 1\n");
        let shown = source.place(&(8..12)).to_string();
        assert_eq!(shown, " --> p.toml:2:1\n  |\n2 | nmae = 1\n  | ^^^^");
    }

    #[test]
    fn a_span_past_the_end_is_clamped() {
        let source = Source::new("p.toml", "x");
        assert_eq!(source.place(&(90..99)).line, 1);
    }
}
