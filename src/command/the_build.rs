//! The running build that a command is about.

use crate::control::{Found, find};
use crate::error::Error;

/// A word for a running build.
#[derive(Debug, clap::Args)]
pub struct TheBuild {
    /// The build: its id or how that begins, the profile's or the image's name; the only one when not given
    #[arg(value_name = "BUILD")]
    build: Option<String>,
}

impl TheBuild {
    /// Finds it.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn find(&self) -> Result<Found, Error> {
        find(self.build.as_deref())
    }
}
