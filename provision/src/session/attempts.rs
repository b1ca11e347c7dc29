//! Tries to log in until it works, or until time is up, and remembers what stood in the way.
//!
//! A guest that boots shows its causes in turn: no answer, refused, silence, a banner without our key. Only the last
//! ones say what is wrong when it never works, so causes are kept with how often and how long each was seen.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout_at};

use super::{ConnectError, Login, Session};

/// Between two attempts at a guest that does not answer yet: the first pause, and the longest. A restored guest is a
/// matter of milliseconds, one that boots is not to be kept busy by us.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(250);

/// After a refused key. sshd since 9.8 shuts a peer out that fails more often (`PerSourcePenalties`, 5 s a failure).
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(6);

/// One cause, as often as it came without another between.
#[derive(Debug)]
pub struct Attempt {
    /// The last error of this cause.
    pub error: AttemptError,
    /// How often in a row.
    pub count: u32,
    /// When it came first, from the beginning.
    pub first: Duration,
    /// When it came last.
    pub last: Duration,
}

/// Why one attempt failed: no stream, or no session over it.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The guest's port was not reached.
    #[error("The guest's SSH port was not reached: {0}")]
    Dial(#[source] io::Error),
    /// The port was reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl AttemptError {
    fn same_cause(&self, other: &AttemptError) -> bool {
        match (self, other) {
            (AttemptError::Dial(one), AttemptError::Dial(two)) => {
                one.kind() == two.kind() && one.to_string() == two.to_string()
            }
            (AttemptError::Connect(one), AttemptError::Connect(two)) => {
                std::mem::discriminant(one) == std::mem::discriminant(two)
            }
            _ => false,
        }
    }
}

/// All causes in their order.
#[derive(Debug, Default)]
pub struct Attempts {
    causes: Vec<Attempt>,
}

impl Attempts {
    /// Returns the causes, the oldest first; at most 64 are kept.
    pub fn causes(&self) -> &[Attempt] {
        &self.causes
    }

    /// Returns the last cause.
    pub fn last(&self) -> Option<&Attempt> {
        self.causes.last()
    }

    /// Keeps an error; whether its cause is not the one before it.
    fn note(&mut self, error: AttemptError, at: Duration) -> bool {
        if let Some(last) = self.causes.last_mut()
            && last.error.same_cause(&error)
        {
            last.error = error;
            last.count += 1;
            last.last = at;
            return false;
        }
        if self.causes.len() == 64 {
            self.causes.remove(0);
        }
        self.causes.push(Attempt { error, count: 1, first: at, last: at });
        true
    }
}

/// Of errors, and when each of them came.
impl FromIterator<(AttemptError, Duration)> for Attempts {
    fn from_iter<I: IntoIterator<Item = (AttemptError, Duration)>>(errors: I) -> Attempts {
        let mut attempts = Attempts::default();
        for (error, at) in errors {
            attempts.note(error, at);
        }
        attempts
    }
}

/// There was no session in time, or there can be none.
#[derive(Debug, thiserror::Error)]
#[error("No SSH session after {:.0} s: {}", waited.as_secs_f64(), last_text(attempts))]
pub struct GaveUp {
    /// How long it was tried.
    pub waited: Duration,
    /// What was seen.
    pub attempts: Attempts,
}

fn last_text(attempts: &Attempts) -> String {
    attempts.last().map_or_else(|| "no attempt ended".into(), |last| last.error.to_string())
}

/// Dials and logs in until a session stands, at most for `limit`. `after` hears of each attempt that failed, and may end it.
///
/// # Errors
/// When the time is up, when `after` ends it, or when a cause shows that no further attempt can help.
pub async fn connect_until<S, D, F>(
    mut dial: D,
    login: &Login,
    limit: Duration,
    mut after: impl FnMut(&Attempts) -> ControlFlow<()>,
) -> Result<Session, GaveUp>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: FnMut() -> F,
    F: Future<Output = io::Result<S>>,
{
    let started = Instant::now();
    let deadline = started + limit;
    let mut attempts = Attempts::default();
    let mut next_pause = FIRST_PAUSE;
    loop {
        let attempt = async {
            let stream = dial().await.map_err(AttemptError::Dial)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let login = Login { timeout: login.timeout.min(left), ..login.clone() };
            Session::log_in(stream, &login).await.map_err(AttemptError::Connect)
        };
        let error = match timeout_at(deadline + Duration::from_millis(100), attempt).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => error,
            Err(_) => AttemptError::Dial(io::ErrorKind::TimedOut.into()),
        };
        let refused = matches!(&error, AttemptError::Connect(ConnectError::KeyRefused { .. }));
        let hopeless = matches!(&error, AttemptError::Connect(error) if !error.is_transient());
        if attempts.note(error, started.elapsed()) {
            // Something has moved in the guest: the next thing may follow soon.
            next_pause = FIRST_PAUSE;
        }
        let pause = if refused { PAUSE_AFTER_REFUSAL } else { next_pause };
        next_pause = (next_pause * 2).min(PAUSE);
        let ended = hopeless || after(&attempts).is_break();
        if ended || Instant::now() + pause >= deadline {
            return Err(GaveUp { waited: started.elapsed(), attempts });
        }
        sleep(pause).await;
    }
}
