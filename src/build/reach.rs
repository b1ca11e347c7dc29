//! How far a guest came that nobody could log in to, seen from outside: its console, its disk, its
//! network, its SSH port.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use kvmbake_disk::Counts;
use kvmbake_net::{Activity, Lease};
use kvmbake_provision::session::{AttemptError, Attempts, ConnectError};

use super::milestones::Milestones;
use crate::profile::units::Size;

/// How long a guest may show a login prompt before it uses its network. A slow one gets as long again
/// as it took to the prompt.
const MUTE: Duration = Duration::from_secs(60);

/// What is known of the guest.
pub struct Reach<'r> {
    /// Its console.
    pub boot: &'r Milestones,
    /// What went through its disk.
    pub disk: Counts,
    /// What went on in its network.
    pub activity: Activity,
    /// The last requests that it was answered or denied.
    pub requests: Vec<String>,
    /// The attempts to log in.
    pub attempts: &'r Attempts,
    /// The login.
    pub user: &'r str,
}

/// Returns for how long a guest has shown a login prompt, if that is long enough to give it up: it is as
/// ready as it will be, and has sent no frame, or has neither taken a lease nor used its address.
pub fn mute_for(boot: &Milestones, activity: &Activity, now: Instant) -> Option<Duration> {
    let (stood, took) = boot.prompt(now)?;
    let is_mute = activity.lease != Lease::Bound && activity.address_seen.is_none();
    (is_mute && stood >= MUTE.max(took)).then_some(stood)
}

impl Reach<'_> {
    /// Returns what stands in the way, as the end of a sentence.
    pub fn cause(&self) -> String {
        let last = self.attempts.last().map(|attempt| &attempt.error);
        let answered = matches!(last, Some(AttemptError::Connect(_)));
        if self.activity.frames_from_guest == 0 {
            "the guest never used its network".into()
        } else if self.activity.lease != Lease::Bound && !answered {
            "the guest never took an address by DHCP".into()
        } else {
            last.map_or_else(
                || "no attempt came to an end".into(),
                |error| lower_first(&error.to_string()),
            )
        }
    }

    /// Returns what may help.
    pub fn hint(&self) -> Option<String> {
        match self.attempts.last().map(|attempt| &attempt.error) {
            Some(AttemptError::Connect(ConnectError::KeyRefused { .. })) => Some(format!(
                "Does the image have the user `{}`, and does the seed ([seed]) reach it? \
                 [ssh] user and private_key choose another login",
                self.user
            )),
            Some(AttemptError::Dial(error)) if error.kind() == ErrorKind::ConnectionRefused => Some(
                "The guest has a network but nothing listens on port 22: is sshd installed and enabled?".into(),
            ),
            _ => None,
        }
    }

    /// Returns how far the guest came, a line for each way to see it.
    pub fn lines(&self) -> Vec<String> {
        let Counts { read_bytes, written_bytes, .. } = self.disk;
        let mut lines = vec![
            format!("console: {}", self.boot.text()),
            format!("disk: {} read, {} written", Size(read_bytes), Size(written_bytes)),
            format!("network: {}", self.network()),
            format!("DHCP: {}", self.lease()),
        ];
        let requests = self.requests.iter().map(|request| format!("asked for: {request}"));
        lines.extend(requests);
        lines.push(format!("port 22: {}", self.port()));
        lines
    }

    fn network(&self) -> String {
        let Activity { frames_from_guest, dns_queries, tcp_flows_total, .. } = self.activity;
        match (self.activity.driver_up, frames_from_guest) {
            (false, 0) => "no driver took the device into use".into(),
            (true, 0) => "a driver is there, no frame was sent".into(),
            (_, frames) => format!(
                "{frames} frames sent, {dns_queries} DNS queries, {tcp_flows_total} TCP connections"
            ),
        }
    }

    fn lease(&self) -> &'static str {
        match (self.activity.lease, self.activity.address_seen) {
            (Lease::None, None) => "not asked for an address",
            (Lease::None, Some(_)) => {
                "not asked for an address; the guest uses its own all the same"
            }
            (Lease::Offered, _) => "an address was offered and not taken",
            (Lease::Bound, None) => "the address was taken, and is not answered for",
            (Lease::Bound, Some(_)) => "the address was taken",
            (Lease::Refused, _) => "the guest insists on another address",
            (Lease::Released, _) => "the address was given back",
        }
    }

    /// The furthest that any attempt came.
    fn port(&self) -> String {
        let errors = self.attempts.causes().iter().map(|attempt| &attempt.error);
        match errors.max_by_key(|error| rank(error)) {
            None => "no attempt came to an end".into(),
            Some(AttemptError::Dial(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                "refused".into()
            }
            Some(AttemptError::Dial(_)) => "no answer".into(),
            Some(AttemptError::Connect(error)) => match error {
                ConnectError::ClosedBeforeBanner => "open, closed before a banner came".into(),
                ConnectError::NoBanner { .. } => "open, no banner".into(),
                ConnectError::NotSsh { .. } => "open, and not SSH".into(),
                ConnectError::KeyRefused { offered, .. } => {
                    let none = if offered.is_empty() { "none" } else { "" };
                    format!(
                        "SSH, the key of {} refused; authentication methods offered: {none}{}",
                        self.user,
                        offered.join(", ")
                    )
                }
                _ => "SSH banner seen, no session".into(),
            },
        }
    }
}

/// How far an attempt came.
fn rank(error: &AttemptError) -> u8 {
    match error {
        AttemptError::Dial(error) if error.kind() == ErrorKind::ConnectionRefused => 1,
        AttemptError::Dial(_) => 0,
        AttemptError::Connect(error) => match error {
            ConnectError::ClosedBeforeBanner | ConnectError::NoBanner { .. } => 2,
            ConnectError::NotSsh { .. } => 3,
            ConnectError::KeyRefused { .. } => 5,
            _ => 4,
        },
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(kind: ErrorKind) -> AttemptError {
        AttemptError::Dial(kind.into())
    }

    fn refused() -> AttemptError {
        let offered = vec!["publickey".into(), "password".into()];
        AttemptError::Connect(ConnectError::KeyRefused {
            user: "debian".into(),
            offered,
            message: None,
        })
    }

    fn attempts(errors: impl IntoIterator<Item = AttemptError>) -> Attempts {
        errors.into_iter().map(|error| (error, Duration::ZERO)).collect()
    }

    /// What is said of a guest with this activity after these attempts.
    fn said(activity: Activity, attempts: &Attempts) -> (String, String) {
        let boot = Milestones::new(Instant::now());
        let requests = vec!["GET 10.0.2.100:80/vm-bootstrap 404".into()];
        let disk = Counts { read_bytes: 5 << 20, ..Counts::default() };
        let user = "debian";
        let reach = Reach { boot: &boot, disk, activity, requests, attempts, user };
        (reach.cause(), reach.lines().join("\n"))
    }

    #[test]
    fn each_way_to_be_silent_has_its_words() {
        let mut activity = Activity::default();
        let silent = attempts([dial(ErrorKind::TimedOut)]);
        let (cause, lines) = said(activity, &silent);
        assert_eq!(cause, "the guest never used its network");
        for part in ["5 MiB read", "no driver", "not asked for an address", "port 22: no answer"] {
            assert!(lines.contains(part), "no {part:?} in\n{lines}");
        }
        assert!(lines.contains("asked for: GET 10.0.2.100:80/vm-bootstrap 404"), "{lines}");
        (activity.driver_up, activity.frames_from_guest) = (true, 7);
        activity.dns_queries = 3;
        activity.lease = Lease::Offered;
        let (cause, lines) = said(activity, &silent);
        assert_eq!(cause, "the guest never took an address by DHCP");
        assert!(lines.contains("7 frames sent, 3 DNS queries, 0 TCP connections"), "{lines}");
        assert!(lines.contains("offered and not taken"), "{lines}");
        activity.lease = Lease::Bound;
        activity.address_seen = Some(Instant::now());
        let (cause, lines) = said(activity, &attempts([dial(ErrorKind::ConnectionRefused)]));
        assert!(cause.starts_with("the guest's SSH port was not reached"), "{cause}");
        assert!(lines.ends_with("port 22: refused"), "{lines}");
    }

    #[test]
    fn the_furthest_attempt_counts_whatever_came_last() {
        let mut activity = Activity::default();
        (activity.frames_from_guest, activity.lease) = (1, Lease::Bound);
        let tried = attempts([dial(ErrorKind::TimedOut), refused(), dial(ErrorKind::TimedOut)]);
        let (_, lines) = said(activity, &tried);
        let expected =
            "the key of debian refused; authentication methods offered: publickey, password";
        assert!(lines.contains(expected), "{lines}");
        let closed = AttemptError::Connect(ConnectError::ClosedBeforeBanner);
        let (cause, lines) = said(activity, &attempts([dial(ErrorKind::TimedOut), closed]));
        assert!(lines.ends_with("port 22: open, closed before a banner came"), "{lines}");
        assert_eq!(cause, "the connection was closed before an SSH banner came");
    }

    /// A guest whose prompt came after so many seconds, asked after so many more.
    fn mute(prompt: u64, then: u64, activity: &Activity) -> bool {
        let begin = Instant::now();
        let mut boot = Milestones::new(begin);
        let at = begin + Duration::from_secs(prompt);
        boot.unfinished(b"web login: ", at);
        mute_for(&boot, activity, at + Duration::from_secs(then)).is_some()
    }

    #[test]
    fn a_guest_at_its_prompt_is_given_up_once_it_has_had_time_for_its_network() {
        let mut activity = Activity::default();
        assert!(!mute(5, 59, &activity) && mute(5, 60, &activity));
        // A slow host's guest gets more.
        assert!(!mute(120, 119, &activity) && mute(120, 120, &activity));
        activity.frames_from_guest = 12;
        assert!(mute(5, 60, &activity), "frames alone are no network");
        activity.address_seen = Some(Instant::now());
        assert!(!mute(5, 600, &activity), "an address of its own is");
        let bound = {
            let mut a = Activity::default();
            a.lease = Lease::Bound;
            a
        };
        assert!(!mute(5, 600, &bound));
        let begin = Instant::now();
        let boot = Milestones::new(begin);
        let late = begin + Duration::from_secs(3600);
        assert!(mute_for(&boot, &Activity::default(), late).is_none(), "no prompt");
    }
}
