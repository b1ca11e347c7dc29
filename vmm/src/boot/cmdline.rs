//! The kernel's command line: its words, and the serial console that a build listens to.

const SERIAL: &str = "console=ttyS0";
/// Words that hide the kernel's messages.
const HIDING: [&str; 3] = ["quiet", "splash", "rhgb"];

/// Completes a command line: `append` is added, words that hide messages are dropped when
/// `verbose`, and `console=ttyS0` becomes the last console, which makes it `/dev/console`.
pub fn complete(base: &str, append: Option<&str>, verbose: bool) -> String {
    let mut words = split(base);
    // What follows `--` is for init, so nothing can be added behind it.
    let tail = match words.iter().position(|word| word == "--") {
        Some(at) => words.split_off(at),
        None => Vec::new(),
    };
    words.extend(split(append.unwrap_or_default()));
    if verbose {
        words.retain(|word| !HIDING.contains(&word.as_str()));
    }
    let is_serial = |word: &String| word == SERIAL || word.starts_with("console=ttyS0,");
    let serial = words.iter().rfind(|word| is_serial(word)).cloned();
    words.retain(|word| !is_serial(word));
    words.push(serial.unwrap_or_else(|| SERIAL.into()));
    words.extend(tail);
    words.join(" ")
}

/// Splits at white space outside of double quotes, as the kernel does.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for character in text.chars() {
        if character.is_whitespace() && !quoted {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        quoted ^= character == '"';
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_console_comes_last_and_once() {
        assert_eq!(complete("root=/dev/vda1 ro", None, false), "root=/dev/vda1 ro console=ttyS0");
        assert_eq!(
            complete("ro console=ttyS0,115200n8 console=tty0 quiet", None, false),
            "ro console=tty0 quiet console=ttyS0,115200n8"
        );
        assert_eq!(
            complete("console=ttyS0 console=tty0 console=ttyS0,9600", Some("debug"), false),
            "console=tty0 debug console=ttyS0,9600"
        );
        assert_eq!(complete("console=ttyS01", None, false), "console=ttyS01 console=ttyS0");
    }

    #[test]
    fn quotes_and_arguments_of_init_are_kept() {
        assert_eq!(
            complete(r#"dyndbg="file a.c +p" quiet splash -- single"#, Some("x=1"), true),
            r#"dyndbg="file a.c +p" x=1 console=ttyS0 -- single"#
        );
    }
}
