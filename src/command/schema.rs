//! `kvmbake schema`

use super::print;
use crate::error::{Blame, Error};
use crate::profile::schema::schema;

/// Prints the JSON Schema of the profile, with which editors complete and check it
///
/// Such as with taplo or Even Better TOML: write it to a file, and begin the profile with
/// `#:schema ./kvmbake.schema.json`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the schema.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(_: &Args) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(&schema())
        .map_err(|error| Error::new(Blame::Internal, "The schema is no JSON").because(&error))?;
    print(&format!("{text}\n"))
}
