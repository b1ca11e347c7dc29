//! How sudo is asked, with a password or without.
//!
//! A password goes to sudo's standard input, never into its arguments. sudo takes the line only where it wants a
//! password; so a line of one colon follows, and the shell behind sudo knows by it what is left to be skipped.

use std::fmt;

/// What sudo asks the login for.
#[derive(Clone, PartialEq, Eq)]
pub struct SudoPassword(String);

impl SudoPassword {
    /// Takes a password; `None` for one that is no line of text, or is what we end it with.
    pub fn new(text: impl Into<String>) -> Option<SudoPassword> {
        let text = text.into();
        let is_line = !text.is_empty() && !text.contains(['\n', '\r', '\0']);
        (is_line && text != END).then_some(SudoPassword(text))
    }

    /// Returns the password, for programs that ask sudo themselves.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SudoPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SudoPassword")
    }
}

const END: &str = ":";
/// Takes off standard input what sudo has left of the password.
const SKIP: &str = "IFS= read -r b; [ \"$b\" = : ] || IFS= read -r b; ";

/// How a shell is started by sudo.
pub(crate) struct Sudo {
    /// The words for the login's shell, up to the options of the shell to start.
    pub(crate) exec: String,
    /// What comes first on standard input.
    pub(crate) input: Vec<u8>,
    /// What the shell must do first.
    pub(crate) skip: &'static str,
}

impl Sudo {
    /// Returns how to become `user`, or root. The name must be fit for a shell.
    pub(crate) fn new(user: Option<&str>, password: Option<&SudoPassword>) -> Sudo {
        let user = user.map(|user| format!("-u {user} ")).unwrap_or_default();
        match password {
            None => Sudo {
                exec: format!("exec sudo -n -H {user}-- /bin/sh"),
                input: Vec::new(),
                skip: "",
            },
            // Without what sudo remembers, so that it asks each time in the same way.
            Some(SudoPassword(password)) => Sudo {
                exec: format!("exec sudo -k -S -p '' -H {user}-- /bin/sh"),
                input: format!("{password}\n{END}\n").into_bytes(),
                skip: SKIP,
            },
        }
    }
}
