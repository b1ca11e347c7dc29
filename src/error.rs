//! Why a command ended without doing its work, and what that means for its exit code. Only
//! [`crate::report`] turns this into text for a person.

use std::error::Error as StdError;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::profile::Fault;

/// Whose fault it was; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The profile, an image or another input, or the host's set-up.
    Input,
    /// The command line: its options contradict each other, or a value is not one of theirs.
    Usage,
    /// Something failed inside the guest.
    Guest,
    /// The user stopped it.
    Interrupted,
    /// A defect of kvmbake.
    Internal,
}

impl Blame {
    /// Returns the process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Blame::Input => 1,
            Blame::Usage => 2,
            Blame::Guest => 3,
            Blame::Interrupted => 130,
            Blame::Internal => 255,
        }
    }
}

/// A few lines that help to understand a failure, e.g. the console's last ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Where the lines are from.
    pub title: String,
    /// The lines.
    pub lines: Vec<String>,
}

/// A failed command. The details are boxed, so that a `Result` stays small on its way up.
#[derive(Debug)]
pub struct Error(Box<Details>);

/// What is known of a failure.
#[derive(Debug)]
pub struct Details {
    /// Whose fault it was.
    pub blame: Blame,
    /// What failed: a sentence without its full stop. Empty when `faults` say it all.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// What was seen.
    pub excerpts: Vec<Excerpt>,
    /// Places in the profile.
    pub faults: Vec<Fault>,
}

impl Error {
    /// An error with nothing but its message.
    pub fn new(blame: Blame, message: impl Into<String>) -> Error {
        Error(Box::new(Details {
            blame,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            excerpts: Vec::new(),
            faults: Vec::new(),
        }))
    }

    /// The input is at fault.
    pub fn input(message: impl Into<String>) -> Error {
        Error::new(Blame::Input, message)
    }

    /// The command line is at fault.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Blame::Usage, message)
    }

    /// The profile is at fault, at these places.
    pub fn profile(faults: Vec<Fault>) -> Error {
        let mut error = Error::input("");
        error.faults = faults;
        error
    }

    /// Something failed inside the guest.
    pub fn guest(message: impl Into<String>) -> Error {
        Error::new(Blame::Guest, message)
    }

    /// The user stopped the command.
    pub fn interrupted() -> Error {
        Error::new(Blame::Interrupted, "Interrupted")
    }

    /// Adds `cause` and all that lies below it.
    pub fn because(mut self, cause: &(dyn StdError + 'static)) -> Error {
        let mut next = Some(cause);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Some libraries repeat their source in their own text.
            if !self.causes.last().is_some_and(|above| above.contains(&text)) {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// Returns what failed, and why.
    pub fn in_one_line(&self) -> String {
        std::iter::once(self.to_string())
            .chain(self.causes.iter().cloned())
            .collect::<Vec<_>>()
            .join(": ")
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds an excerpt, unless it is empty.
    pub fn excerpt(mut self, title: impl Into<String>, lines: Vec<String>) -> Error {
        if !lines.is_empty() {
            self.excerpts.push(Excerpt { title: title.into(), lines });
        }
        self
    }
}

impl Deref for Error {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.message.as_str(), self.faults.first()) {
            ("", Some(fault)) => f.write_str(&fault.message),
            (message, _) => f.write_str(message),
        }
    }
}

impl StdError for Error {}

/// Returns the error's message with those of all that caused it, outermost first.
pub fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
