//! How far a boot has come, as its console tells: the kernel's first line, its hand-over to init, what
//! init prints, a login prompt. Each is known by words that Linux and the common init systems print.

use std::time::{Duration, Instant};

/// What a boot comes by, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The kernel's first line.
    Kernel,
    /// The kernel has started init, that of the initramfs first.
    Init,
    /// Init tells of itself: systemd, OpenRC or busybox.
    Services,
    /// Somebody may log in at the console.
    Login,
}

const ALL: [Milestone; 4] =
    [Milestone::Kernel, Milestone::Init, Milestone::Services, Milestone::Login];

impl Milestone {
    fn name(self) -> &'static str {
        match self {
            Milestone::Kernel => "kernel",
            Milestone::Init => "init",
            Milestone::Services => "services",
            Milestone::Login => "login prompt",
        }
    }
}

/// What one boot has come by.
#[derive(Debug, Clone)]
pub struct Milestones {
    began: Instant,
    seen: [Option<Instant>; ALL.len()],
    /// Whether anything was printed at all.
    printed: bool,
}

impl Milestones {
    /// A boot that begins.
    pub fn new(now: Instant) -> Milestones {
        Milestones { began: now, seen: [None; ALL.len()], printed: false }
    }

    /// Takes a finished line.
    pub fn line(&mut self, line: &str, now: Instant) {
        self.printed |= !line.trim().is_empty();
        let found = if line.contains("Linux version ") {
            Milestone::Kernel
        } else if line.contains("Run /") && line.contains(" as init process") {
            Milestone::Init
        } else if ["systemd[1]: ", "OpenRC ", "init started: BusyBox"]
            .iter()
            .any(|sign| line.contains(sign))
            || line.trim_start().starts_with("Welcome to ")
        {
            Milestone::Services
        } else {
            return;
        };
        self.note(found, now);
    }

    /// Takes a line that has no end yet: getty's prompt is a name, a blank and `login: `.
    pub fn unfinished(&mut self, line: &[u8], now: Instant) {
        let name = line.strip_suffix(b" login: ");
        if name.is_some_and(|name| !name.is_empty() && !name.contains(&b' ')) {
            self.note(Milestone::Login, now);
        }
    }

    /// Returns for how long a login prompt has stood, and how long the boot took until then.
    pub fn prompt(&self, now: Instant) -> Option<(Duration, Duration)> {
        let at = self.seen[Milestone::Login as usize]?;
        Some((now.saturating_duration_since(at), at.saturating_duration_since(self.began)))
    }

    /// Says what was seen.
    pub fn text(&self) -> String {
        let after = |milestone: &Milestone| {
            let at = self.seen[*milestone as usize]?;
            let after = at.saturating_duration_since(self.began).as_secs_f64();
            Some(format!("{} after {after:.1} s", milestone.name()))
        };
        let seen: Vec<String> = ALL.iter().filter_map(after).collect();
        match (seen.is_empty(), self.printed) {
            (false, _) if self.seen[Milestone::Login as usize].is_none() => {
                format!("{}, no login prompt", seen.join(", "))
            }
            (false, _) => seen.join(", "),
            (true, true) => "neither kernel nor init said anything that is known".into(),
            (true, false) => "nothing was printed; is `console=ttyS0` on the command line?".into(),
        }
    }

    fn note(&mut self, milestone: Milestone, now: Instant) {
        self.seen[milestone as usize].get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot that prints these lines, a second each, and then a beginning of one.
    fn boot(lines: &[&str], unfinished: &str) -> Milestones {
        let begin = Instant::now();
        let mut boot = Milestones::new(begin);
        for (second, line) in (1..).zip(lines) {
            boot.line(line, begin + Duration::from_secs(second));
        }
        let last = Duration::from_secs(lines.len() as u64 + 1);
        boot.unfinished(unfinished.as_bytes(), begin + last);
        boot
    }

    #[test]
    fn a_boot_is_followed_to_its_login_prompt() {
        let lines = [
            "[    0.000000] Linux version 6.1.0-18-cloud-amd64 (debian-kernel@lists.debian.org)",
            "[    1.123456] Run /init as init process",
            "[    2.345678] systemd[1]: systemd 252 running in system mode",
            "Welcome to Debian GNU/Linux 12 (bookworm)!",
        ];
        let seen = "kernel after 1.0 s, init after 2.0 s, services after 3.0 s";
        assert_eq!(boot(&lines, "").text(), format!("{seen}, no login prompt"));
        let at_prompt = boot(&lines, "debian login: ");
        assert_eq!(at_prompt.text(), format!("{seen}, login prompt after 5.0 s"));
        let later = at_prompt.began + Duration::from_secs(65);
        let (stood, took) = at_prompt.prompt(later).unwrap();
        assert_eq!((stood.as_secs(), took.as_secs()), (60, 5));
    }

    #[test]
    fn a_silent_console_and_a_strange_one_are_told_apart() {
        assert!(boot(&[], "").text().starts_with("nothing was printed"));
        assert!(boot(&["hello"], "").text().starts_with("neither kernel nor init"));
    }

    #[test]
    fn words_about_a_login_are_no_prompt() {
        for line in ["sshd: failed login: ", " login: ", "login: ", "debian login: root"] {
            assert!(boot(&[], line).prompt(Instant::now()).is_none(), "{line}");
        }
    }
}
