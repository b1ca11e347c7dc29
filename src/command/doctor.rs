//! `kvmbake doctor`

use std::fmt::Write;

use kvmbake_vmm::Outcome;

use super::print;
use crate::error::Error;

/// Checks that this machine can bake images, and says what to do when it cannot
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the checks.
///
/// # Errors
/// A check failed.
pub fn run(_: &Args) -> Result<(), Error> {
    let checks = kvmbake_vmm::probe();
    let mut text = String::new();
    let mut failed = false;
    for check in &checks {
        let mark = match check.outcome {
            Outcome::Good => "ok  ",
            Outcome::Warning => "warn",
            Outcome::Failed => "FAIL",
        };
        failed |= check.outcome == Outcome::Failed;
        let _ = writeln!(text, "{mark}  {:<24}  {}", check.name, check.detail);
        if !check.hint.is_empty() {
            let _ = writeln!(text, "      hint: {}", check.hint);
        }
    }
    print(&text)?;
    if failed { Err(Error::input("This machine cannot bake images as it is")) } else { Ok(()) }
}
