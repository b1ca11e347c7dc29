//! What a command prints on its way from the guest: chunks as they arrive, cut into lines, the last ones kept.
//!
//! Everything here is bounded, whatever the guest sends: a line is cut at [`MAX_LINE`], a [`Tail`] holds a fixed number
//! of lines. Bytes that are no UTF-8 are replaced, control characters are left for whoever shows them.

use std::collections::VecDeque;

/// The longest line that is passed on whole, in bytes; longer ones come in pieces.
pub const MAX_LINE: usize = 4096;

/// Which of a command's two outputs a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes what a command prints, as it arrives.
///
/// Called from the task that reads the connection: an implementation that blocks stops the guest's program from
/// printing further (its pipe fills), and nothing else.
pub trait Output: Send {
    /// Takes the next bytes of one stream; pieces end anywhere, also inside a line or a character.
    fn write(&mut self, stream: Stream, bytes: &[u8]);
}

/// Forgets everything.
impl Output for () {
    fn write(&mut self, _: Stream, _: &[u8]) {}
}

/// Keeps everything: for commands whose output is known to be short.
impl Output for Vec<u8> {
    fn write(&mut self, _: Stream, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Cuts one stream into lines.
///
/// A carriage return before the newline is dropped. A lone carriage return starts the line again, as it does on a
/// terminal: of a progress bar's many states the last one is passed on.
#[derive(Debug, Default)]
pub struct LineBuffer {
    held: Vec<u8>,
    returned: bool,
}

impl LineBuffer {
    /// Takes bytes and calls `each` for every line that they complete.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    self.returned = false;
                    self.emit(&mut each);
                }
                b'\r' => self.returned = true,
                _ => {
                    if std::mem::take(&mut self.returned) {
                        self.held.clear();
                    }
                    self.held.push(byte);
                    if self.held.len() >= MAX_LINE {
                        self.emit(&mut each);
                    }
                }
            }
        }
    }

    /// Calls `each` for an unfinished last line, if there is one.
    pub fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.held.is_empty() {
            self.emit(&mut each);
        }
    }

    fn emit(&mut self, each: &mut impl FnMut(&str)) {
        each(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}

/// One kept line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it was printed.
    pub stream: Stream,
    /// The text, without the newline.
    pub text: String,
}

/// The last lines that a command printed, both streams in the order of arrival.
#[derive(Debug)]
pub struct Tail {
    lines: VecDeque<Line>,
    limit: usize,
    buffers: [LineBuffer; 2],
}

impl Tail {
    /// Keeps at most `limit` lines.
    pub fn new(limit: usize) -> Tail {
        Tail { lines: VecDeque::new(), limit: limit.max(1), buffers: Default::default() }
    }

    /// Returns the lines, oldest first, an unfinished last line included.
    pub fn into_lines(mut self) -> Vec<Line> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (lines, limit) = (&mut self.lines, self.limit);
            self.buffers[stream as usize].finish(|text| keep(lines, limit, stream, text));
        }
        self.lines.into()
    }
}

impl Output for Tail {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let (lines, limit) = (&mut self.lines, self.limit);
        self.buffers[stream as usize].push(bytes, |text| keep(lines, limit, stream, text));
    }
}

fn keep(lines: &mut VecDeque<Line>, limit: usize, stream: Stream, text: &str) {
    if lines.len() == limit {
        lines.pop_front();
    }
    lines.push_back(Line { stream, text: text.to_owned() });
}

/// Keeps both streams apart, up to a limit each; what is beyond is counted and dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    limit: usize,
}

impl Capture {
    pub(crate) fn new(limit: usize) -> Capture {
        Capture { stdout: Vec::new(), stderr: Vec::new(), limit }
    }
}

impl Output for Capture {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let room = self.limit.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut all = Vec::new();
        for piece in pieces {
            buffer.push(piece, |line| all.push(line.to_owned()));
        }
        buffer.finish(|line| all.push(line.to_owned()));
        all
    }

    #[test]
    fn lines_are_cut_across_pieces_and_an_unfinished_one_comes_last() {
        assert_eq!(lines(&[b"one\ntw", b"o\r", b"\n\nthr", b"ee"]), ["one", "two", "", "three"]);
    }

    #[test]
    fn a_progress_bar_leaves_its_last_state() {
        assert_eq!(lines(&[b"10%\r50%\r", b"100%\ndone\n"]), ["100%", "done"]);
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let long = vec![b'x'; MAX_LINE * 2 + 3];
        let cut = lines(&[&long]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 3]);
    }

    #[test]
    fn the_tail_keeps_the_last_lines_of_both_streams() {
        let mut tail = Tail::new(3);
        tail.write(Stream::Stdout, b"a\nb\nc\n");
        tail.write(Stream::Stderr, b"oops");
        let kept = tail.into_lines();
        assert_eq!(
            kept.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(),
            ["b", "c", "oops"]
        );
        assert_eq!(kept[2].stream, Stream::Stderr);
    }
}
