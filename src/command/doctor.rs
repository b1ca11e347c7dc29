//! `kvmbake doctor`

use std::fmt::Write;

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
        let (mark, detail) = match &check.outcome {
            kvmbake_vmm::Outcome::Pass(detail) => ("ok  ", detail),
            kvmbake_vmm::Outcome::Warn(detail) => ("warn", detail),
            kvmbake_vmm::Outcome::Fail(detail) => {
                failed = true;
                ("FAIL", detail)
            }
        };
        let _ = writeln!(text, "{mark}  {:<28}  {detail}", check.name);
        if let Some(hint) = &check.hint {
            let _ = writeln!(text, "      hint: {hint}");
        }
    }
    print(&text)?;
    if failed { Err(Error::input("This machine cannot bake images as it is")) } else { Ok(()) }
}
