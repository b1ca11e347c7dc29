//! `kvmbake init`

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use kvmbake_convert::Format;

use super::print;
use super::starter::{Seen, Starter, write_new};
use crate::error::Error;
use crate::fetch::Url;
use crate::profile::absolute;

/// Writes a first profile, with comments
///
/// At a terminal it asks for what the options leave open, and takes a default for an empty answer;
/// elsewhere it takes the defaults.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile; one that exists is not replaced
    #[arg(value_name = "FILE", default_value = "kvmbake.toml")]
    file: PathBuf,
    /// The base image: a file, which is looked into, or a URL
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    /// What the images are called
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The login
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// An output's format; may be repeated
    #[arg(long = "format", value_name = "FORMAT")]
    formats: Vec<Format>,
}

/// Asks, looks, and writes.
///
/// # Errors
/// The image is none, or the profile cannot be written.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.file.exists() {
        // Told before anything is asked.
        return write_new(&args.file, "");
    }
    let asks = io::stdin().is_terminal() && io::stderr().is_terminal();
    let ask = |question: &str, default: String| match asks {
        true => asked(&mut io::stdin().lock(), &mut io::stderr(), question, default),
        false => Ok(default),
    };
    let from = match &args.from {
        Some(from) => from.clone(),
        None => ask("Base image, a file or a URL", "base.qcow2".into())?,
    };
    let path = Path::new(&from);
    let is_url = Url::is_meant(&from);
    let image = match !is_url && (args.from.is_some() || path.exists()) {
        true => Some(Seen::of(path)?),
        false => None,
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => ask("Name of the images", name_of(&from))?,
    };
    let user = match (&args.user, &image) {
        (Some(user), _) => user.clone(),
        (None, image) => {
            let default = image.as_ref().map_or("root", Seen::user);
            ask("Login", default.into())?
        }
    };
    let formats = match args.formats.as_slice() {
        [] => {
            let known = Format::ALL.map(Format::name).join(", ");
            let answer = ask(&format!("Formats, of {known}"), "qcow2".into())?;
            parsed(&answer)?
        }
        given => given.to_vec(),
    };
    let source = if is_url { from } else { relative_to(&args.file, path) };
    let starter = Starter { name, source, user, formats, image };
    write_new(&args.file, &starter.text())?;
    print(&format!("{} is written; `kvmbake validate {0}` checks it\n", args.file.display()))
}

/// Asks a question; an empty answer, or none, is `default`.
fn asked(
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    question: &str,
    default: String,
) -> Result<String, Error> {
    let failed = |error: io::Error| Error::input("Cannot ask").because(&error);
    write!(output, "{question} [{default}]: ").and_then(|()| output.flush()).map_err(failed)?;
    let mut answer = String::new();
    input.read_line(&mut answer).map_err(failed)?;
    let answer = answer.trim();
    Ok(if answer.is_empty() { default } else { answer.to_string() })
}

fn parsed(answer: &str) -> Result<Vec<Format>, Error> {
    let words = answer.split([',', ' ']).filter(|word| !word.is_empty());
    words
        .map(|word| word.parse().map_err(|_| Error::usage(format!("`{word}` is no output format"))))
        .collect()
}

/// Makes a name for images of the base's file name.
fn name_of(source: &str) -> String {
    let name = source.rsplit('/').next().unwrap_or_default();
    let name = name.split(['?', '.']).next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-+".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    match name.trim_start_matches('-') {
        "" => "image".into(),
        name => format!("{name}-baked"),
    }
}

/// Returns how a profile at `file` says the path of `image`.
fn relative_to(file: &Path, image: &Path) -> String {
    let beside = file.parent().is_none_or(|folder| folder.as_os_str().is_empty());
    let path = match beside {
        true => image.to_path_buf(),
        false => absolute(image),
    };
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_is_the_default() {
        let mut shown = Vec::new();
        let mut input = io::Cursor::new("\n web \n");
        let mut ask =
            |default: &str| asked(&mut input, &mut shown, "Name", default.into()).unwrap();
        assert_eq!([ask("a"), ask("b"), ask("c")], ["a", "web", "c"]);
        assert_eq!(String::from_utf8(shown).unwrap(), "Name [a]: Name [b]: Name [c]: ");
    }

    #[test]
    fn names_follow_from_sources_and_formats_from_words() {
        assert_eq!(name_of("https://x/a/debian-12.qcow2?y=z"), "debian-12-baked");
        assert_eq!(name_of("/"), "image");
        assert_eq!(parsed("qcow2, vmdk ova").unwrap(), [Format::Qcow2, Format::Vmdk, Format::Ova]);
        assert!(parsed("qcow3").is_err());
        assert_eq!(relative_to(Path::new("p.toml"), Path::new("a.img")), "a.img");
        assert!(relative_to(Path::new("x/p.toml"), Path::new("a.img")).starts_with('/'));
    }
}
