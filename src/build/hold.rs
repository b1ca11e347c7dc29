//! A build whose guest stays after a failure, until a person is done with it: the step is run again,
//! or the build ends with its failure.
//!
//! The guest that failed is never gone on with. To try again is to plan anew with the profile as it is
//! then, and to build from the last layer that still fits; so a result never depends on what was done by
//! hand, and changes of earlier steps count as in any other run.

use std::io;
use std::sync::Arc;

use kvmbake_provision::terminal::Terminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::cancel::Cancel;
use super::control::{Control, refusal};
use super::guest::Guest;
use super::plan::Plan;
use crate::control::Refusal;
use crate::error::{Blame, Error};
use crate::profile;
use crate::report::{Event, Report, Stage};

/// Longest answer to a question.
const LONGEST_ANSWER: usize = 256;

/// What becomes of the guest when something fails in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// The build ends
    Abort,
    /// The guest stays until `kvmbake retry` or `kvmbake stop`
    Keep,
    /// As `keep`, with a terminal in the guest where the command runs on one
    Shell,
}

/// Reads the profile anew.
pub type Reload = Arc<dyn Fn() -> Result<Plan, Error> + Send + Sync>;

/// What a person may do after a failure.
#[derive(Clone)]
pub struct Hold {
    /// What becomes of the guest, whatever a step says.
    pub on_error: Option<OnError>,
    /// How to try again.
    pub reload: Reload,
}

impl Hold {
    /// Returns what becomes of the guest of a step that says this itself.
    pub fn on_error(&self, step: profile::OnError) -> OnError {
        self.on_error.unwrap_or(match step {
            profile::OnError::Keep => OnError::Keep,
            profile::OnError::Shell => OnError::Shell,
            profile::OnError::Abort | profile::OnError::Ignore | profile::OnError::Retry(_) => {
                OnError::Abort
            }
        })
    }
}

/// Why a build did not come to its goal.
pub enum Stopped {
    /// It failed.
    Failed(Error),
    /// It is to begin anew, with this plan.
    Again(Box<Plan>),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped::Failed(error)
    }
}

impl Stopped {
    /// Returns the failure of a build that nobody was asked about.
    pub fn into_error(self) -> Error {
        match self {
            Stopped::Failed(error) => error,
            Stopped::Again(_) => Error::new(Blame::Internal, "The build was to begin anew"),
        }
    }
}

/// A failure, and the guest that it happened in.
pub struct Failed {
    /// What failed.
    pub error: Error,
    /// The guest, when there is one.
    pub guest: Option<Box<Guest>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, guest: None }
    }
}

impl Failed {
    /// A failure in `guest`.
    pub fn with(guest: Guest, error: Error) -> Failed {
        Failed { error, guest: Some(Box::new(guest)) }
    }
}

/// One who wants the step to run again, and waits for what becomes of that.
pub type Request = oneshot::Sender<Result<String, Refusal>>;

/// What the waiting needs.
pub struct Waiting<'w> {
    /// What becomes of the guest.
    pub on_error: OnError,
    /// How to try again.
    pub reload: &'w Reload,
    /// What failed, in a few words: `step 2 (roles)`.
    pub what: String,
    /// Whether there are layers to go back to.
    pub has_layers: bool,
    /// What others may do.
    pub control: &'w Control,
    /// Whether to stop.
    pub cancel: &'w Cancel,
    /// Where news go.
    pub report: &'w dyn Report,
}

/// What a person wants.
enum Wish {
    /// To try again; somebody may wait for what becomes of it.
    Retry(Option<Request>),
    /// To end the build.
    Abort,
}

impl Waiting<'_> {
    /// Waits with the guest of a failure until a person is done with it.
    pub async fn wait(&self, failed: Failed) -> Stopped {
        let Failed { error, guest } = failed;
        // What did not happen in the guest is not found out there.
        let wanted = self.on_error != OnError::Abort && error.blame == Blame::Guest;
        let guest = guest.filter(|_| wanted && !self.cancel.is_set());
        let Some(mut guest) = guest else { return Stopped::Failed(error) };
        let mut requests = self.control.keep(&format!("{} failed, guest kept", self.what));
        self.report.event(Event::Kept { error: &error, help: &self.help() });
        let plan = self.until_done(&mut guest, &mut requests).await;
        self.control.set_state("ending", false);
        plan.map_or(Stopped::Failed(error), |plan| Stopped::Again(Box::new(plan)))
    }

    /// Returns the plan to go on with; none when the build is to end.
    async fn until_done(
        &self,
        guest: &mut Guest,
        requests: &mut mpsc::UnboundedReceiver<Request>,
    ) -> Option<Plan> {
        let terminal = match self.on_error {
            OnError::Shell => Terminal::open().ok(),
            OnError::Abort | OnError::Keep => None,
        };
        let end = guest.life.end();
        let told = async {
            let text = format!("the guest has ended: {}; `retry` starts another one", end.await);
            self.note(&text);
            std::future::pending::<()>().await;
        };
        tokio::pin!(told);
        let mut begins = true;
        loop {
            let prompt = self.prompt(terminal.as_ref(), guest, std::mem::take(&mut begins));
            let wish = tokio::select! {
                biased;
                () = self.cancel.wait() => Wish::Abort,
                Some(request) = requests.recv() => Wish::Retry(Some(request)),
                wish = prompt => wish,
                () = &mut told => Wish::Abort,
            };
            let Wish::Retry(request) = wish else { return None };
            if let Some(plan) = self.again(request).await {
                return Some(plan);
            }
        }
    }

    /// Reads the profile anew and tells whoever asked what comes of it.
    async fn again(&self, request: Option<Request>) -> Option<Plan> {
        let reload = Arc::clone(self.reload);
        let read = tokio::task::spawn_blocking(move || reload());
        let read = read.await.unwrap_or_else(|error| {
            Err(Error::new(Blame::Internal, "Reading the profile died").because(&error))
        });
        match read {
            Ok(plan) => {
                let text = format!("{} is tried again, {}", self.what, self.begins());
                self.note(&text);
                request.map(|request| request.send(Ok(text)));
                Some(plan)
            }
            Err(error) => {
                self.note("not tried again, the guest stays: the profile has a fault");
                match request {
                    Some(request) => drop(request.send(Err(refusal(&error)))),
                    None => self.report.event(Event::Failed(&error)),
                }
                None
            }
        }
    }

    /// Lets a person at `terminal` work in the guest, and asks what to do then. Without a terminal, or
    /// when it is left, others are waited for.
    async fn prompt(&self, terminal: Option<&Terminal>, guest: &mut Guest, begins: bool) -> Wish {
        let Some(terminal) = terminal else { return std::future::pending().await };
        if begins {
            self.shell(guest).await;
        }
        loop {
            match answer(terminal).await.as_deref() {
                Ok("r" | "retry") => return Wish::Retry(None),
                Ok("a" | "abort") => return Wish::Abort,
                Ok("s" | "shell") => self.shell(guest).await,
                Ok(_) => {}
                Err(_) => return std::future::pending().await,
            }
        }
    }

    async fn shell(&self, guest: &mut Guest) {
        if !guest.was_reached() {
            return self.note("nobody has logged in to this guest: `kvmbake console` shows more");
        }
        if let Err(error) = guest.terminal(None).await
            && !self.cancel.is_set()
        {
            self.note(&error.in_one_line());
        }
    }

    fn begins(&self) -> &'static str {
        match self.has_layers {
            true => "from the last layer that fits the profile as it is now",
            false => "from the base on, as no layers are kept",
        }
    }

    /// What a person can do, a line each.
    fn help(&self) -> Vec<String> {
        let Some(id) = self.control.id() else {
            return vec!["the guest stays until Ctrl-C".into()];
        };
        let mut lines = vec![
            format!("the guest stays, and is left as it is; the build's id is {id}"),
            format!("kvmbake ssh {id}      a terminal in it"),
            format!("kvmbake console {id}  its serial console"),
            format!("kvmbake retry {id}    tries again {}", self.begins()),
            format!("kvmbake stop {id}     or Ctrl-C here ends the build"),
        ];
        if self.on_error == OnError::Shell {
            lines.push("when the terminal ends, you are asked what to do".into());
        }
        lines
    }

    fn note(&self, text: &str) {
        self.report.event(Event::Note { stage: Stage::Step, text });
    }
}

/// Asks the person at `terminal` what to do.
async fn answer(mut terminal: &Terminal) -> io::Result<String> {
    terminal.write_all(b"retry, shell or abort? ").await?;
    let mut line = Vec::new();
    let mut chunk = [0; 256];
    // A terminal hands over whole lines; one beyond the limit is none of the answers.
    while !line.contains(&b'\n') && line.len() < LONGEST_ANSWER {
        match terminal.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => line.extend_from_slice(&chunk[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&line).trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_what_the_command_line_does_not() {
        let hold = |on_error| Hold {
            on_error,
            reload: Arc::new(|| Err(Error::input("There is no profile"))),
        };
        for (given, step, expected) in [
            (None, profile::OnError::Abort, OnError::Abort),
            (None, profile::OnError::Keep, OnError::Keep),
            (None, profile::OnError::Shell, OnError::Shell),
            (None, profile::OnError::Retry(2), OnError::Abort),
            (Some(OnError::Keep), profile::OnError::Shell, OnError::Keep),
            (Some(OnError::Keep), profile::OnError::Abort, OnError::Keep),
            (Some(OnError::Abort), profile::OnError::Keep, OnError::Abort),
        ] {
            assert_eq!(hold(given).on_error(step), expected, "{given:?} {step:?}");
        }
    }
}
