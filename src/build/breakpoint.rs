//! A build that stands still between two steps, for a person at its terminal.

use std::io::IsTerminal;

use tokio::sync::oneshot;

use super::guest::Guest;
use super::position::Position;
use crate::error::{Blame, Error};
use crate::profile::{Breakpoint, Fault, Profile};
use crate::report::{Event, Stage};

/// Refuses a profile with breakpoints where nobody could be asked.
///
/// # Errors
/// There is a breakpoint and no terminal.
pub fn check(profile: &Profile) -> Result<(), Error> {
    let on_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    match profile.breakpoints.first() {
        Some(breakpoint) if !on_terminal => Err(Error::profile(vec![Fault {
            message: "There is no terminal to stop at a breakpoint for".into(),
            place: breakpoint.place.clone(),
            hint: Some("`--no-breakpoints` goes past all of them".into()),
        }])),
        _ => Ok(()),
    }
}

/// Returns the breakpoints that come right before `position`.
pub fn before(profile: &Profile, position: Position) -> impl Iterator<Item = &Breakpoint> {
    let steps = match position {
        Position::Boot => None,
        Position::Step(number) => Some(number - 1),
        Position::Sealed => Some(profile.steps.len()),
    };
    profile.breakpoints.iter().filter(move |breakpoint| Some(breakpoint.after) == steps)
}

/// Waits for Enter.
///
/// # Errors
/// The person said `abort`, the guest ended, or the command was stopped.
pub async fn stop(guest: &Guest, breakpoint: &Breakpoint, position: Position) -> Result<(), Error> {
    let about = breakpoint.message.as_ref().map_or_else(String::new, |text| format!(" ({text})"));
    let text = format!(
        "stopped before {position}{about}; Enter goes on, `abort` and Enter ends the build"
    );
    guest.setup.report.event(Event::Note { stage: Stage::Step, text: &text });
    let (answer, answered) = oneshot::channel();
    // A read cannot be called off: the thread may outlive the build, and the process does not wait for it.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _ = answer.send(read.map(|length| (length, line)));
    });
    match guest.watch(answered).await {
        Ok(Ok(Ok((length, line)))) if length > 0 && line.trim() != "abort" => Ok(()),
        Ok(Ok(Ok(_))) => Err(Error::new(Blame::Interrupted, "The build was ended at a breakpoint")),
        Ok(Ok(Err(error))) => {
            Err(Error::input("The terminal cannot be read at a breakpoint").because(&error))
        }
        Ok(Err(_)) => Err(Error::new(Blame::Internal, "Nobody reads the terminal")),
        Err(ended) => Err(guest.explain(&ended)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Source;

    #[test]
    fn a_breakpoint_is_no_step_and_stands_before_the_next_one() {
        let text = "[image]\nname = \"a\"\nsource = \"b\"\n[[step]]\nbreakpoint = true\n\
                    [[step]]\nshell = \"true\"\n[[step]]\nbreakpoint = \"look\"\n\
                    [[step]]\nbreakpoint = false\n[[step]]\nbreakpoint = true\nwhen = \"env.NONE\"\n\
                    [[output]]\nformat = \"raw\"\n";
        let text = text.replace("env.NONE", "'no' == 'yes'");
        let profile = Profile::parse(Source::new("p.toml", text)).unwrap();
        assert_eq!(profile.steps.len(), 1);
        let messages = |position| -> Vec<Option<&str>> {
            before(&profile, position).map(|breakpoint| breakpoint.message.as_deref()).collect()
        };
        assert!(messages(Position::Boot).is_empty());
        assert_eq!(messages(Position::Step(1)), [None]);
        assert_eq!(messages(Position::Sealed), [Some("look")]);
    }
}
