//! The profile's text: turns byte offsets into files, lines and columns, and draws the place an error
//! points at.
//!
//! A profile may include others ([`super::include`]). All files lie behind each other in one range of
//! offsets, so that a span says which of them it is in.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A profile as it was read: where from, and its text, with those that it includes.
#[derive(Debug, Clone)]
pub struct Source {
    /// The profile, then what it includes; never empty.
    files: Vec<File>,
}

/// One file of a profile.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub path: PathBuf,
    pub text: String,
    /// The offset of its first byte.
    pub start: usize,
    /// The files that it includes, in order, by their places in the list.
    pub includes: Vec<usize>,
}

impl File {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Returns the folder that relative paths in it start from.
    fn folder(&self) -> &Path {
        folder_of(&self.path)
    }
}

/// Returns the folder of a file, also where its path is but a name.
pub fn folder_of(file: &Path) -> &Path {
    let folder = file.parent();
    folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the path as programs find it that run elsewhere; as it is where the working folder is gone.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

impl Source {
    /// Wraps `text`, which came from `path`.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        let (path, text) = (path.into(), text.into());
        Source { files: vec![File { path, text, start: 0, includes: Vec::new() }] }
    }

    /// Adds a file that the one at `parent` in the list includes.
    pub(super) fn add(&mut self, parent: usize, path: PathBuf, text: String) -> usize {
        // One offset between two files is neither's, so that the end of one is not the next.
        let start = self.files.last().map_or(0, |last| last.end() + 1);
        let index = self.files.len();
        self.files.push(File { path, text, start, includes: Vec::new() });
        if let Some(parent) = self.files.get_mut(parent) {
            parent.includes.push(index);
        }
        index
    }

    /// Returns the profile, then the files that it includes.
    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// Returns the paths of the profile and of all that it includes.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Returns the path that the profile was read from.
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// Returns the folder that relative paths in the profile start from.
    pub fn folder(&self) -> &Path {
        self.files[0].folder()
    }

    /// Returns the folder that relative paths at `span` start from: that of its file.
    pub fn folder_at(&self, span: &Range<usize>) -> &Path {
        self.file_at(span.start).folder()
    }

    /// Returns the profile's text, without what it includes.
    pub fn text(&self) -> &str {
        &self.files[0].text
    }

    /// Returns all that the profile consists of, file by file.
    pub fn whole_text(&self) -> String {
        self.files.iter().map(|file| file.text.as_str()).collect()
    }

    /// Returns the text at `span`.
    pub fn raw(&self, span: &Range<usize>) -> &str {
        let file = self.file_at(span.start);
        let within = |at: usize| at.saturating_sub(file.start);
        file.text.get(within(span.start)..within(span.end)).unwrap_or_default()
    }

    fn file_at(&self, offset: usize) -> &File {
        let after = self.files.partition_point(|file| file.start <= offset);
        &self.files[after.saturating_sub(1)]
    }

    /// Returns the place of a span: file, line and column of its first character, both from 1.
    pub fn place(&self, span: &Range<usize>) -> Place {
        let file = self.file_at(span.start);
        let text = &file.text;
        let start = floor_boundary(text, span.start - file.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor_boundary(text, span.end.saturating_sub(file.start).min(line_end));
        let width = text[start..end.max(start)].chars().count();
        Place {
            path: file.path.clone(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: width.max(1),
            text: text[line_start..line_end].trim_end().to_string(),
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

impl Place {
    /// Orders places as a person reads them: file by file, from top to bottom.
    pub fn order(&self) -> impl Ord + use<> {
        (self.path.clone(), self.line, self.column)
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

    #[test]
    fn a_span_says_which_file_it_is_in() {
        let mut source = Source::new("p.toml", "a = 1\n");
        source.add(0, "sub/q.toml".into(), "\nb = 2".into());
        let place = source.place(&(8..9));
        assert_eq!((place.path.as_path(), place.line), (Path::new("sub/q.toml"), 2));
        assert_eq!(source.raw(&(8..13)), "b = 2");
        assert_eq!(source.folder_at(&(8..9)), Path::new("sub"));
        assert_eq!(source.folder_at(&(5..6)), Path::new("."));
        assert_eq!(source.place(&(5..6)).path, Path::new("p.toml"));
    }
}
