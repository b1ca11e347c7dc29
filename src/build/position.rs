//! Where a build stands: the points at which its guest, or what is left of it, becomes a layer.

use std::fmt;

use crate::error::Error;
use crate::profile::Profile;

/// A point in a build's life. They follow each other in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Position {
    /// The guest has booted and is ready for steps.
    Boot,
    /// The guest after a step, counted from 1.
    Step(usize),
    /// The finished disk of a guest that was shut down.
    Sealed,
}

impl Position {
    /// Returns all positions of a build with so many steps.
    pub fn all(steps: usize) -> impl Iterator<Item = Position> {
        let steps = (1..=steps).map(Position::Step);
        std::iter::once(Position::Boot).chain(steps).chain([Position::Sealed])
    }

    /// Finds the position that a person means by `text`: `boot`, a step's number or its title, or
    /// `sealed`.
    ///
    /// # Errors
    /// The profile has no such step, or several.
    pub fn find(profile: &Profile, text: &str) -> Result<Position, Error> {
        let steps = &profile.steps;
        match text {
            "boot" => return Ok(Position::Boot),
            "sealed" | "seal" => return Ok(Position::Sealed),
            _ => {}
        }
        if let Ok(number) = text.parse::<usize>()
            && (1..=steps.len()).contains(&number)
        {
            return Ok(Position::Step(number));
        }
        let named = |test: &dyn Fn(&str) -> bool| {
            let fitting = steps.iter().enumerate().filter(|(_, step)| test(&step.title));
            fitting.map(|(index, _)| Position::Step(index + 1)).collect::<Vec<_>>()
        };
        let exact = named(&|title| title == text);
        let found = if exact.is_empty() { named(&|title| title.starts_with(text)) } else { exact };
        let known = || {
            let steps = steps.iter().enumerate();
            let steps: Vec<String> =
                steps.map(|(index, step)| format!("{} ({})", index + 1, step.title)).collect();
            format!(
                "Steps are boot, {}{}sealed",
                steps.join(", "),
                if steps.is_empty() { "" } else { ", " }
            )
        };
        match found.as_slice() {
            [position] => Ok(*position),
            [] => Err(Error::input(format!("The profile has no step `{text}`")).hint(known())),
            _ => Err(Error::input(format!("Several steps are called `{text}`")).hint(known())),
        }
    }

    /// Returns what a person calls it, in a profile's terms.
    pub fn title(self, profile: &Profile) -> String {
        match self {
            Position::Boot => "ready for steps".into(),
            Position::Step(number) => {
                profile.steps.get(number - 1).map_or_else(String::new, |step| step.title.clone())
            }
            Position::Sealed => "sealed disk".into(),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Boot => f.write_str("boot"),
            Position::Step(number) => write!(f, "step {number}"),
            Position::Sealed => f.write_str("sealed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Source;

    fn profile() -> Profile {
        let text = "[image]\nname = \"a\"\nsource = \"b\"\n[[step]]\nshell = \"apt-get update\"\n\
                    [[step]]\nname = \"roles\"\nshell = \"true\"\n[[step]]\nname = \"7\"\nshell = \"true\"\n\
                    [[output]]\nformat = \"raw\"\n";
        Profile::parse(Source::new("p.toml", text)).unwrap()
    }

    #[test]
    fn a_step_is_found_by_number_by_title_and_by_how_the_title_begins() {
        let profile = profile();
        let find = |text| Position::find(&profile, text);
        assert_eq!(find("boot").unwrap(), Position::Boot);
        assert_eq!(find("2").unwrap(), Position::Step(2));
        assert_eq!(find("roles").unwrap(), Position::Step(2));
        assert_eq!(find("apt-get").unwrap(), Position::Step(1));
        assert_eq!(find("7").unwrap(), Position::Step(3));
        assert_eq!(find("sealed").unwrap(), Position::Sealed);
        let error = find("4").unwrap_err();
        assert!(error.hint.as_ref().unwrap().contains("2 (roles)"), "{error:?}");
        assert!(find("").is_err());
    }

    #[test]
    fn positions_follow_each_other() {
        let all: Vec<Position> = Position::all(2).collect();
        assert_eq!(all, [Position::Boot, Position::Step(1), Position::Step(2), Position::Sealed]);
        assert!(all.is_sorted());
    }
}
