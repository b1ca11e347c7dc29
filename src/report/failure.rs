//! An error as text for a person: what failed, the chain of causes, what was seen, then the hint.

use std::fmt::Write;

use super::printable;
use crate::error::Error;

/// Returns `error` as text of whole lines.
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
            let _ = writeln!(text, "  | {}", printable(line));
        }
    }
    if let Some(hint) = &error.hint {
        let _ = writeln!(text, "hint: {hint}");
    }
    text
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
}
