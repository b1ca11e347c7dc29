//! Fresh randomness for a guest that goes on from a saved machine. Two guests that go on from the same one would draw
//! the same numbers: the same host keys, the same passwords.
//!
//! The machine tells the guest by its VM generation ID, and a kernel that knows that device reseeds itself. Many do not,
//! the Debian cloud kernel among them, so the guest is asked besides: bytes of its hardware generator, which the host
//! feeds, go into the kernel's pool, and the kernel is made to draw a new key from it (RNDRESEEDCRNG, random(4)). Where
//! neither perl nor python3 can call that ioctl, the kernel does it on its own within a minute.
//!
//! More is read from the generator than its driver may have fetched before the machine was saved.

use std::time::Duration;

use crate::command::Privilege;
use crate::session::{Session, SessionError};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What became of the guest's random numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reseeded {
    /// They are its own from now on.
    Now,
    /// They are its own within a minute.
    Soon,
    /// The guest does not let us, or has no generator.
    No {
        /// What the guest said.
        message: String,
    },
}

/// Gives the guest random numbers of its own. `privilege` is whose rights to use: [`Privilege::Root`] is root's own, or
/// `sudo -n`.
///
/// # Errors
/// When the guest cannot be asked. That it does not allow it is no error.
pub async fn reseed(session: &Session, privilege: &Privilege) -> Result<Reseeded, SessionError> {
    let captured = match session.ask(privilege, LIMIT, || LINE.into()).await {
        Ok(captured) => captured,
        Err(SessionError::SudoRefused { message, .. }) => return Ok(Reseeded::No { message }),
        Err(error) => return Err(error),
    };
    Ok(match (captured.status.success(), captured.stdout.trim()) {
        (true, "now") => Reseeded::Now,
        (true, "soon") => Reseeded::Soon,
        _ => {
            let said = captured.stderr.lines().next_back().unwrap_or_default().trim();
            let message = match said {
                "" => format!("reading its generator ended with {}", captured.status),
                said => said.to_owned(),
            };
            Reseeded::No { message }
        }
    })
}

/// Fails where there is no generator; tells whether the kernel drew a new key at once.
const LINE: &str = "head -c 1024 /dev/hwrng >/dev/urandom || exit 1; \
    if perl -e 'open(R, \">\", \"/dev/random\") && ioctl(R, 0x5207, 0) || exit 1' 2>/dev/null \
    || python3 -c 'import fcntl; fcntl.ioctl(open(\"/dev/random\", \"wb\"), 0x5207)' 2>/dev/null; \
    then echo now; else echo soon; fi";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::sshd::{Sshd, scripts};

    /// A guest whose tools are these scripts.
    async fn with_tools(tools: &[(&str, &str)]) -> Reseeded {
        let folder = scripts(tools);
        // A path of its own, which no start-up file adds to: the host's perl must not reseed the host.
        let folder = folder.path().display();
        let path = format!("SetEnv PATH={folder} HOME={folder}");
        let (session, _server) = Sshd::with(&path).session().await;
        reseed(&session, &Privilege::Login).await.expect("an answer")
    }

    const HEAD: (&str, &str) = ("head", "[ \"$*\" = '-c 1024 /dev/hwrng' ] && echo bytes");

    #[tokio::test]
    async fn a_kernel_that_can_be_told_to_is_reseeded_at_once() {
        let told = "case \"$*\" in *0x5207*) exit 0;; esac; exit 1";
        assert_eq!(with_tools(&[HEAD, ("perl", told)]).await, Reseeded::Now);
        assert_eq!(with_tools(&[HEAD, ("python3", told)]).await, Reseeded::Now);
        assert_eq!(with_tools(&[HEAD, ("perl", "exit 1"), ("python3", told)]).await, Reseeded::Now);
    }

    #[tokio::test]
    async fn one_that_cannot_be_told_follows_soon() {
        assert_eq!(with_tools(&[HEAD]).await, Reseeded::Soon);
        assert_eq!(with_tools(&[HEAD, ("perl", "exit 1")]).await, Reseeded::Soon);
    }

    #[tokio::test]
    async fn a_guest_without_a_generator_says_so() {
        let head = ("head", "echo 'head: cannot open /dev/hwrng' >&2; exit 1");
        let message = "head: cannot open /dev/hwrng".to_string();
        assert_eq!(with_tools(&[head]).await, Reseeded::No { message });
    }
}
