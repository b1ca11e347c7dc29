//! A terminal in the guest of a build.

use super::guest::Guest;
use crate::error::{Blame, Error};
use crate::terminal;

impl Guest {
    /// Runs `command`, or the login's shell, until it ends, and returns its exit code.
    ///
    /// # Errors
    /// The guest ended, or there is no terminal for a shell.
    pub async fn terminal(&mut self, command: Option<&str>) -> Result<u8, Error> {
        self.connect().await?;
        let session = &self.provisioned()?.session;
        let run = self.watch(terminal::run(session, command)).await;
        run.map_err(|ended| self.explain(&ended))?.map_err(|error| match error.blame {
            Blame::Guest => {
                let lines = self.setup.console.last_lines();
                error.excerpt("last lines of the console", lines)
            }
            _ => error,
        })
    }
}
