//! `kvmbake validate`

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::{ProfileArgs, print};
use crate::build::{Cancel, Plan};
use crate::error::Error;
use crate::profile::units::Size;
use crate::report::Report;
use crate::secret::Secrets;

/// Checks everything about a profile that can be checked without booting
///
/// The profile's keys and values, the files it names, the base image's format and structure, its
/// checksum, and the kernel that a build would boot.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
}

/// Runs the checks and says what a build would do.
///
/// # Errors
/// The faults found.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let plans = args.profile.plans(&report, secrets, &cancel)?;
    let mut text = String::new();
    let mut verified: Vec<PathBuf> = Vec::new();
    for plan in &plans {
        if !verified.contains(&plan.source.path) {
            plan.verify_checksum()?;
            verified.push(plan.source.path.clone());
        }
        text.push_str(&self::text(plan)?);
    }
    text.push_str("valid\n");
    print(&secrets.redact(&text))
}

/// What a build of `plan` would do.
fn text(plan: &Plan) -> Result<String, Error> {
    let kernel = plan.discover_kernel()?;
    kernel
        .image
        .verify()
        .map_err(|error| Error::input("The kernel cannot be booted").because(&error))?;
    let mut text = String::new();
    if let Some(cell) = &plan.profile.cell {
        let _ = writeln!(text, "cell     {}", cell.name());
    }
    let base = &plan.profile.image.source.value;
    let _ = writeln!(text, "base     {}  {}, {}", base, plan.base_format, Size(plan.virtual_size));
    if plan.build_size != plan.virtual_size {
        let _ = writeln!(text, "built at {}, grown when sealed", Size(plan.build_size));
    }
    let _ = writeln!(text, "boot     {}", kernel.origin);
    let _ = writeln!(text, "cmdline  {}", kernel.cmdline);
    for (index, step) in plan.profile.steps.iter().enumerate() {
        let _ = writeln!(text, "step {:<3} {}", index + 1, step.title);
    }
    for output in &plan.profile.outputs {
        let files: Vec<String> = output.files().collect();
        let _ = writeln!(text, "output   {}  {}", files.join(", "), output.format());
    }
    Ok(text)
}
