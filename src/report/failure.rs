//! An error as text for a person: what failed, the chain of causes, what was seen, then the hint.

use std::fmt::Write;

use super::printable_lines;
use crate::error::Error;

/// Returns `error` as text of whole lines, safe to print whatever a guest, a server or an image has put into it.
pub fn render(error: &Error) -> String {
    let mut text = String::new();
    for fault in &error.faults {
        let _ = writeln!(text, "error: {}\n{}", fault.message, fault.place);
        if let Some(hint) = &fault.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
    }
    if !error.message.is_empty() {
        let _ = writeln!(text, "error: {}", error.message);
    }
    for cause in &error.causes {
        let _ = writeln!(text, "  because: {cause}");
    }
    for excerpt in &error.excerpts {
        let _ = writeln!(text, "  {}:", excerpt.title);
        for line in &excerpt.lines {
            let _ = writeln!(text, "  | {line}");
        }
    }
    if let Some(hint) = &error.hint {
        let _ = writeln!(text, "hint: {hint}");
    }
    printable_lines(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_parts_come_in_order() {
        let cause = std::io::Error::other("connection refused");
        let error = Error::guest("SSH did not come up")
            .because(&cause)
            .excerpt("console", vec!["login:".into()])
            .hint("Is sshd installed?");
        let expected = "error: SSH did not come up\n  because: connection refused\n  console:\n  | login:\nhint: Is sshd installed?\n";
        assert_eq!(render(&error), expected);
    }

    #[test]
    fn nothing_in_an_error_drives_the_terminal() {
        let cause = std::io::Error::other("the server said \x1b[2J");
        let error = Error::guest("Cannot read \u{9b}31m").because(&cause).hint("Look at \x07");
        let error = error.excerpt("step", vec!["a\x1b[1m".into()]);
        let shown = render(&error);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert_eq!(shown.matches('\u{fffd}').count(), 4);
        assert_eq!(shown.lines().count(), 5);
    }
}
